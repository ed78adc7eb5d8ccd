"""data.sources -> files, their digests, and chunks of them: what one task reads. Nothing here parses a row."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileType

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.sources.filesystems import Location, is_glob, open_filesystem
from instruct_ray.data.sources.safe_arrow import parquet_metadata
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow"]
FILE_FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
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
    kind: FileFormat
    compression: str | None
    size: int
    """Bytes on disk."""

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(Location.parse(self.uri).path).name

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


def find_source_files(sources: Sequence[SourceConfig], cache: Path) -> list[SourceFile]:
    """All files of all sources, in an order that depends on names alone; hub data sets are fetched into `cache` once.

    Raises:
        InputError: a source is missing, empty, unreadable or of an unknown kind; names it.
    """
    files: list[SourceFile] = []
    for index, source in enumerate(sources):
        try:
            found = list(_files_of(source, cache))
        except (OSError, ArrowException) as error:
            raise InputError(f"data.sources: {source.path}: {_reason(error)}") from None
        if not any(info.size for _, info in found):
            raise InputError(f"data.sources: {source.path} is empty")
        for uri, info in found:
            if info.size:
                kind, compression = _kind(uri, info.path)
                files.append(SourceFile(len(files), index, uri, kind, compression, info.size))
    return files


def file_digests(files: Sequence[SourceFile]) -> list[str]:
    """sha256 of each file's bytes, read by a few threads.

    Raises:
        InputError: a file can't be read; names it.
    """
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(_digest, files))


def split_into_chunks(files: Sequence[SourceFile]) -> list[Chunk]:
    """Cut files that can be read in parts.

    Raises:
        InputError: a Parquet file can't be opened.
    """
    ranges = [(file, start, end) for file in files for start, end in _ranges(file)]
    return [Chunk(number, file, start, end) for number, (file, start, end) in enumerate(ranges)]


def _files_of(source: SourceConfig, cache: Path) -> Iterator[tuple[str, FileInfo]]:
    """(path or URI, what the file system says of it) of every file of a source."""
    location = Location.parse(str(_from_hub(source, cache)) if source.path.startswith("hub:") else source.path)
    info = location.info()
    if info.type == FileType.File:
        found = [info]
    elif info.type == FileType.Directory:
        found = _saved_dataset(location, source) or [i for i in location.below() if _is_known(i.path)]
        if not found:
            raise InputError(f"data.sources: no {', '.join(FILE_FORMATS)} file in folder {source.path}")
    elif is_glob(location.path):
        found = location.matching()
        if not found:
            raise InputError(f"data.sources: no file matches {source.path} (`**` stands for folders in folders)")
    else:
        raise InputError(f"data.sources: no file {source.path}")
    for info in found:
        # Also of those that are empty: an unknown suffix is a mistake either way.
        _kind(location.uri(info.path), info.path)
        yield location.uri(info.path), info


def _saved_dataset(location: Location, source: SourceConfig) -> list[FileInfo]:
    """The Arrow files of a folder that `datasets` saved; none if it is not one."""
    folder = PurePosixPath(location.path)
    try:
        if contents := _read_json(location, folder / "dataset_dict.json"):
            if source.split not in contents["splits"]:
                splits = ", ".join(contents["splits"])
                raise InputError(f"data.sources: {source.path} has no split {source.split}; it has {splits}")
            folder = folder / source.split
        state = _read_json(location, folder / "state.json")
        if not state or "_data_files" not in state:
            return []
        names = [folder / file["filename"] for file in state["_data_files"]]
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"data.sources: {source.path} is no data set as `datasets` saves it ({error!r})") from None
    found: list[FileInfo] = location.filesystem.get_file_info([str(name) for name in names])
    for info in found:
        if info.type != FileType.File:
            raise InputError(f"data.sources: {source.path} lacks its file {info.path}; save it again")
    return found


def _read_json(location: Location, path: PurePosixPath) -> Any:
    [info] = location.filesystem.get_file_info([str(path)])
    if info.type != FileType.File:
        return None
    with location.filesystem.open_input_stream(str(path)) as stream:
        return json.loads(stream.read())


def _from_hub(source: SourceConfig, cache: Path) -> Path:
    """The folder that a hub data set is kept in."""
    name = source.path.removeprefix("hub:")
    target = cache / "--".join(quote(part, safe="") for part in (name, source.subset, source.split) if part)
    if not target.is_dir():
        # Heavy, and only for this.
        import datasets  # noqa: PLC0415

        try:
            rows = datasets.load_dataset(name, source.subset, split=source.split)
        # Its loaders fail in many ways of their own; all of them mean that there is no data to read.
        except Exception as error:
            raise InputError(f"data.sources: {source.path} did not come from the hub: {_reason(error)}") from error
        with atomic_directory(target) as folder:
            rows.save_to_disk(str(folder))
    return target


def _is_known(path: str) -> bool:
    """Whether a file in a folder is meant to be read; what lies beside the data is not."""
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem) if name.suffix in COMPRESSIONS else name).suffix in FILE_FORMATS


def _kind(uri: str, path: str) -> tuple[FileFormat, str | None]:
    """(kind, compression) by the file's name."""
    name = PurePosixPath(path)
    compression = COMPRESSIONS.get(name.suffix)
    suffix = name.suffix if compression is None else PurePosixPath(name.stem).suffix
    if compression and suffix in (".parquet", ".arrow"):
        raise InputError(f"data.sources: {uri}: {suffix} is compressed inside; unpack the {name.suffix} around it")
    if suffix == ".arrow":
        return "arrow", None
    if suffix not in FILE_FORMATS:
        raise InputError(
            f"data.sources: {uri} is none of {', '.join(FILE_FORMATS)} (also with {', '.join(COMPRESSIONS)})"
        )
    return FILE_FORMATS[suffix], compression


def _digest(file: SourceFile) -> str:
    filesystem, path = open_filesystem(file.uri)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"data.sources: {file.uri} can't be read: {_reason(error)}") from None
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
        with filesystem.open_input_file(path) as stream:
            metadata = parquet_metadata(stream)
    except (ArrowException, OSError) as error:
        raise InputError(f"data.sources: {file.uri} is not readable as Parquet: {_reason(error)}") from None
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= CHUNK_BYTES or group + 1 == metadata.num_row_groups:
            yield start, group + 1
            start, size = group + 1, 0


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())
