"""data.sources -> files, their digests, and the chunks that tasks read. Nothing here parses a row."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileType

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.sources.file_formats import FILE_FORMATS, FOLDER_SUFFIXES, is_found_in_folders, match_format
from instruct_ray.data.sources.filesystems import Location, is_glob, open_filesystem
from instruct_ray.data.sources.saved_datasets import download_from_hub, list_saved_dataset
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.errors import InputError, one_line

# Size of a chunk. Independent of the number of CPUs, so that every machine makes the same chunks.
CHUNK_BYTES = 8 * 2**20
HASH_THREADS = 8
HASH_BUFFER_BYTES = 2**20


def find_source_files(sources: Sequence[SourceConfig], cache: Path) -> list[SourceFile]:
    """Find the files of all sources, in an order that depends on their names only.

    Hub data sets are downloaded into `cache` on first use.

    Raises:
        InputError: a source is missing, empty, unreadable or of an unknown format; names it.
    """
    files: list[SourceFile] = []
    for index, source in enumerate(sources):
        try:
            location = _locate(source, cache)
            infos = _list_files(location, source)
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
    return files


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


def _list_files(location: Location, source: SourceConfig) -> list[FileInfo]:
    """List the files of a source: itself, those in a folder, or the matches of a glob."""
    info = location.info()
    if info.type == FileType.File:
        return [info]
    if info.type == FileType.Directory:
        infos = list_saved_dataset(location, source) or [
            info for info in location.list_recursive() if is_found_in_folders(info.path)
        ]
        if not infos:
            raise InputError(f"data.sources: no {', '.join(FOLDER_SUFFIXES)} file in folder {source.path}")
        return infos
    if is_glob(location.path):
        infos = location.glob()
        if not infos:
            raise InputError(f"data.sources: no file matches {source.path} (`**` matches any number of folders)")
        return infos
    raise InputError(f"data.sources: no file {source.path}")


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
