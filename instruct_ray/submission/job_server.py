"""Ray's job server, with errors in one line. The only importer of `ray.job_submission`."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails as JobDetails
from ray.job_submission import JobStatus, JobSubmissionClient

from instruct_ray.errors import InputError, UnavailableError, one_line

# The dashboard of a cluster that is starting answers some seconds before the agent that starts jobs.
NO_AGENT = "No available agent"
AGENT_SECONDS = 60.0
RETRY_SECONDS = 2.0
# A connection that breaks while a job is followed is tried again for so long.
RECONNECT_SECONDS = 120.0
# Reconnect when nothing was received for so long: a lost connection may raise no error.
QUIET_SECONDS = 60.0
POLL_SECONDS = 0.2
MAX_ERROR_CHARACTERS = 300
# Of the metadata of jobs that commands run to look at the cluster. They are kept for so long.
HELPER_KEY, HELPER_SECONDS = "helper", 10.0
# Hosts that Serve listens on, which are no address to ask.
ALL_INTERFACES = ("0.0.0.0", "::", "")
# Where Serve listens if it is told nothing.
SERVE_DEFAULTS: dict[str, Any] = {"host": "127.0.0.1", "port": 8000}
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobRequest:
    """What is submitted."""

    id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]
    driver_resources: Mapping[str, float] = field(default_factory=dict)
    """Resources of the node that the driver runs on. Without any it is the head."""


class JobServer:
    """The job server of a cluster that this process may use."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            InputError: the token is missing or wrong.
            UnavailableError: the server does not answer.
        """
        self.address = address
        # Ray prefers the variable to an address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        # Ray's client logs each connection; both set their own level when they are imported.
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with self._errors():
            self._client = JobSubmissionClient(address)
            self.jobs: list[JobDetails] = self._client.list_jobs()
        """All jobs that the cluster remembers, as they were when this object was made."""

    def submit(self, request: JobRequest) -> None:
        """Submit a job, with the files of its working directory.

        Raises:
            UnavailableError: the server does not take it.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                with self._errors():
                    self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=request.id,
                        runtime_env=dict(request.runtime_env),
                        metadata=dict(request.metadata),
                        entrypoint_resources=dict(request.driver_resources),
                    )
                return
            except UnavailableError as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def wait(self, job_id: str, seconds: float) -> JobDetails:
        """Wait for a job to end; returns its details, also if it has not ended in time."""
        deadline = time.monotonic() + seconds
        while True:
            with self._errors():
                details: JobDetails = self._client.get_job_info(job_id)
            if details.status in ENDED or time.monotonic() > deadline:
                return details
            time.sleep(POLL_SECONDS)

    def logs(self, job_id: str) -> str:
        """All that a job has printed so far."""
        with self._errors():
            return str(self._client.get_job_logs(job_id))

    def ray_command(self, command: str, job_id: str) -> str:
        """A command of `ray job` about a job, for the user's shell. Without the variable Ray sends no token."""
        variable = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        return f"{variable}ray job {command} --address {self.address} {job_id}"

    def endpoints(self) -> list[str]:
        """The URLs of the applications that Ray Serve runs on the cluster, as its nodes reach them."""
        with self._errors():
            response = self._client._do_request("GET", "/api/serve/applications/")
        return find_endpoints(response.json()) if response.status_code == requests.codes.ok else []

    def run_helper(
        self, name: str, command: str, runtime_env: Mapping[str, Any], seconds: float
    ) -> tuple[JobDetails, str]:
        """Run a short job for another command, and return its details and all that it printed.

        Finished helpers are removed from the list of jobs by the next one: Ray writes the state of a job once more
        some time after its end, so one that was removed at once would be there again.
        """
        self._remove_helpers()
        job_id = f"{name}-{uuid.uuid4().hex[:8]}"
        self.submit(JobRequest(job_id, command, runtime_env, {HELPER_KEY: name}))
        try:
            details = self.wait(job_id, seconds)
        finally:
            self._stop(job_id)
        return details, self.logs(job_id)

    def _stop(self, job_id: str) -> None:
        with self._errors():
            if self._client.get_job_status(job_id) not in ENDED:
                self._client.stop_job(job_id)

    def _remove_helpers(self) -> None:
        newest = 1000 * (time.time() - HELPER_SECONDS)
        for job in self.jobs:
            is_helper = job.status in ENDED and HELPER_KEY in (job.metadata or {})
            if is_helper and (job.end_time or 0) < newest:
                # Another command may have removed it.
                with suppress(UnavailableError), self._errors():
                    self._client.delete_job(job.submission_id)

    def follow(self, job_id: str) -> Generator[str, None, JobDetails]:
        """Yield what a job prints until it ends, and return its details. A connection that breaks is made again.

        Raises:
            UnavailableError: the server has not answered for RECONNECT_SECONDS.
        """
        num_read = 0
        failing_since: float | None = None
        while True:
            settle_seconds = AGENT_SECONDS
            try:
                try:
                    # The server sends the log from its start.
                    for text in _run(_skip(self._client.tail_job_logs(job_id), num_read)):
                        num_read += len(text)
                        failing_since = None
                        yield text
                except TimeoutError:
                    # The job prints nothing, or the connection is lost. Reconnecting tells which.
                    settle_seconds = 0.0
                details = self.wait(job_id, settle_seconds)
                failing_since = None
                if details.status in ENDED and settle_seconds:
                    return details
            except (RuntimeError, aiohttp.ClientError, OSError) as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > RECONNECT_SECONDS:
                    raise UnavailableError(f"{self.address} does not answer any more ({one_line(error)})") from None
                time.sleep(RETRY_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what Ray's client raises in one line."""
        try:
            yield
        except AuthenticationError as error:
            problem = "asks for a token" if "401" in str(error) or "required" in str(error) else "refuses the token"
            raise InputError(
                f"{self.address} {problem}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file, to that of the "
                "cluster"
            ) from None
        except (requests.RequestException, ConnectionError) as error:
            text = one_line(error, MAX_ERROR_CHARACTERS)
            raise UnavailableError(f"{self.address} can't be reached ({text})") from None
        except RuntimeError as error:
            # The server's own traceback is in the text.
            lines = str(error).strip().removesuffix(".").strip().splitlines()
            raise UnavailableError(f"{self.address}: {lines[-1][:MAX_ERROR_CHARACTERS]}") from None


def find_endpoints(details: Mapping[str, Any]) -> list[str]:
    """The URLs in what Serve says about itself (Ray's `ServeInstanceDetails`)."""
    # Every proxy takes requests for every application.
    addresses = [proxy["node_ip"] for proxy in details["proxies"].values() if proxy["status"] == "HEALTHY"]
    # Only what was set; nothing where nothing is served.
    options = SERVE_DEFAULTS | details.get("http_options", {})
    host = options["host"]
    if host in ALL_INTERFACES:
        if not addresses:
            return []
        host = addresses[0]
    base = f"http://{f'[{host}]' if ':' in host else host}:{options['port']}"
    return [
        f"{base}{application['route_prefix'].rstrip('/')}/v1"
        for application in details["applications"].values()
        if application["status"] == "RUNNING" and application["route_prefix"]
    ]


async def _skip(texts: AsyncIterator[str], num_characters: int) -> AsyncIterator[str]:
    """The texts without their first characters."""
    async for text in texts:
        rest, num_characters = text[num_characters:], max(0, num_characters - len(text))
        if rest:
            yield rest


def _run(texts: AsyncIterator[str]) -> Iterator[str]:
    """Read an asynchronous iterator in this thread.

    Raises:
        TimeoutError: nothing came for QUIET_SECONDS.
    """
    with asyncio.Runner() as runner:
        while (text := runner.run(asyncio.wait_for(_next(texts), QUIET_SECONDS))) is not None:
            yield text


async def _next(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)
