"""A cluster that requires a token, for the tests that submit jobs."""

from collections.abc import Iterator

import pytest

from tests.token_cluster import token_cluster, user_environment


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a cluster user."""
    return user_environment()


@pytest.fixture(scope="package")
def dashboard() -> Iterator[str]:
    """The address that jobs are submitted to."""
    with token_cluster() as cluster:
        yield cluster.dashboard
