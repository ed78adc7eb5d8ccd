"""Submits a stage: every check first, then the job."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instruct_ray.errors import InputError
from instruct_ray.submission.access import Access
from instruct_ray.submission.job_config import JobConfig
from instruct_ray.submission.job_server import ENDED, JobRequest, JobServer
from instruct_ray.submission.preflight import check_inputs, check_packages, check_resources, probe_cluster
from instruct_ray.submission.working_dir import check_working_dir

# Of the job's metadata, which `instruct-ray runs` reads.
STAGE_KEY, RUN_KEY, STORAGE_KEY = "stage", "run", "storage"
# Seconds that training has to commit a checkpoint when the job is stopped; Ray's default of 3 is too short.
STOP_ENV = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
ID_CHARACTERS = 6


def submit_stage(
    stage: str, job: JobConfig, access: Access, working_dir: Path | None, status: Callable[[str], None]
) -> tuple[JobServer, str]:
    """Check the cluster, submit a stage, and return the server and the job's id. Nothing is queued if a check fails.

    Raises:
        InputError: the job could not work on this cluster; the message says why and what to do.
        UnavailableError: the cluster does not answer.
        RunFailedError: the cluster can't run jobs.
    """
    runtime_env: dict[str, Any] = {"env_vars": STOP_ENV}
    if working_dir is not None:
        check_working_dir(working_dir)
        runtime_env["working_dir"] = str(working_dir)
    server = JobServer(access.address)
    _check_unused(server, job)
    status("looking at the cluster")
    cluster = probe_cluster(server, stage, job, runtime_env)
    is_source_sent = working_dir is not None and (working_dir / "instruct_ray").is_dir()
    check_packages(cluster, is_source_sent=is_source_sent)
    access.check_closed(cluster.dashboard_host)
    check_inputs(cluster, stage)
    check_resources(cluster, stage, job)
    status("submitting")
    request = _make_request(stage, job, runtime_env, cluster.driver_resources)
    server.submit(request)
    return server, request.id


def _make_request(
    stage: str, job: JobConfig, runtime_env: dict[str, Any], driver_resources: dict[str, float]
) -> JobRequest:
    run = job.config.run
    return JobRequest(
        id=f"{run.name}-{stage}-{uuid.uuid4().hex[:ID_CHARACTERS]}",
        entrypoint=job.command(stage),
        runtime_env=runtime_env,
        metadata={STAGE_KEY: stage, RUN_KEY: run.name, STORAGE_KEY: str(run.storage)},
        driver_resources=driver_resources,
    )


def _check_unused(server: JobServer, job: JobConfig) -> None:
    """Check that no other job works on the run.

    Raises:
        InputError: one does.
    """
    run = job.config.run
    for other in server.jobs:
        values = other.metadata or {}
        is_same = (values.get(RUN_KEY), values.get(STORAGE_KEY)) == (run.name, str(run.storage))
        if is_same and other.status not in ENDED:
            raise InputError(
                f"job {other.submission_id} is working on run {run.name} ({values.get(STAGE_KEY)}); wait for it, or "
                f"stop it: {server.ray_command('stop', str(other.submission_id))}"
            )
