"""The table of file formats.

To add a format, write its reader in a module beside this one and add an entry to `_FORMATS`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from instruct_ray.data.sources.csv_reader import read_csv, read_tsv
from instruct_ray.data.sources.json_reader import read_json_array
from instruct_ray.data.sources.jsonl_reader import read_jsonl, split_jsonl
from instruct_ray.data.sources.records import ReadOptions, Record
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.data.sources.table_reader import read_arrow, read_parquet, split_row_groups
from instruct_ray.errors import InputError

# Suffix of a compressed file -> Arrow's name of the compression.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Compressed size of text, as a fraction of its size.
COMPRESSION_RATIO = 0.25


def _keep_whole(file: SourceFile, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield one chunk, for a format that can't be read in parts."""
    yield 0, file.size


@dataclass(frozen=True)
class FileFormat:
    """How files of one format are found, split and read."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Chunk, ReadOptions], Iterator[Record]]
    """Yields the records of a chunk. A row that can't be read is a record with a `RowError`."""
    split: Callable[[SourceFile, int], Iterable[tuple[int, int]]] = _keep_whole
    """Yields the (start, end) of chunks of about this many bytes, in units that `read` understands."""
    found_in_folders: bool = True
    """Whether a folder is searched for such files; otherwise they must be named."""
    has_byte_positions: bool = False
    """Whether the position of a record is a byte offset in the decompressed text; otherwise a row or line number."""
    may_be_compressed: bool = True
    """Whether a file may be compressed as a whole (`COMPRESSIONS`)."""
    is_compressed_inside: bool = False
    """Whether the format compresses what it holds, so that its text is larger than the file."""

    def estimate_text_bytes(self, file: SourceFile) -> int:
        """Return the number of bytes of text in a file; an estimate if it is compressed."""
        is_compressed = self.is_compressed_inside or file.compression is not None
        return int(file.size / COMPRESSION_RATIO) if is_compressed else file.size


_FORMATS = (
    FileFormat("jsonl", (".jsonl", ".ndjson"), read_jsonl, split_jsonl, has_byte_positions=True),
    FileFormat("json", (".json",), read_json_array),
    FileFormat("csv", (".csv",), read_csv),
    FileFormat(
        "parquet", (".parquet",), read_parquet, split_row_groups, may_be_compressed=False, is_compressed_inside=True
    ),
    FileFormat("tsv", (".tsv",), read_tsv),
    # Written by `datasets`, whose folders list their own files.
    FileFormat("arrow", (".arrow",), read_arrow, may_be_compressed=False, found_in_folders=False),
)
FILE_FORMATS = {file_format.name: file_format for file_format in _FORMATS}
_BY_SUFFIX = {suffix: file_format for file_format in _FORMATS for suffix in file_format.suffixes}
# Written by `datasets` and the hub beside the data: JSON, but no rows.
METADATA_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
# Suffixes of the files that a folder is searched for.
FOLDER_SUFFIXES = tuple(suffix for suffix, file_format in _BY_SUFFIX.items() if file_format.found_in_folders)


def is_found_in_folders(path: str) -> bool:
    """Whether a file in a folder has rows; other files beside the data are passed over."""
    return _split_suffix(path)[0] in FOLDER_SUFFIXES and not is_metadata(path)


def is_metadata(path: str) -> bool:
    """Whether a file describes a data set and has no rows."""
    return PurePosixPath(path).name in METADATA_FILES


def format_suffixes(path: str) -> str:
    """Return the suffixes of a file name that tell its format: `.jsonl` or `.jsonl.gz`."""
    suffix, compression_suffix = _split_suffix(path)
    return suffix + (compression_suffix or "")


def match_format(uri: str, path: str) -> tuple[FileFormat, str | None]:
    """Return (file format, compression) by the suffix of a file name.

    Args:
        uri: the file's name in messages.
        path: its path on its file system.

    Raises:
        InputError: the suffix is unknown, or the format can't be compressed as a whole.
    """
    suffix, compression_suffix = _split_suffix(path)
    if suffix not in _BY_SUFFIX:
        raise InputError(
            f"data.sources: {uri} has an unknown suffix; known are {', '.join(FOLDER_SUFFIXES)} "
            f"(also with {', '.join(COMPRESSIONS)})"
        )
    file_format = _BY_SUFFIX[suffix]
    if compression_suffix and not file_format.may_be_compressed:
        raise InputError(f"data.sources: {uri}: {suffix} can't be read from {compression_suffix}; decompress the file")
    return file_format, COMPRESSIONS[compression_suffix] if compression_suffix else None


def _split_suffix(path: str) -> tuple[str, str | None]:
    """Return (suffix of the format, suffix of the compression), in lower case."""
    name = PurePosixPath(path.lower())
    if name.suffix not in COMPRESSIONS:
        return name.suffix, None
    return PurePosixPath(name.stem).suffix, name.suffix
