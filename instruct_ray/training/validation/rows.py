"""pure: the rows that checkpoints are validated on, and the packs that their loss is computed from."""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple


def sample_rows(rows_file: Path, num_rows: int) -> list[Triple]:
    """Sample `num_rows` triples, chosen and ordered by a hash of their ids: every call returns the same.

    The file is read once, line by line; only the sample is kept in memory.
    """
    return heapq.nsmallest(num_rows, _read_rows(rows_file), key=lambda row: hashlib.sha256(row.id.encode()).digest())


def render_examples(renderer: Renderer, triples: Sequence[Triple]) -> list[Example]:
    """Render the examples of all triples. None of them fails: `prepare` has rendered them before."""
    rows = renderer.examples([triple.id for triple in triples], triples)
    return [example for examples in rows if not isinstance(examples, RowError) for example in examples]


def pack_rows(rows_file: Path, num_rows: int, renderer: Renderer, pack_tokens: int) -> list[Pack]:
    """Pack a sample of the rows; the packs are the same for every number of ranks."""
    examples = render_examples(renderer, sample_rows(rows_file, num_rows))
    return list(pack_examples(examples, max([pack_tokens, *(example.num_inputs for example in examples)])))


def _read_rows(rows_file: Path) -> Iterator[Triple]:
    # Only "\n" ends a row: text may contain the other characters that Python takes for the end of a line.
    with rows_file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield Triple.load(json.loads(line))
