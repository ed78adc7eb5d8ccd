"""Whether a cluster's job server can be reached, asks for a token, and is closed to others. Imports no Ray."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from instruct_ray.errors import InputError, UnavailableError, one_line

TIMEOUT_SECONDS = 10.0
# Ray's answers to a request without a token, and with a wrong one.
NOT_ALLOWED = (401, 403)
LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}
# Asked for without a token. No job has this name.
NO_JOB = "no-such-job"


@dataclass(frozen=True)
class Access:
    """A job server that answers."""

    address: str
    """Its URL."""
    asks_for_token: bool
    """Whether it refuses requests without a token."""
    allow_open: bool
    """Whether it may be used although it asks for none."""

    def check_closed(self, dashboard_host: str | None = None) -> None:
        """Check that not everybody who reaches the cluster can run code on it.

        `dashboard_host` is the host that the dashboard listens on, as far as it is known.

        Raises:
            InputError: the job server needs no token and other machines reach it.
        """
        hosts = {urlsplit(self.address).hostname, dashboard_host} - {None}
        if self.asks_for_token or self.allow_open or hosts <= LOOPBACK_HOSTS:
            return
        raise InputError(
            f"{self.address} runs jobs of anyone who reaches it, since it asks for no token; start its nodes with "
            "RAY_AUTH_MODE=token (see cluster/), or give --allow-open if another gateway controls the access"
        )


def open_access(address: str | None, *, allow_open: bool = False) -> Access:
    """Find the job server, and make Ray's client send a token if the server asks for one.

    Args:
        address: URL of the cluster's dashboard; None takes it from the variables that Ray reads.
        allow_open: see `Access`.

    Raises:
        InputError: no address is given, or the job server is open to other machines.
        UnavailableError: no job server answers.
    """
    url = _find_address(address)
    access = Access(url, _asks_for_token(url), allow_open)
    access.check_closed()
    if access.asks_for_token:
        # Ray's client reads it when it is imported, and sends no token without it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return access


def _find_address(address: str | None) -> str:
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not found:
        raise InputError("no cluster is named: give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    try:
        parts = urlsplit(found)
    except ValueError as error:
        raise InputError(f"--address: {found!r} is not the address of a dashboard ({one_line(error)})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--address: {found!r} is not the address of a dashboard; write http://HEAD:8265")
    return found.rstrip("/")


def _asks_for_token(address: str) -> bool:
    try:
        response = httpx.get(f"{address}/api/jobs/{NO_JOB}", timeout=TIMEOUT_SECONDS)
    # A host name that can't be encoded is a UnicodeError.
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise UnavailableError(
            f"{address} can't be reached ({one_line(error)}); check the address, and that the cluster runs and its "
            "dashboard's port is forwarded"
        ) from None
    if response.status_code in NOT_ALLOWED:
        return True
    if response.status_code == httpx.codes.NOT_FOUND and NO_JOB in response.text:
        return False
    raise UnavailableError(f"{address} is not the dashboard of a Ray cluster (HTTP status {response.status_code})")
