"""Counts, ledger and samples -> `report.json` and `report.html`: what became of the rows, on one page.

The page needs no network. Neither file holds the run's name, its folder or a time: the same rows make
the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from instruct_ray.data.ledger import RowOutcome, read_entries
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.report.statistics import Statistics, TopCounts
from instruct_ray.data.report.token_view import escape_invisible, text_spans
from instruct_ray.data.sources.files import SourceFile
from instruct_ray.data.sources.readers import row_number
from instruct_ray.data.sources.records import MAX_DETAIL_CHARACTERS
from instruct_ray.files import atomic_write_json, atomic_write_text

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
# Rows named for each reason, and reasons that rows are named for.
EXAMPLES_PER_REASON = 3
MAX_REASONS = 20
# The number of a line costs reading all lines before it; past so many bytes the place is told instead.
MAX_COUNTED_BYTES = 64 * 2**20
# Answers look like labels when nearly all are short, and they are few.
MIN_SHORT_SHARE = 0.9
MAX_LABELS = 50
MAX_SHOWN_INSTRUCTIONS = 10
MAX_SHOWN_FILES = 20
NUM_BARS = 32

# What the page calls a fate, and what it means.
OUTCOME_TEXTS: dict[RowOutcome, tuple[str, str]] = {
    "trained": ("to train on", "in the packs"),
    "test": ("held out", "for evidence, never trained on"),
    "validation": ("for validation", "scored while a model is trained, never trained on"),
    "duplicate": ("duplicates", "equal to an earlier row, which stands for them"),
    "near_duplicate": ("near duplicates", "too similar to a held-out row to be trained on"),
    "too_long": ("too long", "longer than data.max_tokens or a pack"),
    "left_out": ("left out", "by the weight of their source"),
    "quarantined": ("set aside", "they can't be used, see below"),
}


@dataclass(frozen=True)
class Bar:
    """A column of a histogram: rows of `start` to `end - 1` tokens."""

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
    """Write both files into a folder that holds a ledger; `counts` are those of the manifest."""
    values = summarize_report(folder, counts, statistics, files, pack_tokens, renderer)
    atomic_write_json(folder / "report.json", values)
    atomic_write_text(folder / REPORT_FILE, render_report(values))


def summarize_report(
    folder: Path,
    counts: Mapping[str, Any],
    statistics: Statistics,
    files: Sequence[SourceFile],
    pack_tokens: int,
    renderer: Renderer,
) -> dict[str, Any]:
    """All that the page shows, of bounded size whatever the data."""
    names = short_names([file.uri for file in files])
    places = RowLocator(files, names)
    num_tokens, num_computed = counts["num_tokens"], counts["num_computed_tokens"]
    return {
        "files": names[:MAX_SHOWN_FILES],
        "num_files": len(files),
        **{name: counts[name] for name in ("num_read", "fates", "quarantine_reasons", "num_cut")},
        "quarantine_examples": _quarantine_examples(folder, counts["quarantine_reasons"], places),
        "tokens": {
            "rows": num_tokens,
            "computed": num_computed,
            "trained": counts["num_trained_tokens"],
            "trained_share": counts["num_trained_tokens"] / num_tokens,
            "saved_share": 1 - num_computed / num_tokens,
        },
        "packs": {
            "num_packs": counts["num_packs"],
            "num_examples": counts["num_examples"],
            "pack_tokens": pack_tokens,
            "fill": num_computed / (counts["num_packs"] * pack_tokens),
        },
        "lengths": {
            "prompt": _lengths(statistics.prompt_lengths, statistics.longest_prompt),
            "completion": _lengths(statistics.completion_lengths, statistics.longest_completion),
        },
        "num_without_input": statistics.num_without_input,
        "num_multi_turn": statistics.num_multi_turn,
        "instructions": _tally(statistics.instructions) if statistics.instructions.num_rows else None,
        "labels": _tally(statistics.labels) if _are_labels(statistics) else None,
        "samples": [
            {
                "row_id": view.row_id,
                "place": places.describe(*map(int, view.row_id.split(":"))),
                "num_tokens": len(view.token_ids) + view.num_hidden,
                "pieces": [
                    {**asdict(piece), "text": escape_invisible(piece.text)} for piece in text_spans(view, renderer)
                ],
            }
            for _, view in statistics.samples
        ],
    }


def render_report(values: Mapping[str, Any]) -> str:
    """The page; whatever comes from the data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = lambda value: f"{value:.1%}"
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment.from_string(TEMPLATE.read_text()).render(
        values, texts=OUTCOME_TEXTS, max_instructions=MAX_SHOWN_INSTRUCTIONS
    )


def histogram(lengths: Mapping[int, int], num_bars: int = NUM_BARS) -> list[Bar]:
    """Lengths -> at most `num_bars` + 1 columns of one width, a power of two, without the empty ones at both ends."""
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


def short_names(uris: Sequence[str]) -> list[str]:
    """Files by name alone, or where that says too little without the folders that all of them lie in."""
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
    """Where a row stands, in words."""

    def __init__(self, files: Sequence[SourceFile], names: Sequence[str]) -> None:
        self._files, self._names = files, names

    def describe(self, file: int, position: int) -> str:
        """`FILE, row 12`; far inside a file of lines `FILE, byte 123456789`."""
        if self._files[file].kind == "jsonl" and position > MAX_COUNTED_BYTES:
            return f"{self._names[file]}, byte {position}"
        return f"{self._names[file]}, row {row_number(self._files[file], position)}"


def _quarantine_examples(folder: Path, reasons: Mapping[str, int], places: RowLocator) -> list[dict[str, str]]:
    """The first rows of each of the most frequent reasons; stops reading the ledger when it has them."""
    frequent = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:MAX_REASONS]
    missing = {reason: min(EXAMPLES_PER_REASON, reasons[reason]) for reason in frequent}
    found: list[dict[str, str]] = []
    if not missing:
        return found
    for batch in read_entries(folder, "row_id", "reason", "detail"):
        # Only rows that can't be used have a reason, and their part of the ledger comes first.
        for row_id, reason, detail in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if missing.get(reason, 0):
                missing[reason] -= 1
                place = places.describe(*map(int, row_id.split(":")))
                found.append(
                    {"reason": reason, "place": place, "detail": escape_invisible(detail[:MAX_DETAIL_CHARACTERS])}
                )
        if not any(missing.values()):
            break
    return sorted(found, key=lambda example: frequent.index(example["reason"]))


def _lengths(lengths: Mapping[int, int], longest: int) -> dict[str, Any]:
    return {
        "median": _percentile(lengths, 0.5),
        "p95": _percentile(lengths, 0.95),
        "max": longest,
        "bars": [asdict(bar) for bar in histogram(lengths)],
    }


def _percentile(lengths: Mapping[int, int], share: float) -> int:
    """The least length that at least this share of the rows does not exceed."""
    wanted, seen = share * sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def _tally(tally: TopCounts) -> dict[str, Any]:
    return {
        "num_rows": tally.num_rows,
        "num_texts": tally.num_texts,
        "perplexity": round(tally.perplexity, 2),
        "most_frequent": [{"text": escape_invisible(text), "num_rows": count} for text, count in tally.most_frequent()],
    }


def _are_labels(statistics: Statistics) -> bool:
    labels = statistics.labels
    are_short = labels.num_rows >= MIN_SHORT_SHARE * statistics.num_rows
    return are_short and labels.num_texts <= min(MAX_LABELS, labels.num_rows // 2)
