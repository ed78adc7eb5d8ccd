"""data.sources -> files, their digests, and chunks of them: what one task reads. Nothing here parses a row."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow.parquet as pq
from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from instruct_ray.config import SourceConfig
from instruct_ray.errors import InputError
from instruct_ray.run import complete_folder

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow"]
KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# What one task reads of a file that can be read in parts: counted from the data, never from the CPUs.
CHUNK_BYTES = 8 * 2**20
HASH_THREADS = 8
# Text shrinks to about this when compressed.
COMPRESSED_SHARE = 0.25


@dataclass(frozen=True)
class SourceFile:
    """One file that rows are read from."""

    number: int
    """Its place among all files of the run: the first half of a row id."""
    source: int
    """Index of the entry of `data.sources` that it belongs to."""
    uri: str
    """Absolute path, or URI on an object store."""
    kind: Kind
    compression: str | None
    size: int
    """Bytes on disk."""

    @property
    def num_text_bytes(self) -> int:
        """Bytes of text inside, estimated where it is compressed."""
        return self.size if self.compression is None and self.kind != "parquet" else int(self.size / COMPRESSED_SHARE)


@dataclass(frozen=True)
class Chunk:
    """A part of a file that one task reads."""

    number: int
    file: SourceFile
    start: int
    """First byte of plain JSONL, first row group of Parquet; 0 where a file is read whole."""
    end: int
    """Past the last one."""


def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path on it.

    Raises:
        InputError: no such file system.
    """
    if "://" not in uri:
        return LocalFileSystem(), uri
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (ArrowException, ValueError, OSError) as error:
        raise InputError(f"data.sources: {uri}: {error}") from None
    return filesystem, path


def find_files(sources: Sequence[SourceConfig], cache: Path) -> list[SourceFile]:
    """All files of all sources, in an order that depends on names alone; hub data sets are fetched into `cache` once.

    Raises:
        InputError: a source is missing, empty, unreadable or of an unknown kind; names it.
    """
    files: list[SourceFile] = []
    for index, source in enumerate(sources):
        try:
            found = list(_files_of(source, cache))
        except OSError as error:
            raise InputError(f"data.sources: {source.path}: {error.strerror or error}") from None
        if not any(info.size for _, info in found):
            raise InputError(f"data.sources: {source.path} is empty")
        for uri, info in found:
            if info.size:
                kind, compression = _kind(uri)
                files.append(SourceFile(len(files), index, uri, kind, compression, info.size))
    return files


def digests(files: Sequence[SourceFile]) -> list[str]:
    """sha256 of each file's bytes, read by a few threads."""
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(_digest, files))


def chunks(files: Sequence[SourceFile]) -> list[Chunk]:
    """Cut files that can be read in parts.

    Raises:
        InputError: a Parquet file can't be opened.
    """
    ranges = [(file, start, end) for file in files for start, end in _ranges(file)]
    return [Chunk(number, file, start, end) for number, (file, start, end) in enumerate(ranges)]


def _files_of(source: SourceConfig, cache: Path) -> Iterator[tuple[str, FileInfo]]:
    """(path or URI, what the file system says of it) of every file of a source."""
    uri = str(_from_hub(source, cache)) if source.path.startswith("hub:") else source.path
    filesystem, path = open_filesystem(uri)
    prefix = uri.removesuffix(path)
    if any(sign in path for sign in "*?["):
        parts = PurePosixPath(path).parts
        first = next(number for number, part in enumerate(parts) if any(sign in part for sign in "*?["))
        folder = str(PurePosixPath(*parts[:first]))
        matching = [info for info in _walk(filesystem, folder) if fnmatch(info.path, path)]
        if not matching:
            raise InputError(f"data.sources: nothing matches {uri}")
        yield from ((prefix + info.path, info) for info in matching)
        return
    [info] = filesystem.get_file_info([path])
    if info.type == FileType.NotFound:
        raise InputError(f"data.sources: no file {uri}")
    if info.type == FileType.File:
        _kind(uri)
        yield uri, info
        return
    saved = _saved_dataset(Path(path), source.split) if isinstance(filesystem, LocalFileSystem) else None
    inside = saved or [info for info in _walk(filesystem, path) if _known(info.path)]
    if not inside:
        raise InputError(f"data.sources: no {', '.join(KINDS)} file in folder {uri}")
    yield from ((prefix + info.path, info) for info in inside)


def _walk(filesystem: FileSystem, folder: str) -> list[FileInfo]:
    """All files below a folder by name, without hidden ones."""
    infos = filesystem.get_file_info(FileSelector(folder, recursive=True))
    hidden = re.compile(r"(^|/)[._]")
    files = [i for i in infos if i.type == FileType.File and not hidden.search(i.path.removeprefix(folder))]
    return sorted(files, key=lambda info: info.path)


def _saved_dataset(folder: Path, split: str) -> list[FileInfo]:
    """The Arrow files of a folder that `datasets` saved; none if it is not one."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if split not in splits:
            raise InputError(f"data.sources: {folder} has no split {split}; it has {', '.join(splits)}")
        folder = folder / split
    if not (folder / "state.json").is_file():
        return []
    names = [file["filename"] for file in json.loads((folder / "state.json").read_text())["_data_files"]]
    found: list[FileInfo] = LocalFileSystem().get_file_info([str(folder / name) for name in names])
    return found


def _from_hub(source: SourceConfig, cache: Path) -> Path:
    name = source.path.removeprefix("hub:")
    target = cache / "--".join(part for part in (*name.split("/"), source.subset, source.split) if part)
    if not target.is_dir():
        # Heavy, and only for this.
        import datasets  # noqa: PLC0415

        try:
            rows = datasets.load_dataset(name, source.subset, split=source.split)
        # Its loaders fail in many ways of their own; all of them mean that there is no data to read.
        except Exception as error:
            raise InputError(f"data.sources: {source.path} did not come from the hub: {error}") from error
        with complete_folder(target) as folder:
            rows.save_to_disk(str(folder))
    return target


def _known(path: str) -> bool:
    suffixes = PurePosixPath(path).suffixes
    return bool(suffixes) and (suffixes[-1] in KINDS or (suffixes[-1] in COMPRESSIONS and suffixes[-2:-1] != []))


def _kind(uri: str) -> tuple[Kind, str | None]:
    """(kind, compression) by the file's name."""
    name = PurePosixPath(uri)
    compression = COMPRESSIONS.get(name.suffix)
    suffix = name.suffix if compression is None else PurePosixPath(name.stem).suffix
    if suffix == ".arrow":
        return "arrow", None
    if suffix not in KINDS or (suffix == ".parquet" and compression):
        raise InputError(
            f"data.sources: {uri} is none of {', '.join(KINDS)} (each but the last also {', '.join(COMPRESSIONS)})"
        )
    return KINDS[suffix], compression


def _digest(file: SourceFile) -> str:
    filesystem, path = open_filesystem(file.uri)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _ranges(file: SourceFile) -> Iterator[tuple[int, int]]:
    if file.kind == "jsonl" and file.compression is None:
        for start in range(0, file.size, CHUNK_BYTES):
            yield start, min(start + CHUNK_BYTES, file.size)
    elif file.kind == "parquet":
        yield from _row_group_ranges(file)
    else:
        yield 0, file.size


def _row_group_ranges(file: SourceFile) -> Iterator[tuple[int, int]]:
    filesystem, path = open_filesystem(file.uri)
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem)
    except (ArrowException, OSError) as error:
        raise InputError(f"data.sources: {file.uri} is not readable as Parquet: {error}") from None
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= CHUNK_BYTES or group + 1 == metadata.num_row_groups:
            yield start, group + 1
            start, size = group + 1, 0
