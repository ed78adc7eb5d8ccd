"""`instruct-ray submit`: runs a stage as a job on a cluster, and follows its log."""

import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.console import StatusLine
from instruct_ray.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, InputError
from instruct_ray.submission.access import open_access
from instruct_ray.submission.job_config import JobConfig

if TYPE_CHECKING:
    from instruct_ray.submission.job_server import JobDetails, JobServer

STAGES = ("prepare", "tune", "evaluate", "register", "pipeline", "serve", "doctor", "benchmark", "learning-curve")


@dataclass(frozen=True)
class SubmitOptions:
    """The options of the command; see its help."""

    address: str | None
    working_dir: Path | None
    follows: bool
    allow_open: bool


def run_submit(stage: str, config_file: Path, overrides: Sequence[str], options: SubmitOptions) -> None:
    """Submit a stage; print its log until it ends, and exit as it did, unless the options say otherwise.

    Raises:
        InputError: the job could not work on this cluster.
        UnavailableError: the cluster does not answer.
    """
    if stage not in STAGES:
        raise InputError(f"{stage!r} can't be submitted; choose one of {', '.join(STAGES)}")
    job = JobConfig.load(config_file, overrides)
    access = open_access(options.address, allow_open=options.allow_open)
    with StatusLine("submit") as status:
        status(f"connecting to {access.address}")
        from instruct_ray.submission.submit import submit_stage  # noqa: PLC0415  (imports Ray, which takes seconds)

        server, job_id = submit_stage(stage, job, access, options.working_dir, status)
    print(f"submitted {job_id} to {server.address}")
    print("\n".join(_describe_commands(server, job_id)), flush=True)
    if options.follows:
        sys.exit(_follow(server, job_id))


def _describe_commands(server: "JobServer", job_id: str) -> list[str]:
    return [
        f"  watch it    {server.ray_command('logs --follow', job_id)}",
        f"  stop it     {server.ray_command('stop', job_id)}",
        f"  all runs    instruct-ray runs --address {server.address}",
    ]


def _print_log(texts: "Generator[str, None, JobDetails]") -> "JobDetails":
    while True:
        try:
            text = next(texts)
        except StopIteration as end:
            details: JobDetails = end.value
            return details
        print(text, end="", flush=True)


def _follow(server: "JobServer", job_id: str) -> int:
    """Print the log of a job until it ends; returns its exit code."""
    try:
        details = _print_log(server.follow(job_id))
    except (KeyboardInterrupt, BrokenPipeError) as error:
        print(f"\njob {job_id} goes on without this command", file=sys.stderr)
        print("\n".join(_describe_commands(server, job_id)), file=sys.stderr, flush=True)
        if isinstance(error, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        # The program that reads our output has exited (`| head`): flushing the rest at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if details.status == "STOPPED":
        print(f"error: job {job_id} was stopped; submit it again to resume", file=sys.stderr)
        return EXIT_TERMINATED
    if details.status == "FAILED" and details.driver_exit_code is None:
        # It did not start: its log has no reason.
        print(f"error: job {job_id} failed: {(details.message or '').strip()}", file=sys.stderr)
        return EXIT_FAILED
    return int(details.driver_exit_code or 0)
