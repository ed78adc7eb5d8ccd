"""The files of a registered version: which may be in it, their manifest, and the check of a downloaded copy."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError, one_line
from instruct_ray.files import sha256_file

MANIFEST_FILE = "manifest.json"
# Tag of a version: the digest of its manifest.
MANIFEST_TAG = "manifest_digest"
# Pickles and code. Loading them runs what is in them.
FORBIDDEN_SUFFIXES = frozenset(
    {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".py", ".pyc", ".so"}
)  # fmt: skip


class FileRecord(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int


class VersionManifest(BaseModel):
    """The content of `manifest.json`: all files of a version but itself."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, FileRecord]
    """By path inside the version, with `/` between its parts."""

    @property
    def digest(self) -> str:
        """sha256 over the names, sizes and digests of all files."""
        content = [[name, record.sha256, record.size] for name, record in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_manifest(*folders: Path) -> VersionManifest:
    """Hash the files of folders that are uploaded over each other; of files with the same name the last one counts.

    Raises:
        InputError: a folder has a file that no version may have; names it.
    """
    paths = {name: path for folder in folders for name, path in _list_files(folder).items()}
    return VersionManifest(files={name: _record(path) for name, path in sorted(paths.items())})


def check_version_folder(folder: Path, expected_digest: str) -> VersionManifest:
    """Check that a folder has exactly the files of the manifest with this digest; returns the manifest.

    Raises:
        InputError: a file is forbidden, missing, added or changed, or the manifest is not the expected one; names the
            file.
    """
    paths = _list_files(folder)
    if MANIFEST_FILE not in paths:
        raise InputError(f"{MANIFEST_FILE} is missing")
    manifest = parse_manifest(paths.pop(MANIFEST_FILE).read_bytes(), expected_digest)
    if missing := sorted(manifest.files.keys() - paths.keys()):
        raise InputError(f"{missing[0]} is missing")
    if added := sorted(paths.keys() - manifest.files.keys()):
        raise InputError(f"{added[0]} is not in the manifest: it was added after the version was registered")
    for name, record in manifest.files.items():
        check_file(name, paths[name], record)
    return manifest


def check_folder_without_manifest(folder: Path) -> None:
    """Check the files of a version that was registered before there were manifests.

    Raises:
        InputError: a file is forbidden, or the manifest's digest was removed from the version; names the file.
    """
    if MANIFEST_FILE in _list_files(folder):
        raise InputError(f"{MANIFEST_FILE} is there, but the version has no tag {MANIFEST_TAG}: it was removed")


def parse_manifest(content: bytes, expected_digest: str) -> VersionManifest:
    """Read a manifest.

    Raises:
        InputError: it is not one, it names a path outside the version, or it has another digest than expected.
    """
    try:
        manifest = VersionManifest.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{MANIFEST_FILE} is not a manifest: {one_line(error, 100)}") from None
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise InputError(f"{MANIFEST_FILE} names {name}, a path outside the version")
    if manifest.digest != expected_digest:
        raise InputError(
            f"{MANIFEST_FILE} was changed: its digest is {manifest.digest[:12]}, the version's tag {MANIFEST_TAG} is "
            f"{expected_digest[:12]}"
        )
    return manifest


def check_file(name: str, path: Path, record: FileRecord) -> None:
    """Check a file against its record.

    Raises:
        InputError: it was changed.
    """
    actual = _record(path)
    if actual != record:
        raise InputError(
            f"{name} was changed: {actual.size:,} bytes with sha256 {actual.sha256[:12]}, registered with "
            f"{record.size:,} bytes and {record.sha256[:12]}"
        )


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_file(path), size=path.stat().st_size)


def _list_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their relative path.

    Raises:
        InputError: one is a link, no ordinary file, a pickle or code; or a configuration asks for code.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InputError(f"{name} is a symbolic link; a version holds files only")
        if path.is_dir():
            continue
        if not path.is_file():
            raise InputError(f"{name} is not an ordinary file")
        if path.suffix.lower() in FORBIDDEN_SUFFIXES:
            raise InputError(f"{name} is refused: a version holds no {path.suffix} files (pickles or code)")
        if path.name.endswith("config.json"):
            _check_no_code(name, path)
        files[name] = path
    return files


def _check_no_code(name: str, path: Path) -> None:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {one_line(error)}") from None
    if "auto_map" in _keys(values):
        raise InputError(f"{name} is refused: auto_map asks for Python code from the model, which is never run")


def _keys(value: Any) -> Iterator[str]:
    """All keys of a JSON value with something under them, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner:
                yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
