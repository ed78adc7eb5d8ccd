"""A folder of packs on disk: Parquet files, a manifest, and access to packs by index."""

import bisect
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from instruct_ray.data.packs.tree import Pack
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder

MANIFEST = "manifest.json"
TOKEN_COLUMNS = ("input_ids", "position_ids", "labels", "subtree_end")
SCHEMA = pa.schema(
    [
        *((name, pa.list_(pa.int32())) for name in TOKEN_COLUMNS),
        ("num_trained", pa.int32()),
        ("num_tokens", pa.int32()),
        ("row_ids", pa.list_(pa.string())),
    ]
)
# Parquet is read one row group at a time: about this many bytes of tokens.
ROW_GROUP_BYTES = 2**20
BYTES_PER_POSITION = 4 * len(TOKEN_COLUMNS)


def packs_per_row_group(pack_tokens: int) -> int:
    """Packs in one row group."""
    return max(1, ROW_GROUP_BYTES // (BYTES_PER_POSITION * pack_tokens))


def shard_file(shard: int) -> str:
    """Name of the file with a shard's packs."""
    return f"packs-{shard:06d}.parquet"


def to_table(packs: Sequence[Pack]) -> pa.Table:
    """Convert packs to an Arrow table with the columns of `SCHEMA`."""
    lengths = [len(pack["input_ids"]) for pack in packs]
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    columns: list[pa.Array] = []
    for name in TOKEN_COLUMNS:
        arrays: list[Any] = [pack[name] for pack in packs]  # type: ignore[literal-required]
        flat = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int32())))
    columns.append(pa.array([pack["num_trained"] for pack in packs], pa.int32()))
    columns.append(pa.array([pack["num_tokens"] for pack in packs], pa.int32()))
    columns.append(pa.array([pack["row_ids"] for pack in packs], pa.list_(pa.string())))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Pack]:
    """Convert a table back to packs; the token columns are views of the table's memory."""
    table = table.combine_chunks()
    columns: dict[str, list[Any]] = {}
    for name in SCHEMA.names:
        column = table[name].chunk(0) if table.num_rows else table[name]
        if name in TOKEN_COLUMNS and table.num_rows:
            flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
            columns[name] = [flat[start:stop] for start, stop in itertools.pairwise(offsets)]
        else:
            columns[name] = column.to_pylist()
    return [Pack(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]  # type: ignore[typeddict-item]


def write_packs(path: Path, packs: Sequence[Pack], pack_tokens: int) -> None:
    """Write one file of packs."""
    pq.write_table(to_table(packs), path, row_group_size=packs_per_row_group(pack_tokens), compression="zstd")


@dataclass(frozen=True)
class PackedDataset:
    """A finished folder of packs."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "PackedDataset":
        """Open a prepared folder.

        Raises:
            InputError: it does not exist or is not finished.
        """
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise InputError(f"{path}: no prepared packs; run `instruct-ray prepare` with this config first")
        return cls(path, json.loads(manifest.read_text()))

    @property
    def num_packs(self) -> int:
        """Packs in all files."""
        return int(self.manifest["num_packs"])

    @property
    def num_examples(self) -> int:
        """Examples in the packs: one for each answer of a row and each copy of it."""
        return int(self.manifest["num_examples"])

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Packs in each row group, over all files in order."""
        size = packs_per_row_group(self.manifest["pack_tokens"])
        return tuple(
            min(size, num_packs - start)
            for num_packs in self.manifest["files"].values()
            for start in range(0, num_packs, size)
        )

    @cached_property
    def num_target_tokens(self) -> NDArray[np.int64]:
        """Target tokens of each pack; shape (num_packs,)."""
        columns = [pq.read_table(self.path / name, columns=["num_trained"])[0] for name in self.manifest["files"]]
        return np.concatenate([column.to_numpy() for column in columns]).astype(np.int64)

    def read_group(self, group: int) -> pa.Table:
        """Read a row group by its index over all files."""
        size = packs_per_row_group(self.manifest["pack_tokens"])
        for name, num_packs in self.manifest["files"].items():
            num_groups = -(-num_packs // size)
            if group < num_groups:
                return _open(self.path / name).read_row_group(group)
            group -= num_groups
        raise IndexError(f"{self.path} has no row group {group}")

    def take(self, indices: Iterable[int]) -> list[Pack]:
        """Read packs by index; each row group that holds some of them is read once."""
        starts = [0, *itertools.accumulate(self.row_groups)]
        locations = [(group := bisect.bisect_right(starts, index) - 1, index - starts[group]) for index in indices]
        groups = {group: from_table(self.read_group(group)) for group in sorted({group for group, _ in locations})}
        return [groups[group][offset] for group, offset in locations]

    def sample_evenly(self, num_packs: int) -> list[Pack]:
        """Read at most `num_packs` packs, evenly spread over the data set."""
        indices = np.linspace(0, self.num_packs - 1, min(num_packs, self.num_packs)).astype(int)
        return self.take(indices.tolist())


def find_packs(folder: RunFolder) -> PackedDataset:
    """Open the prepared packs of a run.

    Raises:
        InputError: the run has none yet.
    """
    if finished := finished_pack_dirs(folder):
        return PackedDataset.open(finished[0])
    raise InputError(f"{folder.packs_dir}: no prepared packs; run `instruct-ray prepare` with this config first")


def finished_pack_dirs(folder: RunFolder) -> list[Path]:
    """Find the finished pack folders of a run; the name of an unfinished one starts with a dot."""
    return sorted(manifest.parent for manifest in folder.packs_dir.glob(f"[!.]*/{MANIFEST}"))


@lru_cache(maxsize=64)
def _open(path: Path) -> pq.ParquetFile:
    """Open a file; its footer is parsed once per process, not once per row group."""
    return pq.ParquetFile(path, memory_map=True)
