"""The commands `submit` and `runs`, which ask a cluster over HTTP and join none."""

from pathlib import Path
from typing import Annotated

import typer

from instruct_ray.cli.arguments import ConfigFile, Overrides
from instruct_ray.errors import exit_codes

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, http://HEAD:8265; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS."),
]


def submit(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage, or pipeline.")],
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that the job runs in, sent to the cluster; by default the image's."),
    ] = None,
    follows: Annotated[
        bool, typer.Option("--follow/--no-wait", help="Print the job's log and exit as it does, or return at once.")
    ] = True,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Also use a cluster that runs jobs of anyone who reaches it.")
    ] = False,
) -> None:
    """Run a stage as a job on a Ray cluster. Nothing is queued if the cluster can't run it."""
    from instruct_ray.cli.submit import (  # noqa: PLC0415  (a command loads only its own libraries)
        SubmitOptions,
        run_submit,
    )

    options = SubmitOptions(address, working_dir, follows, allow_open)
    with exit_codes():
        run_submit(stage, config_file, overrides or (), options)


def runs(
    storage: Annotated[
        list[Path] | None, typer.Option(help="Folder of runs, run.storage; may be repeated.", show_default=False)
    ] = None,
    address: Address = None,
    endpoints: Annotated[
        list[str] | None,
        typer.Option("--endpoint", help="Endpoint, http://HOST:PORT/v1; may be repeated. A cluster knows its own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, of folders that this machine sees.")] = False,
) -> None:
    """List runs: stage, progress, verdict, version and endpoint; of a folder, or of a cluster and its jobs."""
    from instruct_ray.cli.runs import run_runs  # noqa: PLC0415

    with exit_codes():
        run_runs(storage or (), address, endpoints or (), as_json=as_json)
