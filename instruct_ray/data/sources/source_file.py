"""A source file, and the chunks of it that single tasks read."""

import io
from dataclasses import dataclass
from pathlib import PurePosixPath

from instruct_ray.data.sources.filesystems import Location, open_filesystem

BUFFER_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """One file that rows are read from."""

    number: int
    """Index among all files of the run; the first half of a row id."""
    source: int
    """Index of its entry in `data.sources`."""
    uri: str
    """Absolute path, or URI on an object store."""
    format: str
    """Name of its file format, a key of `FILE_FORMATS`."""
    compression: str | None
    """How the file as a whole is compressed, by Arrow's name; None if it is not."""
    size: int
    """Bytes on disk."""

    @property
    def name(self) -> str:
        """The file name without folders."""
        return PurePosixPath(Location.parse(self.uri).path).name


@dataclass(frozen=True)
class Chunk:
    """Part of a file that one task reads."""

    number: int
    """Index among all chunks of the run."""
    file: SourceFile
    start: int
    """First byte, or row group of Parquet; 0 for a file that is read in one chunk."""
    end: int
    """One past the last byte or row group."""


def open_source_file(file: SourceFile) -> io.BufferedReader:
    """Open a file for reading its decompressed bytes."""
    filesystem, path = open_filesystem(file.uri)
    stream = (
        filesystem.open_input_file(path)
        if file.compression is None
        else filesystem.open_input_stream(path, compression=file.compression)
    )
    return io.BufferedReader(stream, BUFFER_BYTES)
