"""Shared by the tests of reading: sources -> records, without Ray."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.files import SourceFile, find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record, RowError

GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def config_of(path: Path | str, *, max_row_bytes: int = 8 * 2**20, **source: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"path": str(path), **source}], "max_row_bytes": max_row_bytes})


def files_of(path: Path | str, **options: Any) -> list[SourceFile]:
    return find_source_files(config_of(path, **options).sources, Path("/nowhere"))


def records_of(path: Path | str, **options: Any) -> list[Record]:
    """All records of all chunks."""
    data = config_of(path, **options)
    files = find_source_files(data.sources, Path("/nowhere"))
    return [record for chunk in split_into_chunks(files) for record in read_records(chunk, data)]


def values_of(path: Path | str, **options: Any) -> list[Any]:
    """Records without bad ones, which are their reason."""
    return reasons_for(record.value for record in records_of(path, **options))


def reasons_for(values: Iterable[Any]) -> list[Any]:
    return [value.reason if isinstance(value, RowError) else value for value in values]
