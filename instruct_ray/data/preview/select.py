"""Sources -> a few rows as the model will see them, and the packs they make. No Ray, and nothing is written."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config
from instruct_ray.data.example import Example
from instruct_ray.data.open_run import open_run
from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.data.prepare.pack_pass import order_examples
from instruct_ray.data.prepare.shuffle_files import RenderedRow
from instruct_ray.data.prepare.tokenize_pass import group_key, num_copies
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow, TooLongRow, fit_to_limit
from instruct_ray.data.report.report import RowLocator, short_names
from instruct_ray.data.sources.files import SourceFile, find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.errors import InputError

MAX_ROWS = 1000
# Rows read in search of usable ones: sources in which there are few are answered at once as well.
READ_PER_ROW = 100
MIN_READ = 1000
MAX_NAMED_ROWS = 5


@dataclass
class Preview:
    """Some rows, and what was passed over to find them."""

    renderer: Renderer
    pack_tokens: int
    rows: list[RenderedRow] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Where each row stands, by its id."""
    examples: list[Example] = field(default_factory=list)
    """Those of all rows, in the order they are packed in."""
    packs: list[Pack] = field(default_factory=list)
    num_read: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    """The first rows that can't be used: where, and what is wrong."""


def make_preview(config: Config, num_rows: int) -> Preview:
    """Read the first usable rows that are not held out, from each source in turn, and pack them.

    Raises:
        InputError: a source or the base can't be used, `num_rows` is out of range, or no usable row was found.
    """
    if not 1 <= num_rows <= MAX_ROWS:
        raise InputError(f"-n {num_rows}: from 1 to {MAX_ROWS} rows can be previewed")
    files = find_source_files(config.data.sources, config.run.storage / "sources")
    renderer = open_run(config, "prepare").renderer
    found = Preview(renderer, config.data.pack_tokens)
    places = RowLocator(files, short_names([file.uri for file in files]))
    _Selection(config, renderer, places, found).select(files, num_rows)
    if not found.rows:
        over = ", ".join(f"{count} {fate}" for fate, count in found.passed_over.items()) or "none"
        example = f"; {found.bad[0]}" if found.bad else ""
        raise InputError(f"data.sources: no row to train on among the first {found.num_read} ({over}){example}")
    found.examples = order_examples(found.rows, config.run.seed)
    found.packs = list(pack_examples(found.examples, config.data.pack_tokens))
    return found


class _Selection:
    """Rows on their way into a preview."""

    def __init__(self, config: Config, renderer: Renderer, places: RowLocator, found: Preview) -> None:
        self.data, self.seed = config.data, config.run.seed
        self.renderer, self.places, self.found = renderer, places, found
        self.seen: set[bytes] = set()

    def select(self, files: list[SourceFile], num_rows: int) -> None:
        """Fill the preview."""
        for file, record in _records(files, self.data):
            self.found.num_read += 1
            fate = self._take(file, record)
            if fate:
                self.found.passed_over[fate] += 1
            if len(self.found.rows) == num_rows or self.found.num_read == max(MIN_READ, READ_PER_ROW * num_rows):
                return

    def _take(self, file: SourceFile, record: Record) -> str:
        """Add a row, or say why not."""
        row_id = f"{file.number}:{record.position}"
        source = self.data.sources[file.source]
        try:
            triple = parse_row(record.value, row_id, source)
            [fitted] = fit_to_limit(self.renderer, [row_id], [triple], self.data)
        except RowError as error:
            fitted = error
        if isinstance(fitted, RowError):
            if len(self.found.bad) < MAX_NAMED_ROWS:
                self.found.bad.append(f"{self.places.describe(file.number, record.position)} {fitted.detail}")
            return "set aside"
        if isinstance(fitted, TooLongRow):
            return "too long"
        if fitted.original.assign_split(self.data.test_fraction, self.data.validation_fraction) != "train":
            return "held out"
        if not num_copies(source.weight, self.seed, row_id):
            return "left out by a weight"
        if fitted.triple.content_digest in self.seen:
            return "duplicate"
        self._add(row_id, file, record, fitted)
        return ""

    def _add(self, row_id: str, file: SourceFile, record: Record, fitted: FittedRow) -> None:
        content = fitted.triple.content_digest
        self.seen.add(content)
        self.found.places[row_id] = self.places.describe(file.number, record.position)
        # Each once: a preview shows rows, not how often they are trained.
        self.found.rows.append(
            RenderedRow(
                row_id=row_id,
                digest=record.digest,
                content=content,
                group=group_key(fitted.triple),
                split_key="",
                copies=1,
                was_truncated=fitted.was_truncated,
                num_tokens=fitted.num_tokens,
                instruction="",
                answer="",
                examples=fitted.examples,
            )
        )


def _records(files: list[SourceFile], data: DataConfig) -> Iterator[tuple[SourceFile, Record]]:
    """Records of the sources in turn; a file is opened when its turn comes."""
    by_source: dict[int, list[SourceFile]] = {}
    for file in files:
        by_source.setdefault(file.source, []).append(file)
    streams = deque(_read(of_source, data) for of_source in by_source.values())
    while streams:
        stream = streams.popleft()
        record = next(stream, None)
        if record is not None:
            yield record
            streams.append(stream)


def _read(files: list[SourceFile], data: DataConfig) -> Iterator[tuple[SourceFile, Record]]:
    for file in files:
        for chunk in split_into_chunks([file]):
            for record in read_records(chunk, data):
                yield file, record
