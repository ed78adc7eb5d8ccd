"""data.sources -> files, their digests, and the chunks that tasks read. Nothing here parses a row."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileType

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.sources.file_formats import (
    FILE_FORMATS,
    FOLDER_SUFFIXES,
    format_suffixes,
    is_found_in_folders,
    is_metadata,
    match_format,
)
from instruct_ray.data.sources.filesystems import Location, fixed_folder, is_glob, open_filesystem
from instruct_ray.data.sources.saved_datasets import download_from_hub, list_saved_dataset
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.data.sources.split_names import choose_split, find_split, normalize_split
from instruct_ray.errors import InputError, one_line

# Size of a chunk. Independent of the number of CPUs, so that every machine makes the same chunks.
CHUNK_BYTES = 8 * 2**20
HASH_THREADS = 8
HASH_BUFFER_BYTES = 2**20
# Files that a line about what is not read names one by one.
MAX_NAMED_FILES = 6


@dataclass(frozen=True)
class SourceListing:
    """The files of all sources."""

    files: list[SourceFile]
    """In an order that depends on their names only."""
    passed_over: list[str]
    """Names of other files in the folders of the sources that are not read, each with the reason."""

    def describe_passed_over(self) -> str:
        """Name the files that are not read, in one line."""
        named = self.passed_over[:MAX_NAMED_FILES]
        num_more = len(self.passed_over) - len(named)
        return ", ".join(named) + (f" and {num_more} more" if num_more else "")


def find_source_files(sources: Sequence[SourceConfig], cache: Path) -> list[SourceFile]:
    """Find the files of all sources; see `list_sources`."""
    return list_sources(sources, cache).files


def list_sources(sources: Sequence[SourceConfig], cache: Path) -> SourceListing:
    """Find the files of all sources, and what lies beside them.

    Hub data sets are downloaded into `cache` on first use.

    Raises:
        InputError: a source is missing, empty, unreadable, of an unknown format, or has no files of its `split`; names
            it.
    """
    files: list[SourceFile] = []
    passed_over: list[str] = []
    for index, source in enumerate(sources):
        try:
            location = _locate(source, cache)
            infos = _list_files(location, source, passed_over)
        except (OSError, ArrowException) as error:
            raise InputError(f"data.sources: {source.path} can't be read: {one_line(error)}") from None
        # Empty files are skipped, but a suffix that is unknown is an error even then.
        formats = [match_format(location.uri(info.path), info.path) for info in infos]
        if not any(info.size for info in infos):
            raise InputError(f"data.sources: {source.path} is empty")
        for info, (file_format, compression) in zip(infos, formats, strict=True):
            if info.size:
                uri = location.uri(info.path)
                files.append(SourceFile(len(files), index, uri, file_format.name, compression, info.size))
    return SourceListing(files, passed_over)


def file_digests(files: Sequence[SourceFile]) -> list[str]:
    """Compute the sha256 of each file, in hexadecimal, with a few threads.

    Raises:
        InputError: a file can't be read; names it.
    """
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(_compute_digest, files))


def split_into_chunks(files: Sequence[SourceFile]) -> list[Chunk]:
    """Split files into chunks, each for one task.

    Raises:
        InputError: a file can't be opened; names it.
    """
    ranges = [(file, start, end) for file in files for start, end in FILE_FORMATS[file.format].split(file, CHUNK_BYTES)]
    return [Chunk(number, file, start, end) for number, (file, start, end) in enumerate(ranges)]


def estimate_text_bytes(files: Sequence[SourceFile]) -> int:
    """Return the number of bytes of text in all files; an estimate if some are compressed."""
    return sum(FILE_FORMATS[file.format].estimate_text_bytes(file) for file in files)


def _locate(source: SourceConfig, cache: Path) -> Location:
    is_on_hub = source.path.startswith("hub:")
    return Location.parse(str(download_from_hub(source, cache)) if is_on_hub else source.path)


def _list_files(location: Location, source: SourceConfig, passed_over: list[str]) -> list[FileInfo]:
    """List the files of a source: itself, those in a folder, or the matches of a glob.

    The others in a folder, and those of another split, are added to `passed_over`.
    """
    info = location.info()
    if info.type == FileType.File:
        return [info]
    if info.type == FileType.Directory:
        if saved := list_saved_dataset(location, source):
            return saved
        infos = _select_data_files(location.list_recursive(), is_found_in_folders, passed_over)
        if not infos:
            raise InputError(f"data.sources: no {', '.join(FOLDER_SUFFIXES)} file in folder {source.path}")
        return _select_split(infos, location.path, source, passed_over)
    if is_glob(location.path):
        infos = _select_data_files(location.glob(), lambda path: not is_metadata(path), passed_over)
        if not infos:
            raise InputError(f"data.sources: no file matches {source.path} (`**` matches any number of folders)")
        return _select_split(infos, fixed_folder(location.path), source, passed_over)
    raise InputError(f"data.sources: no file {source.path}")


def _select_data_files(
    infos: Iterable[FileInfo], is_data_file: Callable[[str], bool], passed_over: list[str]
) -> list[FileInfo]:
    selected: list[FileInfo] = []
    for info in infos:
        if is_data_file(info.path):
            selected.append(info)
        else:
            passed_over.append(f"{info.base_name} (not a data file)")
    return selected


def _select_split(
    infos: Sequence[FileInfo], folder: str, source: SourceConfig, passed_over: list[str]
) -> list[FileInfo]:
    """Select the files of the source's split, so that test rows beside training rows are not trained on."""
    splits = [find_split(info.path.removeprefix(folder).lstrip("/"), format_suffixes(info.path)) for info in infos]
    requested = normalize_split(source.split)
    try:
        chosen = choose_split(splits, requested)
    except LookupError:
        names = ", ".join(sorted({split for split in splits if split is not None})) or "none"
        raise InputError(
            f"data.sources: {source.path} has no files of split {source.split}; its splits are, by name, {names}; set "
            "the source's `split`, or name its files"
        ) from None
    passed_over += [
        f"{info.base_name} (split {split or 'unnamed'}, not {requested})"
        for info, split in zip(infos, splits, strict=True)
        if split not in chosen
    ]
    return [info for info, split in zip(infos, splits, strict=True) if split in chosen]


def _compute_digest(file: SourceFile) -> str:
    filesystem, path = open_filesystem(file.uri)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            while block := stream.read(HASH_BUFFER_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"data.sources: {file.uri} can't be read: {one_line(error)}") from None
    return digest.hexdigest()
