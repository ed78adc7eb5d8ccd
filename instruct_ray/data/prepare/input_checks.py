"""Checks that the sources have usable rows, and not too many quarantined ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from instruct_ray.config.data import DataConfig
from instruct_ray.data.row_id import format_row_id, parse_row_id
from instruct_ray.data.sources.readers import read_records, row_number
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.errors import InputError

# Quarantined rows after which the search for usable rows ends.
MAX_FIRST_ROWS = 20_000
# At least one row to train on and one to hold out.
MIN_USABLE_ROWS = 2
MAX_NAMED_ROWS = 3
MAX_NAMED_REASONS = 3


@dataclass
class QuarantineSummary:
    """Quarantined rows by reason, and the first of them."""

    reasons: Counter[str] = field(default_factory=Counter)
    first_rows: list[tuple[str, str]] = field(default_factory=list)
    """(row id, description of the problem) of at most `MAX_NAMED_ROWS` rows."""

    def add(self, row_id: str, error: RowError) -> None:
        """Count a row."""
        self.reasons[error.reason] += 1
        if len(self.first_rows) < MAX_NAMED_ROWS:
            self.first_rows.append((row_id, error.detail))

    def merge(self, later: "QuarantineSummary") -> None:
        """Add the rows of a later part of the sources."""
        self.reasons.update(later.reasons)
        self.first_rows = (self.first_rows + later.first_rows)[:MAX_NAMED_ROWS]


def check_first_rows(files: Sequence[SourceFile], chunks: Sequence[Chunk], data: DataConfig) -> None:
    """Check that the sources have two usable rows; reads no further than that, so it is quick before Ray starts.

    Raises:
        InputError: there are fewer; describes the first quarantined rows.
    """
    quarantined = QuarantineSummary()
    num_usable = 0
    for chunk in chunks:
        for record in read_records(chunk, data):
            row_id = format_row_id(chunk.file.number, record.position)
            try:
                parse_row(record.value, row_id, data.sources[chunk.file.source])
                num_usable += 1
            except RowError as error:
                quarantined.add(row_id, error)
            if num_usable == MIN_USABLE_ROWS or quarantined.reasons.total() == MAX_FIRST_ROWS:
                return
    num_read = num_usable + quarantined.reasons.total()
    check_quarantined_rows(files, data, quarantined, num_read)
    raise InputError(
        f"data.sources: {num_usable} of {num_read} rows of {_name_files(files)} can be used; two are needed, one to "
        "train on and one to hold out"
    )


def check_quarantined_rows(
    files: Sequence[SourceFile], data: DataConfig, quarantined: QuarantineSummary, num_read: int
) -> None:
    """Check that there are rows, and that no more than `data.max_bad_fraction` of them are quarantined.

    Raises:
        InputError: counts the most frequent reasons and describes the first quarantined rows.
    """
    if num_read == 0:
        raise InputError(f"data.sources: no rows in {_name_files(files)}")
    num_quarantined = quarantined.reasons.total()
    if num_quarantined > data.max_bad_fraction * num_read:
        reasons = ", ".join(f"{reason} {count}" for reason, count in quarantined.reasons.most_common(MAX_NAMED_REASONS))
        raise InputError(
            f"data: {num_quarantined} of {num_read} rows can't be used, more than "
            f"data.max_bad_fraction={data.max_bad_fraction} allows ({reasons}); "
            + "; ".join(_describe_row(files, row_id, detail) for row_id, detail in quarantined.first_rows)
        )


def _describe_row(files: Sequence[SourceFile], row_id: str, detail: str) -> str:
    file_number, position = parse_row_id(row_id)
    file = files[file_number]
    return f"{file.uri}: row {row_number(file, position)} {detail}"


def _name_files(files: Sequence[SourceFile]) -> str:
    num_more = len(files) - MAX_NAMED_ROWS
    names = ", ".join(file.uri for file in files[:MAX_NAMED_ROWS])
    return f"{names} and {num_more} more files" if num_more > 0 else names
