"""Sources -> a few rows as the model will see them, and their packs. Needs no Ray and writes nothing."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from instruct_ray.base_model.hf_config import max_positions
from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config
from instruct_ray.data.example import Example
from instruct_ray.data.ledger import RowOutcome
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.data.prepare.decisions import DuplicateFilter, RowDecision, decide_rows
from instruct_ray.data.prepare.pack_pass import order_examples
from instruct_ray.data.prepare.shuffle_files import RenderedRow
from instruct_ray.data.prepare.source_changes import list_run_sources
from instruct_ray.data.prepare.split_rule import SplitRule, find_split_rule
from instruct_ray.data.prepare.tokenize_pass import build_rendered_row
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.report.report import OUTCOME_TEXTS, RowLocator, shorten_names
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.errors import InputError

MAX_ROWS = 1000
# The search for rows ends after this many records, so that sources with few usable rows are answered quickly as well.
MAX_READ_PER_ROW = 100
MIN_READ_LIMIT = 1000
MAX_NAMED_ROWS = 5


@dataclass
class Preview:
    """Some rows to train on, their packs, and counts of the rows that were skipped."""

    renderer: Renderer
    pack_tokens: int
    rows: list[RenderedRow] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Row id -> file and row number."""
    examples: list[Example] = field(default_factory=list)
    """The examples of all rows in packing order."""
    packs: list[Pack] = field(default_factory=list)
    num_read: int = 0
    skipped: Counter[RowOutcome] = field(default_factory=Counter)
    """Rows that are not shown, by outcome."""
    problems: list[str] = field(default_factory=list)
    """Places and problems of the first quarantined rows."""
    not_read: str = ""
    """The files in the sources' folders that are not read, and why."""

    def describe_skipped(self) -> str:
        """The skipped rows by outcome, most frequent first."""
        return ", ".join(f"{count} {OUTCOME_TEXTS[outcome][0]}" for outcome, count in self.skipped.most_common())


def make_preview(config: Config, num_rows: int) -> Preview:
    """Read the first rows to train on, from each source in turn, and pack them.

    Raises:
        InputError: a source or the base model can't be used, `num_rows` is out of range, or there is no row to train
            on.
    """
    if not 1 <= num_rows <= MAX_ROWS:
        raise InputError(f"-n {num_rows}: from 1 to {MAX_ROWS} rows can be previewed")
    listing = list_run_sources(config)
    run = open_run(config, "prepare")
    preview = Preview(run.renderer, config.data.pack_tokens, not_read=listing.describe_passed_over())
    _read_rows(preview, run, listing.files, num_rows)
    if not preview.rows:
        example = f"; {preview.problems[0]}" if preview.problems else ""
        raise InputError(
            f"data.sources: no row to train on among the first {preview.num_read} "
            f"({preview.describe_skipped() or 'none'}){example}"
        )
    preview.examples = order_examples(preview.rows, config.run.seed)
    preview.packs = list(pack_examples(preview.examples, config.data.pack_tokens))
    return preview


def _read_rows(preview: Preview, run: OpenRun, files: Sequence[SourceFile], num_rows: int) -> None:
    """Read records until the preview has `num_rows` rows."""
    config, split_rule, positions = run.config, find_split_rule(files, run.config.data), max_positions(run.hf_config)
    locator = RowLocator(files, shorten_names([file.uri for file in files]))
    duplicates = DuplicateFilter()
    max_read = max(MIN_READ_LIMIT, MAX_READ_PER_ROW * num_rows)
    for file, record in _alternate_sources(files, config.data):
        preview.num_read += 1
        [decision] = decide_rows(
            [record],
            file,
            preview.renderer,
            config.data,
            config.run.seed,
            split_rule=split_rule,
            max_positions=positions,
        )
        _add_row(preview, decision, config.data, split_rule, duplicates, locator)
        if len(preview.rows) == num_rows or preview.num_read == max_read:
            return


def _add_row(
    preview: Preview,
    decision: RowDecision,
    data: DataConfig,
    split_rule: SplitRule,
    duplicates: DuplicateFilter,
    locator: RowLocator,
) -> None:
    """Add a row to train on, or count it as skipped."""
    if decision.error is not None and len(preview.problems) < MAX_NAMED_ROWS:
        preview.problems.append(f"{locator.describe(decision.row_id)} {decision.error.detail}")
    if decision.fitted is None or decision.outcome != "trained":
        preview.skipped[decision.outcome] += 1
    elif not duplicates.add(decision.fitted.triple.content_digest):
        preview.skipped["duplicate"] += 1
    else:
        row = build_rendered_row(decision, decision.fitted, data, split_rule)
        # A preview shows each row once, whatever its weight.
        preview.rows.append(replace(row, copies=1))
        preview.places[row.row_id] = locator.describe(row.row_id)


def _alternate_sources(files: Sequence[SourceFile], data: DataConfig) -> Iterator[tuple[SourceFile, Record]]:
    """Read one record of each source in turn; files are opened when they are needed."""
    files_by_source: dict[int, list[SourceFile]] = {}
    for file in files:
        files_by_source.setdefault(file.source, []).append(file)
    streams = deque(_read_source(source_files, data) for source_files in files_by_source.values())
    while streams:
        stream = streams.popleft()
        record = next(stream, None)
        if record is not None:
            yield record
            streams.append(stream)


def _read_source(files: Sequence[SourceFile], data: DataConfig) -> Iterator[tuple[SourceFile, Record]]:
    for file in files:
        for chunk in split_into_chunks([file]):
            for record in read_records(chunk, data):
                yield file, record
