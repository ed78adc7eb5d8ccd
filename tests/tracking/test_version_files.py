"""The manifest of a version: what is refused, by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.tracking.version_files import (
    MANIFEST_FILE,
    check_folder_without_manifest,
    check_version_folder,
    make_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version as it is downloaded."""
    path = tmp_path / "version"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    (path / "config.json").write_text('{"model_type": "llama", "auto_map": null}')
    (path / "sub" / "extra.json").write_text("{}")
    atomic_write_json(path / MANIFEST_FILE, make_manifest(path).model_dump(mode="json"))
    return path


@pytest.fixture
def digest(folder: Path) -> str:
    files = json.loads((folder / MANIFEST_FILE).read_text())
    assert sorted(files["files"]) == ["config.json", "model.safetensors", "sub/extra.json"]
    (folder / MANIFEST_FILE).rename(folder.parent / MANIFEST_FILE)
    digest = make_manifest(folder).digest
    (folder.parent / MANIFEST_FILE).rename(folder / MANIFEST_FILE)
    return digest


def test_unchanged_version_passes(folder: Path, digest: str) -> None:
    assert check_version_folder(folder, digest).digest == digest


def change_manifest(folder: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    values = json.loads((folder / MANIFEST_FILE).read_text())
    change(values["files"])
    atomic_write_json(folder / MANIFEST_FILE, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "model.safetensors").write_text("weighty"), "model.safetensors was changed: 7 bytes"),
        (lambda path: (path / "model.safetensors").write_text("weightier"), "model.safetensors was changed: 9 bytes"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "sub" / "new.txt").write_text("x"), "sub/new.txt is not in the manifest"),
        (lambda path: (path / MANIFEST_FILE).unlink(), "manifest.json is missing"),
        (lambda path: (path / MANIFEST_FILE).write_text("[]"), "manifest.json is not a manifest"),
        (lambda path: (path / "link.json").symlink_to("config.json"), "link.json is a symbolic link"),
        (lambda path: (path / "links").symlink_to(path / "sub"), "links is a symbolic link"),
        (lambda path: change_manifest(path, lambda files: files.pop("config.json")), "manifest.json was changed"),
        (
            lambda path: change_manifest(path, lambda files: files.update({"../x": files["config.json"]})),
            "manifest.json names ../x, a path outside the version",
        ),
        (
            lambda path: change_manifest(path, lambda files: files.update({"/etc/x": files["config.json"]})),
            "manifest.json names /etc/x, a path outside the version",
        ),
    ],
)
def test_changed_version_is_refused(folder: Path, digest: str, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(InputError) as error:
        check_version_folder(folder, digest)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "state.pkl", "a.pickle", "sub/model.pt", "x.pth", "modeling.py", "Model.BIN", "x.ckpt"],
)
def test_pickle_or_code_is_refused_before_and_after_registering(folder: Path, digest: str, name: str) -> None:
    (folder / name).write_text("x")
    for check in (lambda: make_manifest(folder), lambda: check_version_folder(folder, digest)):
        with pytest.raises(InputError, match=f"{name} is refused"):
            check()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "modeling.Model"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.Tokenizer", None]}}),
    ],
)
def test_configuration_that_asks_for_code_is_refused(folder: Path, name: str, content: dict[str, object]) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name} is refused: auto_map"):
        make_manifest(folder)


def test_folder_without_manifest_is_still_checked(folder: Path) -> None:
    with pytest.raises(InputError, match="the version has no tag manifest_digest: it was removed"):
        check_folder_without_manifest(folder)
    (folder / MANIFEST_FILE).unlink()
    check_folder_without_manifest(folder)
    (folder / "model.pt").write_text("x")
    with pytest.raises(InputError, match=r"model\.pt is refused"):
        check_folder_without_manifest(folder)


def test_later_folder_replaces_files_of_an_earlier_one(folder: Path, tmp_path: Path) -> None:
    added = tmp_path / "added"
    added.mkdir()
    (added / "config.json").write_text("{}")
    manifest = make_manifest(folder, added)
    assert manifest.files["config.json"].size == 2
    # The order of the files does not matter.
    assert make_manifest(folder, added).digest == manifest.digest != make_manifest(folder).digest
