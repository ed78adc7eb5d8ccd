"""Data sets in the format of the `datasets` library: folders that it saved, and downloads from its hub."""

import json
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pyarrow.fs import FileInfo, FileType

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.sources.filesystems import Location
from instruct_ray.errors import InputError, one_line
from instruct_ray.files import atomic_directory


def download_from_hub(source: SourceConfig, cache: Path) -> Path:
    """Return the folder in `cache` that holds a hub data set, downloaded on first use.

    Raises:
        InputError: the download fails.
    """
    name = source.path.removeprefix("hub:")
    target = cache / "--".join(quote(part, safe="") for part in (name, source.subset, source.split) if part)
    if not target.is_dir():
        # Heavy, and only for this.
        import datasets  # noqa: PLC0415

        try:
            rows = datasets.load_dataset(name, source.subset, split=source.split, trust_remote_code=False)
        # Its loaders raise exceptions of many kinds; all of them mean that there is no data.
        except Exception as error:
            raise InputError(
                f"data.sources: {source.path} can't be downloaded from the hub: {one_line(error)}"
            ) from error
        with atomic_directory(target, keep_existing=True) as folder:
            rows.save_to_disk(str(folder))
    return target


def list_saved_dataset(location: Location, source: SourceConfig) -> list[FileInfo]:
    """Return the Arrow files of a folder that `datasets` saved; of any other folder, an empty list.

    Raises:
        InputError: the data set lacks the split or a file, or its metadata is broken.
    """
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
        paths = [str(folder / file["filename"]) for file in state["_data_files"]]
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"data.sources: {source.path} is not a data set as `datasets` saves it ({error!r}); save it again"
        ) from None
    infos: list[FileInfo] = location.filesystem.get_file_info(paths)
    for info in infos:
        if info.type != FileType.File:
            raise InputError(f"data.sources: {source.path} lacks its file {info.path}; save it again")
    return infos


def _read_json(location: Location, path: PurePosixPath) -> Any:
    [info] = location.filesystem.get_file_info([str(path)])
    if info.type != FileType.File:
        return None
    with location.filesystem.open_input_stream(str(path)) as stream:
        return json.loads(stream.read())
