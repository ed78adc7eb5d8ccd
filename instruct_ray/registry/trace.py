"""Traces versions back to their run, packs, files and rows. Reads the registry alone."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instruct_ray.errors import InputError
from instruct_ray.registry.lineage import LINEAGE_FILE, ROWS_FILE, Lineage, PacksLineage, find_rows
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.registry_reader import ModelVersion


@dataclass(frozen=True)
class RowTrace:
    """What a version has to do with a row."""

    row: str
    """As it was asked for."""
    row_id: str
    """As in the version's ledger."""
    file: str
    outcome: str
    """Of the ledger, see `RowOutcome`; `not read` if the ledger has no such row."""
    copies: int

    @property
    def is_trained(self) -> bool:
        """Whether the version was trained on the row."""
        return self.outcome == "trained"

    @property
    def may_be_trained(self) -> bool:
        """Whether its text may have been trained on: of equal rows one is kept, and that one may be trained on."""
        return self.outcome in ("trained", "duplicate")


@dataclass(frozen=True)
class VersionRowTraces:
    """The rows that were asked for, in one version."""

    version: ModelVersion
    rows: tuple[RowTrace, ...]
    """Without rows that its files don't have."""
    through: str | None
    """The registered version that training started from, if that one was trained on the rows."""
    problem: str | None
    """Why the version can't be traced; None if it can."""

    @property
    def base(self) -> str | None:
        """The base model that the version was trained from; None if instruct_ray did not register it."""
        return self.version.tags.get("base")

    @property
    def is_affected(self) -> bool:
        """Whether the version may know one of the rows."""
        return self.through is not None or any(row.may_be_trained for row in self.rows)


def read_lineage(registry: ModelRegistry, version: ModelVersion) -> Lineage:
    """Read the lineage of a version.

    Raises:
        InputError: the version was registered without one, or it was changed.
    """
    return Lineage.model_validate_json(registry.read_file(version, LINEAGE_FILE))


def trace_rows(registry: ModelRegistry, names: Iterable[str], rows: Sequence[str]) -> list[VersionRowTraces]:
    """Find out which versions of registered models were trained on rows, themselves or through their base version.

    A row is `FILE:POSITION` as in the ledger, where FILE is the file's number, or its name.

    Raises:
        InputError: a row is not of this form.
    """
    parsed = [_parse_row(row) for row in rows]
    traces = [_trace_version(registry, version, parsed) for name in names for version in registry.versions(name)]
    affected = {trace.version.reference for trace in traces if trace.is_affected}
    # A base version may have been trained further more than once.
    while found := {
        trace.version.reference: trace.base
        for trace in traces
        if trace.base in affected and trace.version.reference not in affected
    }:
        affected |= found.keys()
        traces = [replace(trace, through=found.get(trace.version.reference, trace.through)) for trace in traces]
    return traces


def _trace_version(
    registry: ModelRegistry, version: ModelVersion, rows: Sequence[tuple[str, str, int]]
) -> VersionRowTraces:
    try:
        packs = read_lineage(registry, version).packs
        if packs is None:
            raise InputError(f"{version.name}/{version.number}: its packs were removed before it was registered")
        wanted = _to_row_ids(packs, rows)
        found = _find(registry, version, sorted({row_id for _, row_id in wanted}))
    except InputError as error:
        return VersionRowTraces(version, (), through=None, problem=str(error))
    traces = tuple(
        RowTrace(row, row_id, _file_name(packs, row_id), *found.get(row_id, ("not read", 0))) for row, row_id in wanted
    )
    return VersionRowTraces(version, traces, through=None, problem=None)


def _find(registry: ModelRegistry, version: ModelVersion, row_ids: list[str]) -> dict[str, tuple[str, int]]:
    if not row_ids:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ROWS_FILE
        path.write_bytes(registry.read_file(version, ROWS_FILE))
        return find_rows(path, row_ids)


def _parse_row(row: str) -> tuple[str, str, int]:
    """Split a row into itself, its file and its position."""
    file, _, position = row.rpartition(":")
    if not file or not position.isdecimal():
        raise InputError(
            f"{row!r} is not a row; write FILE:POSITION as in the ledger, such as 0:17 or triples.jsonl:17"
        )
    return row, file, int(position)


def _to_row_ids(packs: PacksLineage, rows: Sequence[tuple[str, str, int]]) -> list[tuple[str, str]]:
    """The ids that rows have in the packs, with the rows; those of files that the packs don't have are left out."""
    return [
        (row, f"{number}:{position}")
        for row, file, position in rows
        for number, source in enumerate(packs.sources)
        if file in (str(number), source.name, Path(source.name).name)
    ]


def _file_name(packs: PacksLineage, row_id: str) -> str:
    return packs.sources[int(row_id.partition(":")[0])].name
