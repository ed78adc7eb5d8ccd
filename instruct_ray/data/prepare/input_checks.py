"""Whether the sources hold rows to work with; of small ones, that is said before Ray starts."""

from collections import Counter
from collections.abc import Sequence

from instruct_ray.config.data import DataConfig
from instruct_ray.data.ledger import check_bad_fraction
from instruct_ray.data.sources.files import Chunk, SourceFile
from instruct_ray.data.sources.readers import read_records, row_number
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.errors import InputError

# Rows looked at in search of two that can be used: one to train on, one to hold out.
MAX_FIRST_ROWS = 20_000
MAX_NAMED_ROWS = 3


def check_first_rows(files: Sequence[SourceFile], chunks: Sequence[Chunk], data: DataConfig) -> None:
    """Look for two usable rows; reads no further than that.

    Raises:
        InputError: there are not so many; says what is wrong with the others.
    """
    reasons: Counter[str] = Counter()
    bad: list[tuple[int, int, str]] = []
    num_usable = 0
    for chunk in chunks:
        for record in read_records(chunk, data):
            try:
                parse_row(record.value, "", data.sources[chunk.file.source])
                num_usable += 1
            except RowError as error:
                reasons[error.reason] += 1
                bad.append((chunk.file.number, record.position, error.detail))
            if num_usable > 1 or len(bad) == MAX_FIRST_ROWS:
                return
    num_read = num_usable + len(bad)
    check_quarantined_rows(files, data, reasons, num_read, bad)
    raise InputError(
        f"data.sources: {num_usable} of {num_read} rows of {_named(files)} can be used; two are needed, one to train "
        "on and one to hold out"
    )


def check_quarantined_rows(
    files: Sequence[SourceFile],
    data: DataConfig,
    reasons: Counter[str],
    num_read: int,
    bad: Sequence[tuple[int, int, str]],
) -> None:
    """Stop when there are no rows, or too many that can't be used: `bad` has (file, position, what is wrong) of some.

    Raises:
        InputError: names the reasons by number, and the first rows.
    """
    if num_read == 0:
        raise InputError(f"data.sources: no rows in {_named(files)}")
    examples = [
        f"{files[number].uri}: row {row_number(files[number], position)} {detail}"
        for number, position, detail in bad[:MAX_NAMED_ROWS]
    ]
    check_bad_fraction(reasons, num_read, data.max_bad_fraction, examples)


def _named(files: Sequence[SourceFile]) -> str:
    more = len(files) - MAX_NAMED_ROWS
    return ", ".join(file.uri for file in files[:MAX_NAMED_ROWS]) + (f" and {more} more files" if more > 0 else "")
