"""Counts, ledger and statistics -> `report.json` and `report.html`: the data and the outcomes of its rows on one page.

The page needs no network. Neither file contains the run's name, its folder or a time, so the same rows make the same
bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from instruct_ray.data.ledger import RowOutcome, read_entries
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.report.statistics import Statistics, TopCounts
from instruct_ray.data.report.token_view import TokenView, escape_invisible, text_spans
from instruct_ray.data.row_id import parse_row_id
from instruct_ray.data.sources.file_formats import FILE_FORMATS
from instruct_ray.data.sources.readers import row_number
from instruct_ray.data.sources.records import MAX_DETAIL_CHARACTERS
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.files import atomic_write_json, atomic_write_text

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
# Quarantined rows shown for each of the most frequent reasons.
EXAMPLES_PER_REASON = 3
MAX_REASONS = 20
# To count the lines before a row, the file is read up to it. Further inside a file, the byte offset is shown instead.
MAX_COUNTED_BYTES = 64 * 2**20
# Answers are treated as labels if nearly all are short and few are distinct.
MIN_SHORT_FRACTION = 0.9
MAX_LABELS = 50
MAX_SHOWN_INSTRUCTIONS = 10
MAX_SHOWN_FILES = 20
NUM_BARS = 32

# Label and explanation of each outcome.
OUTCOME_TEXTS: dict[RowOutcome, tuple[str, str]] = {
    "trained": ("to train on", "in the packs"),
    "test": ("held out", "for evidence, never trained on"),
    "validation": ("held out for validation", "to compare checkpoints, never trained on"),
    "duplicate": ("duplicate", "equal to an earlier row, which is kept"),
    "near_duplicate": ("near duplicate", "too similar to a held-out row to be trained on"),
    "too_long": ("too long", "longer than data.max_tokens or a pack"),
    "left_out": ("left out", "by a weight of the source below 1, or by data.train_fraction"),
    "quarantined": ("quarantined", "can't be used, see below"),
}


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: rows with `start` to `end - 1` tokens."""

    start: int
    end: int
    num_rows: int


def write_report(
    folder: Path,
    counts: Mapping[str, Any],
    statistics: Statistics,
    files: Sequence[SourceFile],
    pack_tokens: int,
    renderer: Renderer,
) -> None:
    """Write both files to a folder with a ledger; `counts` are those of the manifest."""
    values = build_report(folder, counts, statistics, files, pack_tokens, renderer)
    atomic_write_json(folder / "report.json", values)
    atomic_write_text(folder / REPORT_FILE, render_report(values))


def build_report(
    folder: Path,
    counts: Mapping[str, Any],
    statistics: Statistics,
    files: Sequence[SourceFile],
    pack_tokens: int,
    renderer: Renderer,
) -> dict[str, Any]:
    """Collect the content of the page; its size is bounded, whatever the data."""
    names = shorten_names([file.uri for file in files])
    locator = RowLocator(files, names)
    num_tokens, num_computed = counts["num_tokens"], counts["num_computed_tokens"]
    return {
        "files": names[:MAX_SHOWN_FILES],
        "num_files": len(files),
        "num_read": counts["num_read"],
        "outcomes": counts["fates"],
        "quarantine_reasons": counts["quarantine_reasons"],
        "num_truncated": counts["num_cut"],
        "quarantine_examples": _find_quarantine_examples(folder, counts["quarantine_reasons"], locator),
        "tokens": {
            "rows": num_tokens,
            "computed": num_computed,
            "target": counts["num_trained_tokens"],
            "target_fraction": counts["num_trained_tokens"] / num_tokens,
            "saved_fraction": 1 - num_computed / num_tokens,
        },
        "packs": {
            "num_packs": counts["num_packs"],
            "num_examples": counts["num_examples"],
            "pack_tokens": pack_tokens,
            "fill": num_computed / (counts["num_packs"] * pack_tokens),
        },
        "lengths": {
            "prompt": _summarize_lengths(statistics.prompt_lengths, statistics.longest_prompt),
            "completion": _summarize_lengths(statistics.completion_lengths, statistics.longest_completion),
        },
        "num_without_input": statistics.num_without_input,
        "num_multi_turn": statistics.num_multi_turn,
        "instructions": _summarize_texts(statistics.instructions) if statistics.instructions.num_rows else None,
        "labels": _summarize_texts(statistics.labels) if _has_labels(statistics) else None,
        "samples": [_format_sample(view, locator, renderer) for _, view in statistics.samples],
    }


def render_report(values: Mapping[str, Any]) -> str:
    """Render the page; everything that comes from the data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment.from_string(TEMPLATE.read_text()).render(
        values, texts=OUTCOME_TEXTS, max_instructions=MAX_SHOWN_INSTRUCTIONS
    )


def build_histogram(lengths: Mapping[int, int], num_bars: int = NUM_BARS) -> list[Bar]:
    """Count lengths in at most `num_bars` + 1 bars of equal width, a power of two; no bar at the ends is empty."""
    if not lengths:
        return []
    width = 1
    while max(lengths) // width - min(lengths) // width >= num_bars:
        width *= 2
    first, last = min(lengths) // width, max(lengths) // width
    heights = [0] * (last - first + 1)
    for length, num_rows in lengths.items():
        heights[length // width - first] += num_rows
    return [Bar((first + i) * width, (first + i + 1) * width, height) for i, height in enumerate(heights)]


def shorten_names(uris: Sequence[str]) -> list[str]:
    """Shorten file names as far as they stay distinct: to the name alone, or by the folders that all have in common."""
    parts = [uri.split("/") for uri in uris]
    if len({names[-1] for names in parts}) == len(parts):
        return [names[-1] for names in parts]
    num_common = 0
    for names in zip(*(folders[:-1] for folders in parts), strict=False):
        if len(set(names)) > 1:
            break
        num_common += 1
    return ["/".join(names[num_common:]) for names in parts]


class RowLocator:
    """Describes where a row is."""

    def __init__(self, files: Sequence[SourceFile], names: Sequence[str]) -> None:
        self._files, self._names = files, names

    def describe(self, row_id: str) -> str:
        """`FILE, row 12`; far inside a JSONL file `FILE, byte 123456789`."""
        number, position = parse_row_id(row_id)
        file, name = self._files[number], self._names[number]
        if FILE_FORMATS[file.format].has_byte_positions and position > MAX_COUNTED_BYTES:
            return f"{name}, byte {position}"
        return f"{name}, row {row_number(file, position)}"


def _find_quarantine_examples(folder: Path, reasons: Mapping[str, int], locator: RowLocator) -> list[dict[str, str]]:
    """Find the first rows of each of the most frequent reasons; reads only as much of the ledger as needed."""
    frequent = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:MAX_REASONS]
    num_missing = {reason: min(EXAMPLES_PER_REASON, reasons[reason]) for reason in frequent}
    examples: list[dict[str, str]] = []
    if not num_missing:
        return examples
    for batch in read_entries(folder, "row_id", "reason", "detail"):
        # Only quarantined rows have a reason. Their ledger files sort before those of the shards.
        for row_id, reason, detail in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if num_missing.get(reason, 0):
                num_missing[reason] -= 1
                text = escape_invisible(detail[:MAX_DETAIL_CHARACTERS])
                examples.append({"reason": reason, "place": locator.describe(row_id), "detail": text})
        if not any(num_missing.values()):
            break
    return sorted(examples, key=lambda example: frequent.index(example["reason"]))


def _format_sample(view: TokenView, locator: RowLocator, renderer: Renderer) -> dict[str, Any]:
    return {
        "row_id": view.row_id,
        "place": locator.describe(view.row_id),
        "num_tokens": len(view.token_ids) + view.num_omitted,
        "spans": [{**asdict(span), "text": escape_invisible(span.text)} for span in text_spans(view, renderer)],
    }


def _summarize_lengths(lengths: Mapping[int, int], longest: int) -> dict[str, Any]:
    return {
        "median": _percentile(lengths, 0.5),
        "p95": _percentile(lengths, 0.95),
        "max": longest,
        "bars": [asdict(bar) for bar in build_histogram(lengths)],
    }


def _percentile(lengths: Mapping[int, int], fraction: float) -> int:
    """Compute the smallest length that at least this fraction of the rows does not exceed."""
    min_rows, num_rows = fraction * sum(lengths.values()), 0
    for length in sorted(lengths):
        num_rows += lengths[length]
        if num_rows >= min_rows:
            return length
    return 0


def _summarize_texts(texts: TopCounts) -> dict[str, Any]:
    return {
        "num_rows": texts.num_rows,
        "num_texts": texts.num_texts,
        "perplexity": round(texts.perplexity, 2),
        "most_frequent": [{"text": escape_invisible(text), "num_rows": count} for text, count in texts.most_frequent()],
    }


def _has_labels(statistics: Statistics) -> bool:
    labels = statistics.labels
    are_short = labels.num_rows >= MIN_SHORT_FRACTION * statistics.num_rows
    return are_short and labels.num_texts <= min(MAX_LABELS, labels.num_rows // 2)
