"""`instruct-ray runs`: the runs of a storage or of a cluster, one line each."""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.console import StatusLine
from instruct_ray.errors import InputError
from instruct_ray.run.summary import RUNS, RunSummary, list_runs
from instruct_ray.submission.access import open_access
from instruct_ray.submission.run_versions import add_aliases, add_endpoints

if TYPE_CHECKING:
    from instruct_ray.submission.remote_runs import RunJob

COLUMNS = ("run", "stage", "step", "left", "verdict", "version", "job or process", "endpoint")
NOTHING = "–"


def run_runs(storages: Sequence[Path], address: str | None, endpoints: Sequence[str], *, as_json: bool) -> None:
    """List the runs: of folders that this machine sees, or with `address` those that the cluster sees.

    Raises:
        InputError: a storage is no folder, or neither storage nor cluster is given.
        UnavailableError: the cluster does not answer.
    """
    if address is None and storages:
        # A cluster may remember jobs whose storage is gone.
        present = [storage for storage in storages if storage.is_dir() or not as_json]
        runs = add_aliases([run for storage in present for run in _list_local(storage)], _warn)
        runs = add_endpoints(runs, endpoints, _warn)
        if as_json:
            print(RUNS.dump_json(runs).decode())
        else:
            print_runs(runs, {})
        return
    access = open_access(address, allow_open=True)
    with StatusLine("runs") as status:
        status("asking the cluster")
        from instruct_ray.submission.job_server import JobServer  # noqa: PLC0415  (imports Ray, which takes seconds)
        from instruct_ray.submission.remote_runs import fetch_runs, find_jobs  # noqa: PLC0415

        server = JobServer(access.address)
        jobs = find_jobs(server)
        wanted = [str(storage) for storage in storages] or sorted({storage for storage, _ in jobs})
        runs = fetch_runs(server, wanted, [*server.endpoints(), *endpoints], _warn) if wanted else []
    if wanted:
        print_runs(runs, jobs)
    else:
        print(f"no runs: {server.address} knows no job of `instruct-ray submit`; --storage PATH lists a folder's")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _list_local(storage: Path) -> list[RunSummary]:
    if not storage.is_dir():
        raise InputError(f"--storage: no folder {storage}")
    return list_runs(storage.absolute())


def print_runs(runs: Sequence[RunSummary], jobs: "Mapping[tuple[str, str], RunJob]") -> None:
    """Print a table. `jobs` are by storage and run."""
    listed = {(run.storage, run.name) for run in runs}
    rows = [_format_run(run, jobs.get((run.storage, run.name))) for run in runs]
    # A job that waits, or failed before it wrote anything.
    rows += [
        (name, job.stage, *[NOTHING] * 4, _format_job(job), NOTHING)
        for (storage, name), job in jobs.items()
        if (storage, name) not in listed
    ]
    if not rows:
        print("no runs")
        return
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS))]
    for row in [COLUMNS, *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _format_run(run: RunSummary, job: "RunJob | None") -> tuple[str, ...]:
    is_active = job is not None and job.status in ("PENDING", "RUNNING")
    process = _format_job(job) if job is not None and (is_active or run.owner is None) else run.owner
    return (
        run.name,
        run.stage,
        _format_steps(run),
        NOTHING if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left))),
        run.verdict or NOTHING,
        " ".join([run.version, *(f"@{alias}" for alias in run.aliases)]) if run.version else NOTHING,
        process or NOTHING,
        run.endpoint or NOTHING,
    )


def _format_steps(run: RunSummary) -> str:
    if run.step is None:
        return NOTHING
    # Those of earlier versions do not know their number.
    return str(run.step) if run.num_steps is None else f"{run.step}/{run.num_steps}"


def _format_job(job: "RunJob") -> str:
    code = f" ({job.exit_code})" if job.exit_code else ""
    return f"{job.id} {job.status.lower()}{code}"
