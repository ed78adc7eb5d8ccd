"""Folders and files are written completely or not at all."""

from pathlib import Path

import pytest

from instruct_ray.files import atomic_directory, atomic_write_json, atomic_write_text


def test_directory_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError, match="killed"), atomic_directory(target) as unfinished:
        (unfinished / "file").touch()
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as unfinished:
        (unfinished / "file").touch()
        assert not target.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "file"]


def test_finished_folder_of_a_cache_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("first", "second"):
        with atomic_directory(target, keep_existing=True) as unfinished:
            (unfinished / "file").write_text(content)
    assert (target / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_directory(target) as unfinished:
        (unfinished / "file").write_text("third")
    assert (target / "file").read_text() == "third"


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    atomic_write_text(path, "old")
    with pytest.raises(TypeError):
        atomic_write_json(path, {"not": object()})
    assert path.read_text() == "old"
    atomic_write_json(path, {"é": 1})
    assert path.read_text() == '{\n  "é": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]
