"""Shared by the tests of sources: reads all records of a path, without Ray."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.files import find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.source_file import SourceFile

GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def make_data_config(path: Path | str, *, max_row_bytes: int = 8 * 2**20, **source: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"path": str(path), **source}], "max_row_bytes": max_row_bytes})


def find_files(path: Path | str, **options: Any) -> list[SourceFile]:
    return find_source_files(make_data_config(path, **options).sources, Path("/nowhere"))


def read_all_records(path: Path | str, **options: Any) -> list[Record]:
    """Read all records of all chunks."""
    data = make_data_config(path, **options)
    files = find_source_files(data.sources, Path("/nowhere"))
    return [record for chunk in split_into_chunks(files) for record in read_records(chunk, data)]


def read_all_values(path: Path | str, **options: Any) -> list[Any]:
    """Read the values of all records; an error is replaced by its reason."""
    return replace_errors(record.value for record in read_all_records(path, **options))


def replace_errors(values: Iterable[Any]) -> list[Any]:
    """Replace each `RowError` by its reason."""
    return [value.reason if isinstance(value, RowError) else value for value in values]
