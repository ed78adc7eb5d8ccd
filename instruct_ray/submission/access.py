"""Whether the job server of a cluster can be reached, and whether it asks for a token."""

import os
from urllib.parse import urlsplit

import httpx

from instruct_ray.errors import InputError, UnavailableError, one_line

TIMEOUT_SECONDS = 10.0
# Ray's answers to a request without a token, and with a wrong one.
NOT_ALLOWED = (401, 403)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Asked for without a token. No job has this name.
PROBE_PATH = "/api/jobs/access-check"


def find_address(address: str | None) -> str:
    """The HTTP address of the cluster: as given, or from the variables that Ray reads.

    Raises:
        InputError: there is none, or it is none of HTTP.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not found:
        raise InputError("no cluster is named: give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--address: {found!r} is not the address of a dashboard; write http://HEAD:8265")
    return found.rstrip("/")


def is_loopback(host: str | None) -> bool:
    """Whether only its own machine reaches a server that listens there."""
    return host in LOOPBACK


def asks_for_token(address: str) -> bool:
    """Whether the job server refuses requests without a token.

    Raises:
        UnavailableError: no job server answers.
    """
    try:
        response = httpx.get(f"{address}{PROBE_PATH}", timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{address} can't be reached ({one_line(error)}); check the address, and that the cluster runs and its "
            "dashboard's port is forwarded"
        ) from None
    if response.status_code in NOT_ALLOWED:
        return True
    # Ray says that there is no such job.
    if response.status_code == httpx.codes.NOT_FOUND and "access-check" in response.text:
        return False
    raise UnavailableError(f"{address} is not the dashboard of a Ray cluster (HTTP status {response.status_code})")


def check_closed(address: str, *, asks: bool, listens_on: str | None, allow_open: bool) -> None:
    """Check that not everybody who reaches the cluster can run code on it.

    `listens_on` is the host that the dashboard listens on, as far as it is known.

    Raises:
        InputError: the job server needs no token and other machines reach it.
    """
    if asks or allow_open:
        return
    if is_loopback(urlsplit(address).hostname) and (listens_on is None or is_loopback(listens_on)):
        return
    raise InputError(
        f"{address} runs jobs of anyone who reaches it, since it asks for no token; start its nodes with "
        "RAY_AUTH_MODE=token (see cluster/), or give --allow-open if another gateway controls the access"
    )
