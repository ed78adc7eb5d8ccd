"""Shared by the tests of reading: sources -> records, without Ray."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instruct_ray.config import DataConfig
from instruct_ray.data.reading import readers, sources
from instruct_ray.data.reading.records import Record, RowError
from instruct_ray.data.reading.sources import SourceFile

GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def config_of(path: Path | str, *, max_row_bytes: int = 8 * 2**20, **source: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"path": str(path), **source}], "max_row_bytes": max_row_bytes})


def files_of(path: Path | str, **options: Any) -> list[SourceFile]:
    return sources.find_files(config_of(path, **options).sources, Path("/nowhere"))


def records_of(path: Path | str, **options: Any) -> list[Record]:
    """All records of all chunks."""
    data = config_of(path, **options)
    files = sources.find_files(data.sources, Path("/nowhere"))
    return [record for chunk in sources.chunks(files) for record in readers.read(chunk, data)]


def values_of(path: Path | str, **options: Any) -> list[Any]:
    """Records without bad ones, which are their reason."""
    return reasons_for(record.value for record in records_of(path, **options))


def reasons_for(values: Iterable[Any]) -> list[Any]:
    return [value.reason if isinstance(value, RowError) else value for value in values]
