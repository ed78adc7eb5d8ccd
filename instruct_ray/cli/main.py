"""The `instruct-ray` command: a subcommand for each stage, to inspect a run, and to move the registry alias."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from instruct_ray.cli import ray_session
from instruct_ray.cli.arguments import ConfigFile, ModelName, Overrides, RegistryFile, RegistryUri
from instruct_ray.cli.cluster_commands import runs, submit
from instruct_ray.config.load import load_config
from instruct_ray.config.schema import Config
from instruct_ray.errors import exit_codes
from instruct_ray.run.log_records import RUN_VARIABLE

STAGES, CLUSTER, INSPECT, REGISTRY = "Stages, in order", "On a cluster", "Inspect", "Registry"
DEFAULT_PREVIEW_ROWS = 5

app = typer.Typer(
    name="instruct-ray",
    help="Instruction tuning on Ray: triples go in, an endpoint that follows them comes out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    suggest_commands=True,
)


@app.command(rich_help_panel=STAGES)
def prepare(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Read, check, split, tokenize and pack the triples."""
    from instruct_ray.cli.stages.prepare import run_prepare  # noqa: PLC0415  (a command loads only its own libraries)

    _run(run_prepare, config_file, overrides)


@app.command(rich_help_panel=STAGES)
def tune(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune on the packs and export the model. Rerun it to resume."""
    from instruct_ray.cli.stages.tune import run_tune  # noqa: PLC0415

    _run(run_tune, config_file, overrides)


@app.command(rich_help_panel=STAGES)
def evaluate(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Compare the tuned model with its base on the held-out rows."""
    from instruct_ray.cli.stages.evaluate import run_evaluate  # noqa: PLC0415

    _run(run_evaluate, config_file, overrides)


@app.command(rich_help_panel=INSPECT)
def learning_curve(
    config_file: ConfigFile,
    fractions: Annotated[
        list[float] | None,
        typer.Option("--fraction", help="Fraction of the training rows; may be repeated. 0.25 and 0.5 by default."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Tune on parts of the training rows, to see what more rows would bring. Rerun it to resume."""
    from instruct_ray.cli.learning_curve import DEFAULT_FRACTIONS, run_learning_curve  # noqa: PLC0415

    _run(lambda config: run_learning_curve(config, fractions or DEFAULT_FRACTIONS), config_file, overrides)


@app.command(rich_help_panel=INSPECT)
def benchmark(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Measure what tuning cost in general skill, by standard benchmarks. Rerun it to resume."""
    from instruct_ray.cli.benchmark import run_benchmark  # noqa: PLC0415

    _run(run_benchmark, config_file, overrides)


@app.command(rich_help_panel=STAGES)
def register(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Register the tuned model as a version in MLflow."""
    from instruct_ray.cli.stages.register import run_register  # noqa: PLC0415

    _run(run_register, config_file, overrides)


@app.command(rich_help_panel=STAGES)
def serve(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Serve the version under the alias over an OpenAI-compatible API."""
    from instruct_ray.cli.stages.serve import run_serve  # noqa: PLC0415

    _run(run_serve, config_file, overrides)


@app.command(rich_help_panel=STAGES)
def pipeline(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Run prepare, tune, evaluate and register one after the other. Rerun it to resume."""
    from instruct_ray.cli.pipeline import run_pipeline  # noqa: PLC0415

    _run(run_pipeline, config_file, overrides)


app.command(rich_help_panel=CLUSTER)(submit)
app.command(rich_help_panel=CLUSTER)(runs)


@app.command(rich_help_panel=INSPECT)
def new_key(name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use the key.")]) -> None:
    """Make an API key for an endpoint, and the entry of its file."""
    from instruct_ray.cli.new_key import run_new_key  # noqa: PLC0415

    with exit_codes():
        run_new_key(name)


@app.command(rich_help_panel=STAGES)
def generate(
    config_file: ConfigFile,
    rows: Annotated[
        str, typer.Option("--input", help="Rows to answer, as an entry of data.sources: a path or {path: ...}.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the answers, visible from every node.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or models:/NAME@ALIAS; the run's tuned model by default.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Answer a file of rows without an endpoint. Rerun it to resume."""
    from instruct_ray.cli.stages.generate import run_generate  # noqa: PLC0415

    source = rows if rows.startswith("{") else json.dumps(rows)
    all_overrides = [*(overrides or ()), f"data.sources=[{source}]"]
    _run(lambda config: run_generate(config, model, output.absolute()), config_file, all_overrides)


@app.command(rich_help_panel=INSPECT)
def preview(
    config_file: ConfigFile,
    overrides: Overrides = None,
    num_rows: Annotated[int, typer.Option("-n", "--num-rows", help="Rows to show.")] = DEFAULT_PREVIEW_ROWS,
) -> None:
    """Show rows as the model will see them, and how they are packed."""
    from instruct_ray.cli.inspect import run_preview  # noqa: PLC0415

    with exit_codes():
        run_preview(load_config(config_file, overrides or ()), num_rows)


@app.command(rich_help_panel=INSPECT)
def doctor(
    config_file: ConfigFile,
    overrides: Overrides = None,
    timed: Annotated[bool, typer.Option("--timed", help="Also time a few steps in a trial run.")] = False,
) -> None:
    """Check placement, memory, storage, disk and packs before training; exits with 2 if a check fails."""
    from instruct_ray.cli.inspect import run_doctor  # noqa: PLC0415

    _run(lambda config: run_doctor(config, is_timed=timed), config_file, overrides)


@app.command(rich_help_panel=INSPECT)
def drill(config_file: ConfigFile, overrides: Overrides = None) -> None:
    """Kill a worker during a trial run; exits with 1 if rows or weights differ."""
    from instruct_ray.cli.inspect import run_drill  # noqa: PLC0415

    _run(run_drill, config_file, overrides)


@app.command(rich_help_panel=INSPECT)
def schema() -> None:
    """Print the JSON schema of the config file, for editors."""
    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command(rich_help_panel=REGISTRY)
def versions(name: ModelName, config_file: RegistryFile = None, registry: RegistryUri = None) -> None:
    """Show the versions of a model and the decisions about them."""
    from instruct_ray.cli.registry import RegistryPlace, run_versions  # noqa: PLC0415

    with exit_codes():
        run_versions(RegistryPlace(config_file, registry), name)


@app.command(rich_help_panel=REGISTRY)
def promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version.")],
    config_file: RegistryFile = None,
    registry: RegistryUri = None,
    is_forced: Annotated[bool, typer.Option("--force", help="Don't ask the gate.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why the gate is overridden; recorded.")] = None,
) -> None:
    """Point the alias to a version that passes the gate; exits with 3 if it is refused."""
    from instruct_ray.cli.registry import RegistryPlace, run_promote  # noqa: PLC0415

    with exit_codes():
        run_promote(RegistryPlace(config_file, registry), name, version, reason, is_forced=is_forced)


@app.command(rich_help_panel=REGISTRY)
def rollback(
    name: ModelName,
    reason: Annotated[str, typer.Option(help="Why; recorded.")],
    config_file: RegistryFile = None,
    registry: RegistryUri = None,
) -> None:
    """Point the alias to the version before."""
    from instruct_ray.cli.registry import RegistryPlace, run_rollback  # noqa: PLC0415

    with exit_codes():
        run_rollback(RegistryPlace(config_file, registry), name, reason)


@app.command(rich_help_panel=REGISTRY)
def trace(
    reference: Annotated[
        str | None,
        typer.Argument(metavar="NAME[@ALIAS|/NUMBER]", help="A version; with --row, a model, or none for all"),
    ] = None,
    config_file: RegistryFile = None,
    registry: RegistryUri = None,
    row: Annotated[str | None, typer.Option(help="Row as in the ledger, FILE:POSITION, such as 0:17.")] = None,
    rows: Annotated[Path | None, typer.Option(help="File with one row a line.")] = None,
) -> None:
    """Show where a version comes from, or which versions were trained on a row."""
    from instruct_ray.cli.registry import RegistryPlace  # noqa: PLC0415
    from instruct_ray.cli.trace import run_trace  # noqa: PLC0415

    with exit_codes():
        run_trace(RegistryPlace(config_file, registry), reference, row, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `instruct-ray`."""
    app(args=None if arguments is None else list(arguments), prog_name="instruct-ray")


def run_job(stage: str) -> None:
    """Entry point of `python -m jobs.STAGE`: the same as `instruct-ray STAGE`."""
    main([stage, *sys.argv[1:]])


def _run(stage: Callable[[Config], None], config_file: Path, overrides: Sequence[str] | None) -> None:
    """Load the config and run a stage that may use Ray."""
    ray_session.silence_libraries()
    with exit_codes():
        config = load_config(config_file, overrides or ())
        os.environ[RUN_VARIABLE] = config.run.name
        try:
            stage(config)
        finally:
            ray_session.shut_down_ray()
