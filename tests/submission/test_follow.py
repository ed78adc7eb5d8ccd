"""Following the log of a job over connections that break, and job servers that others use at the same time."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from instruct_ray.submission import job_server
from instruct_ray.submission.job_server import JobServer
from instruct_ray.submission.remote_runs import find_jobs


class FakeClient:
    """Ray's client of a job server: of the first connections only the first texts arrive, then nothing."""

    def __init__(self, texts: list[str], num_broken: int = 0, jobs: list[Any] | None = None) -> None:
        self.texts, self.num_broken, self.jobs = texts, num_broken, jobs or []
        self.num_connections = 0

    def list_jobs(self) -> list[Any]:
        """The jobs of the server."""
        return self.jobs

    def get_job_info(self, job_id: str) -> Any:
        """A job runs until its whole log was sent."""
        status = JobStatus.SUCCEEDED if self.num_connections > self.num_broken else JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=0)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Send the log from its start."""
        self.num_connections += 1
        if self.num_connections > self.num_broken:
            for text in self.texts:
                yield text
            return
        yield self.texts[0]
        await asyncio.sleep(3600)

    def delete_job(self, job_id: str) -> None:
        """Another command was faster."""
        raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")


def connect(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> JobServer:
    monkeypatch.setattr(job_server, "JobSubmissionClient", lambda address: client)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    return JobServer("http://127.0.0.1:8265")


def test_reconnects_when_a_lost_connection_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "QUIET_SECONDS", 0.1)
    client = FakeClient(["one\n", "two\n"], num_broken=3)
    server = connect(client, monkeypatch)
    # Also for longer than a server may be away: it answers.
    monkeypatch.setattr(job_server, "RECONNECT_SECONDS", 0.05)
    assert list(server.follow("job")) == ["one\n", "two\n"]
    assert client.num_connections == 4


def test_helper_that_another_command_removed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = SimpleNamespace(
        submission_id="preflight-1", status=JobStatus.SUCCEEDED, metadata={job_server.HELPER_KEY: "runs"}, end_time=1
    )
    connect(FakeClient([], jobs=[helper]), monkeypatch)._remove_helpers()


def test_jobs_of_other_programs_are_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(submission_id="x", status=JobStatus.RUNNING, metadata={"run": "x"}, start_time=1)
    assert find_jobs(connect(FakeClient([], jobs=[other]), monkeypatch)) == {}
