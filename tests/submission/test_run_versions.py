"""The list of runs where a registry does not answer or is not there; tests/serving has one that is."""

from pathlib import Path

import pytest

from instruct_ray.files import atomic_write_json
from instruct_ray.run.summary import list_runs
from instruct_ray.submission.run_versions import add_aliases


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


def test_database_that_is_gone_is_not_made_again(registered_run: Path) -> None:
    [run] = add_aliases(list_runs(registered_run.parent), pytest.fail)
    assert (run.version, run.aliases) == ("support/3", [])
    assert [path.name for path in registered_run.parent.iterdir()] == ["support"]
