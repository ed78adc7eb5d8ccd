"""Paths and URIs -> files on disk or on an object store: single ones, those in a folder, and matches of a glob."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from instruct_ray.errors import InputError, one_line

SCHEMES = ("s3", "gs", "gcs", "hdfs", "file")
# SCHEME://AUTHORITY/PATH?QUERY; the authority is the bucket of an object store.
URI = re.compile(r"(?P<scheme>\w+)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=[^&]*(?:&\w+=[^&]*)*)?")
HIDDEN = re.compile(r"(^|/)[._]")


@dataclass(frozen=True)
class Location:
    """A path on a file system."""

    filesystem: FileSystem
    path: str
    prefix: str = ""
    """Precedes paths in URIs, such as `s3://`; empty for local paths."""
    query: str = ""
    """Follows paths in URIs, such as `?region=…`."""

    @classmethod
    def parse(cls, uri: str) -> "Location":
        """Parse a path or URI. URIs are not percent-encoded: a blank is a blank, not %20.

        Raises:
            InputError: the scheme is unknown, or the URI is not complete, holds a password or can't be connected to.
        """
        if "://" not in uri:
            return cls(LocalFileSystem(), uri)
        match = URI.fullmatch(uri)
        if match is None or match["scheme"] not in SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise InputError(f"data.sources: {uri} is neither a path nor a URI that starts with one of {schemes}")
        scheme, authority, path, query = match.group("scheme", "authority", "path", "query")
        if ":" in authority.rpartition("@")[0]:
            raise InputError(
                f"data.sources: {scheme}://…@{authority.rpartition('@')[2]}{path} contains a password, which the run "
                "would store; pass it in the environment (AWS_ACCESS_KEY_ID, …) or use a role"
            )
        if not authority and scheme != "file":
            raise InputError(f"data.sources: {uri} has no bucket")
        try:
            filesystem, root = _connect(f"{scheme}://{quote(authority, safe='@:')}/{query or ''}")
        except (ArrowException, ValueError, OSError) as error:
            raise InputError(f"data.sources: {uri} can't be opened: {one_line(error)}") from None
        full_path = str(PurePosixPath(root) / path.strip("/"))
        return cls(filesystem, full_path, f"{scheme}://{authority}/".removesuffix(f"{root.rstrip('/')}/"), query or "")

    def uri(self, path: str) -> str:
        """Return the URI of another path on the same file system."""
        return f"{self.prefix}{path}{self.query}"

    def info(self) -> FileInfo:
        """Return type and size of what is at the path; the type is `NotFound` if there is nothing."""
        [info] = self.filesystem.get_file_info([self.path])
        return info

    def glob(self) -> list[FileInfo]:
        """Return the files that match the path as a glob, sorted by path."""
        folder = fixed_folder(self.path)
        patterns = PurePosixPath(self.path).relative_to(folder).parts
        [info] = self.filesystem.get_file_info([folder])
        if info.type != FileType.Directory:
            return []
        files = _list_folder(self.filesystem, folder, recursive=len(patterns) > 1 or "**" in patterns)
        return [info for name, info in files if _matches(PurePosixPath(name).parts, patterns)]

    def list_recursive(self) -> list[FileInfo]:
        """Return all files in the folder and its subfolders, sorted by path."""
        return [info for _, info in _list_folder(self.filesystem, self.path, recursive=True)]


def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """Return (file system, path on it) of a path or URI."""
    location = Location.parse(uri)
    return location.filesystem, location.path


def is_glob(path: str) -> bool:
    """Whether a path contains a wildcard."""
    return any(wildcard in path for wildcard in "*?[")


def fixed_folder(pattern: str) -> str:
    """Return the part of a glob before its first wildcard, as a folder."""
    parts = PurePosixPath(pattern).parts
    num_fixed = next(number for number, part in enumerate(parts) if is_glob(part))
    return str(PurePosixPath(*parts[:num_fixed]))


@lru_cache(maxsize=64)
def _connect(root: str) -> tuple[FileSystem, str]:
    """Open a file system; all files of a bucket share one connection."""
    filesystem, path = FileSystem.from_uri(root)
    return filesystem, path


def _list_folder(filesystem: FileSystem, folder: str, *, recursive: bool) -> Iterator[tuple[str, FileInfo]]:
    """Yield (path relative to the folder, info) of its files, sorted by path, without hidden ones."""
    infos = filesystem.get_file_info(FileSelector(folder, recursive=recursive))
    for info in sorted(infos, key=lambda info: str(info.path)):
        name = info.path.removeprefix(folder).lstrip("/")
        if info.type == FileType.File and not HIDDEN.search(name):
            yield name, info


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob, in which `**` matches any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
