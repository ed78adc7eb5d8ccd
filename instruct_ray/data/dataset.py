"""A prepared folder on disk: what is in it, and its packs by index."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instruct_ray.data.packing import Pack
from instruct_ray.errors import InputError

MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.int32())) for name in ("input_ids", "position_ids", "labels", "subtree_end")),
        ("num_trained", pa.int32()),
        ("num_tokens", pa.int32()),
        ("row_ids", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class PackedDataset:
    """A folder of packs that `prepare` finished."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "PackedDataset":
        """Open a prepared folder.

        Raises:
            InputError: there is none, or it is not complete.
        """
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise InputError(f"{path}: no prepared packs; run `python -m jobs.prepare` with this config first")
        return cls(path, json.loads(manifest.read_text()))

    @property
    def num_packs(self) -> int:
        return int(self.manifest["num_packs"])

    @property
    def num_train(self) -> int:
        """Examples in the packs."""
        return int(self.manifest["num_train"])

    @cached_property
    def _files(self) -> list[pq.ParquetFile]:
        return [pq.ParquetFile(self.path / name, memory_map=True) for name in self.manifest["files"]]

    @cached_property
    def _row_groups(self) -> list[tuple[int, int, int]]:
        """(file, row group, index of its first pack) of every row group."""
        groups, first = [], 0
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                groups.append((number, group, first))
                first += file.metadata.row_group(group).num_rows
        return groups

    @cached_property
    def num_trained(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Trained tokens of each pack; shape (num_packs,)."""
        columns = [file.read(["num_trained"]).column(0).to_numpy() for file in self._files]
        return np.concatenate(columns).astype(np.int64)

    def read(self, index: int) -> Pack:
        """One pack; reads the row group that holds it."""
        file, group, first = max((entry for entry in self._row_groups if entry[2] <= index), key=lambda entry: entry[2])
        table = self._files[file].read_row_group(group).slice(index - first, 1)
        pack: Pack = table.to_pylist()[0]
        return pack
