"""Paths and URIs -> files: on disk or on an object store, one by one, in folders, and by globs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from instruct_ray.errors import InputError

# Their URIs are SCHEME://AUTHORITY/PATH; of object stores, the authority is the bucket.
SCHEMES = ("s3", "gs", "gcs", "hdfs", "file")
URI = re.compile(r"(?P<scheme>\w+)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=[^&]*(?:&\w+=[^&]*)*)?")
HIDDEN = re.compile(r"(^|/)[._]")


@dataclass(frozen=True)
class Location:
    """A path on a file system, and how to name its neighbours."""

    filesystem: FileSystem
    path: str
    prefix: str = ""
    """Stands before a path in a URI, `s3://`."""
    query: str = ""
    """Stands behind it, `?region=…`."""

    @classmethod
    def parse(cls, uri: str) -> "Location":
        """Where a path or URI leads. A URI is written as it is: a blank is a blank, not %20.

        Raises:
            InputError: no such file system.
        """
        if "://" not in uri:
            return cls(LocalFileSystem(), uri)
        match = URI.fullmatch(uri)
        if match is None or match["scheme"] not in SCHEMES:
            raise InputError(
                f"data.sources: {uri}: a path or one of {', '.join(f'{name}://' for name in SCHEMES)} is needed"
            )
        scheme, authority, path, query = match.group("scheme", "authority", "path", "query")
        if ":" in authority.rpartition("@")[0]:
            raise InputError(
                f"data.sources: {scheme}://…@{authority.rpartition('@')[2]}{path} holds a password, which the run's "
                "records would show; give it by the environment (AWS_ACCESS_KEY_ID, …) or a role"
            )
        if not authority and scheme != "file":
            raise InputError(f"data.sources: {uri} names no bucket")
        try:
            filesystem, root = _connect(f"{scheme}://{quote(authority, safe='@:')}/{query or ''}")
        except (ArrowException, ValueError, OSError) as error:
            raise InputError(f"data.sources: {uri}: {_one_line(error)}") from None
        whole = str(PurePosixPath(root) / path.strip("/"))
        return cls(filesystem, whole, f"{scheme}://{authority}/".removesuffix(f"{root.rstrip('/')}/"), query or "")

    def uri(self, path: str) -> str:
        """The URI of another path on the same file system."""
        return f"{self.prefix}{path}{self.query}"

    def info(self) -> FileInfo:
        """What the file system says of it."""
        [info] = self.filesystem.get_file_info([self.path])
        return info

    def matching(self) -> list[FileInfo]:
        """The files that the path matches as a glob, by name."""
        parts = PurePosixPath(self.path).parts
        first = next(number for number, part in enumerate(parts) if is_glob(part))
        folder, patterns = str(PurePosixPath(*parts[:first])), parts[first:]
        [info] = self.filesystem.get_file_info([folder])
        if info.type != FileType.Directory:
            return []
        files = _files_in(self.filesystem, folder, recursive=len(patterns) > 1 or "**" in patterns)
        return [info for name, info in files if _matches(PurePosixPath(name).parts, patterns)]

    def below(self) -> list[FileInfo]:
        """All files in the folder and its folders, by name."""
        return [info for _, info in _files_in(self.filesystem, self.path, recursive=True)]


def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path on it."""
    location = Location.parse(uri)
    return location.filesystem, location.path


def is_glob(path: str) -> bool:
    """Whether a path has one of the signs of a glob."""
    return any(sign in path for sign in "*?[")


@lru_cache(maxsize=64)
def _connect(root: str) -> tuple[FileSystem, str]:
    """One connection for all files of a bucket."""
    filesystem, path = FileSystem.from_uri(root)
    return filesystem, path


def _files_in(filesystem: FileSystem, folder: str, *, recursive: bool) -> Iterator[tuple[str, FileInfo]]:
    """(path below the folder, what the file system says) of its files, by name, without hidden ones."""
    infos = filesystem.get_file_info(FileSelector(folder, recursive=recursive))
    for info in sorted(infos, key=lambda info: str(info.path)):
        name = info.path.removeprefix(folder).lstrip("/")
        if info.type == FileType.File and not HIDDEN.search(name):
            yield name, info


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a path's parts match a glob's, in which `**` stands for any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
