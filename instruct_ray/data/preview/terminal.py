"""Preview -> the terminal: rows with their trained tokens in colour, and each pack as the tree that it is."""

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
from instruct_ray.data.preview.select import Preview
from instruct_ray.data.report.token_view import TextSpan, decode_spans, escape_invisible, make_token_views, text_spans

TRAINED, CONTROL, FAINT = "bold green", "reverse", "dim"
# Tokens shown of a row, packs drawn, and characters of a run of tokens in the tree.
MAX_TOKENS = 300
MAX_PACKS = 3
RUN_CHARACTERS = 76
MIN_RUN_CHARACTERS = 32
# Spaces that are easily overlooked: at the ends of a line, and next to another.
ODD_SPACE = re.compile(r"^ | $| (?= )|(?<= ) ", re.MULTILINE)


def print_preview(preview: Preview, console: Console) -> None:
    """Print rows, packs, and what the packs save; without a terminal, «» stand around what is trained."""
    marks = not console.is_terminal
    legend = Text.assemble(
        _styled([TextSpan("trained", is_trained=True)], marks=marks),
        "  ",
        _styled([TextSpan("<control token>", is_control=True)], marks=marks),
        ("  ↵ new line  ⇥ tab  · space", FAINT),
    )
    console.print(legend)
    for number, row in enumerate(preview.rows, start=1):
        _draw_row(number, row, preview, console, marks=marks)
    for number, made in enumerate(preview.packs[:MAX_PACKS], start=1):
        console.print()
        console.print(_tree(number, made, preview, _run_width(console), marks=marks))
    if len(preview.packs) > MAX_PACKS:
        console.print(f"… and {len(preview.packs) - MAX_PACKS} more packs", style=FAINT)
    console.print()
    for line in _summary(preview):
        console.print(line, markup=False)


def _draw_row(number: int, row: RenderedRow, preview: Preview, console: Console, *, marks: bool) -> None:
    num_trained = sum(len(example.completion_ids) for example in row.examples)
    cut = ", input cut to fit" if row.was_truncated else ""
    title = f"\n── {number}. {escape_invisible(preview.places[row.row_id])}"
    figures = f"  ({row.row_id}; {row.num_tokens} tokens, {num_trained} trained{cut})"
    console.print(Text.assemble((title, "bold cyan"), (figures, FAINT)))
    for view in make_token_views(row.row_id, row.examples):
        console.print(_styled(text_spans(view.clipped(MAX_TOKENS), preview.renderer), marks=marks))


def _summary(preview: Preview) -> Iterator[str]:
    num_tokens = sum(made["num_tokens"] for made in preview.packs)
    num_computed = sum(len(made["input_ids"]) for made in preview.packs)
    num_trained = sum(made["num_trained"] for made in preview.packs)
    num_packs = f"{len(preview.packs)} pack{'s' if len(preview.packs) > 1 else ''}"
    yield (
        f"{num_tokens:,} tokens in {len(preview.rows)} rows, {num_computed:,} to compute in {num_packs} of up to "
        f"{preview.pack_tokens:,} ({1 - num_computed / num_tokens:.1%} saved), {num_trained:,} trained"
    )
    if preview.passed_over:
        over = ", ".join(f"{count} {fate}" for fate, count in preview.passed_over.most_common())
        yield f"{preview.num_read:,} rows read; passed over: {over}"
    for bad in preview.bad:
        yield f"  {escape_invisible(bad)}"


@dataclass
class _Segment:
    """A run of a pack's positions without a fork, and the runs behind it."""

    start: int
    end: int
    path: Int32s
    """Tokens in front of it, from the root on."""
    label_before: int
    """What the position in front of it is trained to predict."""
    branches: list["_Segment"] = field(default_factory=list)


def _segments(made: Pack) -> list[_Segment]:
    """The tree of a pack, as its columns tell it."""
    ids, ends, positions = (np.asarray(made[name]) for name in ("input_ids", "subtree_end", "position_ids"))
    begins = (ends[1:] != ends[:-1]) | (positions[1:] != positions[:-1] + 1)
    bounds = [0, *(np.flatnonzero(begins) + 1).tolist(), len(ids)]
    roots: list[_Segment] = []
    above: list[_Segment] = []
    for start, end in pairwise(bounds):
        while above and ends[above[-1].start] <= start:
            above.pop()
        path = np.concatenate([ids[run.start : run.end] for run in above]) if above else ids[:0]
        run = _Segment(start, end, path, int(made["labels"][above[-1].end - 1]) if above else 0)
        (above[-1].branches if above else roots).append(run)
        above.append(run)
    return roots


def _tree(number: int, made: Pack, preview: Preview, width: int, *, marks: bool) -> Tree:
    title = Text.assemble(
        (f"pack {number}", "bold cyan"),
        f"  {len(made['row_ids'])} examples, {made['num_tokens']:,} tokens, {len(made['input_ids']):,} to compute",
    )
    tree = Tree(title, guide_style=FAINT)
    drawing = _Drawing(made, preview, width, marks)
    for run in _segments(made):
        drawing.add(run, tree)
    return tree


class _Drawing:
    """A pack on its way into a tree."""

    def __init__(self, made: Pack, preview: Preview, width: int, marks: bool) -> None:
        self.made, self.width, self.marks = made, width, marks
        self.renderer = preview.renderer
        self.stop = preview.renderer.contract.stop_token_id
        self.row_ids = _ids_by_path(made, preview.examples)

    def add(self, run: _Segment, tree: Tree) -> int:
        """Draw a run and what is behind it; returns the examples that end there."""
        ids, labels = self.made["input_ids"][run.start : run.end], self.made["labels"][run.start : run.end]
        ended = []
        for index in np.flatnonzero(labels == self.stop):
            path = np.concatenate((run.path, ids[: index + 1]))
            # Equal rows end on equal paths: each is told once.
            ended.append(self.row_ids[path.tobytes()].pop(0))
        tokens: list[int] = ids.tolist()
        trained = [
            label == token for label, token in zip([run.label_before, *labels[:-1].tolist()], tokens, strict=True)
        ]
        if labels[-1] == self.stop:
            tokens, trained = [*tokens, self.stop], [*trained, True]
        text = _styled(decode_spans(tokens, trained, self.renderer, run.path.tolist()), marks=self.marks, one_line=True)
        label = Text()
        branch = tree.add(label)
        num_behind = len(ended) + sum(self.add(behind, branch) for behind in run.branches)
        who = " ".join(ended) if not run.branches else f"shared by {num_behind}"
        count = f"{len(ids)} token{'s' if len(ids) > 1 else ''}"
        shown = _shortened(text, self.width)
        label.append_text(Text.assemble((who, "bold"), (f"  {count}  ", FAINT), shown))
        return num_behind


def _ids_by_path(made: Pack, examples: Sequence[Example]) -> defaultdict[bytes, list[str]]:
    """Row ids of a pack by the tokens that the model reads of each."""
    found: defaultdict[bytes, list[str]] = defaultdict(list)
    in_pack = set(made["row_ids"])
    for example in examples:
        if example.row_id in in_pack:
            found[example.inputs_and_labels()[0].tobytes()].append(example.row_id)
    return found


def _run_width(console: Console) -> int:
    return max(MIN_RUN_CHARACTERS, min(RUN_CHARACTERS, console.width - 44)) if console.is_terminal else RUN_CHARACTERS


def _styled(shown: Sequence[TextSpan], *, marks: bool, one_line: bool = False) -> Text:
    """Pieces -> text with white space made visible."""
    text = Text()
    was_trained = False
    for piece in shown:
        if marks and piece.is_trained != was_trained:
            text.append("«" if piece.is_trained else "»")
        was_trained = piece.is_trained
        style = " ".join([TRAINED] * piece.is_trained + [CONTROL] * piece.is_control + [FAINT] * piece.is_gap)
        visible = piece.text if piece.is_gap else ODD_SPACE.sub("·", escape_invisible(piece.text)).replace("\t", "⇥")
        text.append(visible.replace("\n", "↵" if one_line else "↵\n"), style)
    if marks and was_trained:
        text.append("»")
    return text


def _shortened(text: Text, width: int) -> Text:
    """One line of at most `width` characters, its middle left out; what is trained stands at the end and stays."""
    if len(text) <= width:
        return text
    trained = [span.start for span in text.spans if TRAINED in str(span.style)]
    # Two more, for the mark and the character in front.
    tail = min(len(text) - min(trained) + 2, width // 2) if trained else width // 3
    # A mark that is left out with the middle is set anew.
    opening = "«" if text.plain.endswith("»") and "«" not in text.plain[-tail:] else ""
    return Text.assemble(text[: width - tail - 1], ("…", FAINT), opening, text[len(text) - tail :])
