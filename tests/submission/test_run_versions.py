"""The list of runs with registries that do not answer, are not there, or have the same version as another one."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from instruct_ray.files import atomic_write_json
from instruct_ray.run.summary import list_runs
from instruct_ray.submission.run_versions import add_aliases, add_endpoints


@pytest.fixture
def registered_run(tmp_path: Path) -> Path:
    """The folder of a run that was registered as version 3, as far as its files say."""
    folder = tmp_path / "support"
    atomic_write_json(folder / "version.json", {"name": "support", "version": "3"})
    return folder


def test_registry_that_does_not_answer_is_a_warning(registered_run: Path) -> None:
    atomic_write_json(registered_run / "config.json", {"registry": {"uri": "http://me:secret@127.0.0.1:9"}})
    warnings: list[str] = []
    [run] = add_aliases(list_runs(registered_run.parent), warnings.append)
    assert (run.version, run.aliases) == ("support/3", [])
    [warning] = warnings
    assert warning.startswith("aliases are not shown: registry.uri: http://")
    assert "secret" not in warning


@pytest.mark.parametrize("is_configured", [False, True])
def test_database_that_is_gone_is_not_made_again(registered_run: Path, *, is_configured: bool) -> None:
    if is_configured:
        uri = f"sqlite:///{registered_run.parent}/own.db"
        atomic_write_json(registered_run / "config.json", {"registry": {"uri": uri}})
    [run] = add_aliases(list_runs(registered_run.parent), pytest.fail)
    assert (run.version, run.aliases) == ("support/3", [])
    assert [path.name for path in registered_run.parent.iterdir()] == ["support"]


class Health(BaseHTTPRequestHandler):
    """An endpoint that serves version 3 of `support`."""

    def do_GET(self) -> None:
        """Answer `/health`."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"model": "support", "version": "3"}')

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_endpoint_of_a_version_that_two_registries_have_is_no_runs(
    registered_run: Path, tmp_path_factory: pytest.TempPathFactory, url: str
) -> None:
    runs = list_runs(registered_run.parent)
    assert [run.endpoint for run in add_endpoints(runs, [url], pytest.fail)] == [url]
    # Another storage, with a registry of its own.
    other = tmp_path_factory.mktemp("other") / "support"
    atomic_write_json(other / "version.json", {"name": "support", "version": "3"})
    warnings: list[str] = []
    both = add_endpoints([*runs, *list_runs(other.parent)], [url], warnings.append)
    assert [run.endpoint for run in both] == [None, None]
    [warning] = warnings
    assert warning.startswith(f"{url} serves support/3, which is in several registries")
