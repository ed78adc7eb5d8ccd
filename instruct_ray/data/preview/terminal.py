"""Preview -> the terminal: rows with their target tokens highlighted, and each pack as a tree."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from instruct_ray.data.example import Example, Int32s
from instruct_ray.data.packs.tree import Pack
from instruct_ray.data.prepare.shuffle_files import RenderedRow
from instruct_ray.data.preview.preview import Preview
from instruct_ray.data.report.token_view import TextSpan, decode_spans, escape_invisible, make_token_views, text_spans

TARGET, SPECIAL, FAINT, HEADING = "bold green", "reverse", "dim", "bold cyan"
# Tokens shown of a row, and packs shown.
MAX_TOKENS = 300
MAX_PACKS = 3
# Characters of a branch of a tree, and of a tree's other columns.
MAX_BRANCH_CHARACTERS = 76
MIN_BRANCH_CHARACTERS = 32
OTHER_CHARACTERS = 44
# Spaces that are easily missed: at the start or end of a line, or next to another space.
EASILY_MISSED_SPACE = re.compile(r"^ | $| (?= )|(?<= ) ", re.MULTILINE)


def print_preview(preview: Preview, console: Console) -> None:
    """Print rows, packs and how much packing saves. Without a terminal, target tokens are enclosed in «»."""
    use_quotes = not console.is_terminal
    legend = Text.assemble(
        _style_spans([TextSpan("target", is_target=True)], use_quotes=use_quotes),
        "  ",
        _style_spans([TextSpan("<special token>", is_special=True)], use_quotes=use_quotes),
        ("  ↵ new line  ⇥ tab  · space", FAINT),
    )
    console.print(legend)
    for number, row in enumerate(preview.rows, start=1):
        _print_row(number, row, preview, console, use_quotes=use_quotes)
    for number, pack in enumerate(preview.packs[:MAX_PACKS], start=1):
        console.print()
        console.print(_build_tree(number, pack, preview, _branch_width(console), use_quotes=use_quotes))
    if len(preview.packs) > MAX_PACKS:
        console.print(f"… and {len(preview.packs) - MAX_PACKS} more packs", style=FAINT)
    console.print()
    for line in _summarize(preview):
        console.print(line, markup=False)


def _print_row(number: int, row: RenderedRow, preview: Preview, console: Console, *, use_quotes: bool) -> None:
    num_target_tokens = sum(len(example.completion_ids) for example in row.examples)
    truncated = ", input truncated" if row.was_truncated else ""
    title = f"\n── {number}. {escape_invisible(preview.places[row.row_id])}"
    details = f"  ({row.row_id}; {row.num_tokens} tokens, {num_target_tokens} target tokens{truncated})"
    console.print(Text.assemble((title, HEADING), (details, FAINT)))
    for view in make_token_views(row.row_id, row.examples):
        spans = text_spans(view.clip(MAX_TOKENS), preview.renderer)
        console.print(_style_spans(spans, use_quotes=use_quotes))


def _summarize(preview: Preview) -> Iterator[str]:
    num_tokens = sum(pack["num_tokens"] for pack in preview.packs)
    num_computed = sum(len(pack["input_ids"]) for pack in preview.packs)
    num_target_tokens = sum(pack["num_trained"] for pack in preview.packs)
    num_packs = f"{len(preview.packs)} pack{'s' if len(preview.packs) > 1 else ''}"
    yield (
        f"{num_tokens:,} tokens in {len(preview.rows)} rows, {num_computed:,} to compute in {num_packs} of up to "
        f"{preview.pack_tokens:,} ({1 - num_computed / num_tokens:.1%} saved), {num_target_tokens:,} target tokens"
    )
    if preview.skipped:
        yield f"{preview.num_read:,} rows read; not shown: {preview.describe_skipped()}"
    for problem in preview.problems:
        yield f"  {escape_invisible(problem)}"
    if preview.not_read:
        yield f"not read: {escape_invisible(preview.not_read)}"


@dataclass
class _Branch:
    """A sequence of positions of a pack without a fork, and its child branches."""

    start: int
    end: int
    path: Int32s
    """Tokens from the root to the start of the branch."""
    label_before: int
    """Label of the position before the branch."""
    children: list["_Branch"] = field(default_factory=list)


def _find_branches(pack: Pack) -> list[_Branch]:
    """Rebuild the tree of a pack from its columns; returns the branches at the root."""
    ids, ends, positions = (np.asarray(pack[name]) for name in ("input_ids", "subtree_end", "position_ids"))
    starts_branch = (ends[1:] != ends[:-1]) | (positions[1:] != positions[:-1] + 1)
    bounds = [0, *(np.flatnonzero(starts_branch) + 1).tolist(), len(ids)]
    roots: list[_Branch] = []
    ancestors: list[_Branch] = []
    for start, end in pairwise(bounds):
        while ancestors and ends[ancestors[-1].start] <= start:
            ancestors.pop()
        path = np.concatenate([ids[branch.start : branch.end] for branch in ancestors]) if ancestors else ids[:0]
        branch = _Branch(start, end, path, int(pack["labels"][ancestors[-1].end - 1]) if ancestors else 0)
        (ancestors[-1].children if ancestors else roots).append(branch)
        ancestors.append(branch)
    return roots


def _build_tree(number: int, pack: Pack, preview: Preview, width: int, *, use_quotes: bool) -> Tree:
    title = Text.assemble(
        (f"pack {number}", HEADING),
        f"  {len(pack['row_ids'])} examples, {pack['num_tokens']:,} tokens, {len(pack['input_ids']):,} to compute",
    )
    tree = Tree(title, guide_style=FAINT)
    builder = _TreeBuilder(pack, preview, width, use_quotes)
    for branch in _find_branches(pack):
        builder.add(branch, tree)
    return tree


class _TreeBuilder:
    """Adds the branches of a pack to a tree for the terminal."""

    def __init__(self, pack: Pack, preview: Preview, width: int, use_quotes: bool) -> None:
        self._pack, self._width, self._use_quotes = pack, width, use_quotes
        self._renderer = preview.renderer
        self._stop_token_id = preview.renderer.contract.stop_token_id
        self._row_ids = _index_row_ids(pack, preview.examples)

    def add(self, branch: _Branch, tree: Tree) -> int:
        """Add a branch and its descendants; returns the number of examples that end in them."""
        label = Text()
        subtree = tree.add(label)
        row_ids = self._find_ended_rows(branch)
        num_examples = len(row_ids) + sum(self.add(child, subtree) for child in branch.children)
        num_tokens = branch.end - branch.start
        label.append_text(
            Text.assemble(
                (f"shared by {num_examples}" if branch.children else " ".join(row_ids), "bold"),
                (f"  {num_tokens} token{'s' if num_tokens > 1 else ''}  ", FAINT),
                _shorten(self._render(branch), self._width),
            )
        )
        return num_examples

    def _find_ended_rows(self, branch: _Branch) -> list[str]:
        """Find the ids of the examples that end in a branch."""
        ids, labels = (self._pack[name][branch.start : branch.end] for name in ("input_ids", "labels"))
        row_ids = []
        for index in np.flatnonzero(labels == self._stop_token_id):
            path = np.concatenate((branch.path, ids[: index + 1]))
            # Removed from the index, since equal examples have equal paths.
            row_ids.append(self._row_ids[path.tobytes()].pop(0))
        return row_ids

    def _render(self, branch: _Branch) -> Text:
        ids, labels = (self._pack[name][branch.start : branch.end].tolist() for name in ("input_ids", "labels"))
        # A token is a target if the position before it has it as label.
        is_target = [label == token for label, token in zip([branch.label_before, *labels[:-1]], ids, strict=True)]
        if labels[-1] == self._stop_token_id:
            ids, is_target = [*ids, self._stop_token_id], [*is_target, True]
        spans = decode_spans(ids, is_target, self._renderer, branch.path.tolist())
        return _style_spans(spans, use_quotes=self._use_quotes, one_line=True)


def _index_row_ids(pack: Pack, examples: Sequence[Example]) -> defaultdict[bytes, list[str]]:
    """Index the row ids of a pack by the tokens that the model reads of each example."""
    row_ids: defaultdict[bytes, list[str]] = defaultdict(list)
    in_pack = set(pack["row_ids"])
    for example in examples:
        if example.row_id in in_pack:
            row_ids[example.inputs_and_labels()[0].tobytes()].append(example.row_id)
    return row_ids


def _branch_width(console: Console) -> int:
    if not console.is_terminal:
        return MAX_BRANCH_CHARACTERS
    return max(MIN_BRANCH_CHARACTERS, min(MAX_BRANCH_CHARACTERS, console.width - OTHER_CHARACTERS))


def _style_spans(spans: Sequence[TextSpan], *, use_quotes: bool, one_line: bool = False) -> Text:
    """Convert spans to styled text with visible white space."""
    text = Text()
    was_target = False
    for span in spans:
        if use_quotes and span.is_target != was_target:
            text.append("«" if span.is_target else "»")
        was_target = span.is_target
        style = " ".join([TARGET] * span.is_target + [SPECIAL] * span.is_special + [FAINT] * span.is_gap)
        text.append(span.text if span.is_gap else _show_white_space(span.text, one_line=one_line), style)
    if use_quotes and was_target:
        text.append("»")
    return text


def _show_white_space(text: str, *, one_line: bool) -> str:
    text = EASILY_MISSED_SPACE.sub("·", escape_invisible(text)).replace("\t", "⇥")
    return text.replace("\n", "↵" if one_line else "↵\n")


def _shorten(text: Text, width: int) -> Text:
    """Omit the middle of a line longer than `width` characters. Target tokens, which are at the end, are kept."""
    if len(text) <= width:
        return text
    target_starts = [span.start for span in text.spans if TARGET in str(span.style)]
    # Two more, for the quote and the character before it.
    tail = min(len(text) - min(target_starts) + 2, width // 2) if target_starts else width // 3
    # An opening quote that is omitted with the middle is added again.
    opening = "«" if text.plain.endswith("»") and "«" not in text.plain[-tail:] else ""
    return Text.assemble(text[: width - tail - 1], ("…", FAINT), opening, text[len(text) - tail :])
