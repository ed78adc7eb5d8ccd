"""The runs of a cluster: a job on it reads their storage, and the job server knows their jobs."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instruct_ray.errors import RunFailedError
from instruct_ray.run.summary import RUNS, RunSummary
from instruct_ray.submission.job_server import ENDED, JobServer
from instruct_ray.submission.submit import RUN_KEY, STAGE_KEY, STORAGE_KEY

LIST_SECONDS = 120.0
# How a line of the job's log begins that its user should see.
WARNING = "warning: "


@dataclass(frozen=True)
class RunJob:
    """The newest job of a run."""

    id: str
    stage: str
    status: str
    """Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None


def find_jobs(server: JobServer) -> dict[tuple[str, str], RunJob]:
    """The newest job of each run that `instruct-ray submit` started, by storage and name of the run."""
    jobs: dict[tuple[str, str], RunJob] = {}
    for job in sorted(server.jobs, key=lambda job: job.start_time or 0):
        values = job.metadata or {}
        # A job of another program may have a key of the same name.
        if job.submission_id and {STORAGE_KEY, RUN_KEY, STAGE_KEY} <= values.keys():
            key = (values[STORAGE_KEY], values[RUN_KEY])
            jobs[key] = RunJob(job.submission_id, values[STAGE_KEY], str(job.status.value), job.driver_exit_code)
    return jobs


def fetch_runs(
    server: JobServer, storages: Sequence[str], endpoints: Sequence[str], warn: Callable[[str], None]
) -> list[RunSummary]:
    """List the runs of storages that the cluster sees, by a job there. A storage that it does not see has none.

    The job also asks the registry and the `endpoints`, which this machine may not reach; `warn` gets its warnings.

    Raises:
        RunFailedError: the job did not run.
    """
    options = [word for storage in storages for word in ("--storage", storage)]
    options += [word for url in endpoints for word in ("--endpoint", url)]
    command = shlex.join(["python", "-m", "instruct_ray", "runs", "--json", *options])
    details, log = server.run_helper("runs", command, {}, LIST_SECONDS)
    lines = log.splitlines()
    if details.status not in ENDED or details.driver_exit_code != 0:
        reason = next((line for line in reversed(lines) if line.strip()), str(details.status))
        raise RunFailedError(f"{server.address}: the runs can't be listed: {reason}")
    for line in lines:
        if line.startswith(WARNING):
            warn(line.removeprefix(WARNING))
    return RUNS.validate_python(json.loads(lines[-1]))
