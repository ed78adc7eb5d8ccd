"""The digest of a model folder follows its content, whatever the folder or a cache says."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from instruct_ray.base_model import digest
from instruct_ray.base_model.digest import folder_digest
from instruct_ray.files import sha256_file

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(digest.CACHE_ENV, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, base_folder: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def count_hashed_files(folder: Path) -> int:
    with patch.object(digest, "sha256_file", side_effect=sha256_file) as hashed:
        folder_digest(folder)
    return hashed.call_count


def test_digest_inside_the_folder_is_not_believed(folder: Path) -> None:
    expected = folder_digest(folder)
    (folder / "digest.json").write_text(json.dumps({"digest": "a" * 64}))
    assert folder_digest(folder) == expected
    flip_last_byte(folder / "model.safetensors")
    assert folder_digest(folder) != expected


def test_unchanged_files_are_read_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SETTLED_SECONDS", -1.0)
    assert count_hashed_files(folder) > 1
    assert count_hashed_files(folder) == 0
    assert not list(folder.glob("*digest*"))
    [cached] = cache.rglob("*.json")
    cached.write_text("[")
    assert count_hashed_files(folder) > 1


def test_change_that_keeps_size_and_modification_time_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `rsync -t` or `cp -p` of weights that were trained further."""
    monkeypatch.setattr(digest, "SETTLED_SECONDS", -1.0)
    weights = folder / "model.safetensors"
    os.utime(weights, (LONG_AGO, LONG_AGO))
    before = folder_digest(folder)
    flip_last_byte(weights)
    os.utime(weights, (LONG_AGO, LONG_AGO))
    assert folder_digest(folder) != before


def test_files_that_were_just_written_are_not_cached(folder: Path, cache: Path) -> None:
    (folder / "config.json").touch()
    folder_digest(folder)
    assert not cache.exists()


def test_cache_that_cannot_be_written_is_no_error(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SETTLED_SECONDS", -1.0)
    cache.write_text("a file where the folder would be")
    assert folder_digest(folder) == folder_digest(folder)
