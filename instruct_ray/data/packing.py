"""Examples -> packs: several examples in one row, each seeing only itself. Pure functions.

A token may see an earlier one if that one's subtree is still open: query i sees key j iff j <= i < subtree_end[j]. With the
subtree of every token ending where its example ends this is ordinary document packing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

IGNORE_INDEX = -100
# Packs kept open while packing; an example goes into the first one it fits in.
NUM_OPEN_PACKS = 16


@dataclass(frozen=True)
class Example:
    """A tokenised row."""

    row_id: str
    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, the stop token included."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_inputs(self) -> int:
        """Tokens the model reads: the stop token is only predicted, never read."""
        return self.num_tokens - 1


class Pack(TypedDict):
    """One row of a packed data set; the lists have one entry per token that the model reads."""

    input_ids: list[int]
    position_ids: list[int]
    labels: list[int]
    """The token that this position predicts, -100 where nothing is trained."""
    subtree_end: list[int]
    """The position just past the last token that may see this one."""
    num_trained: int
    num_tokens: int
    """What the rows would cost unpacked and unpadded."""
    row_ids: list[str]


def empty_pack() -> Pack:
    """A pack in which nothing is trained, for a rank that has no other."""
    return make_pack([Example("", [0, 0], [])]) | Pack(row_ids=[], num_tokens=0)  # type: ignore[typeddict-item]


def make_pack(examples: Iterable[Example]) -> Pack:
    """Lay examples one behind the other."""
    pack = Pack(input_ids=[], position_ids=[], labels=[], subtree_end=[], num_trained=0, num_tokens=0, row_ids=[])
    for example in examples:
        num_inputs = example.num_inputs
        pack["input_ids"] += [*example.prompt_ids, *example.completion_ids][:num_inputs]
        pack["position_ids"] += range(num_inputs)
        pack["labels"] += [IGNORE_INDEX] * (num_inputs - len(example.completion_ids)) + example.completion_ids
        pack["subtree_end"] += [len(pack["subtree_end"]) + num_inputs] * num_inputs
        pack["num_trained"] += len(example.completion_ids)
        pack["num_tokens"] += example.num_tokens
        pack["row_ids"].append(example.row_id)
    return pack


def pack(examples: Iterable[Example], pack_tokens: int) -> Iterator[Pack]:
    """Fill packs of at most `pack_tokens` in the order given; every example lands in exactly one.

    Raises:
        ValueError: an example is longer than a pack.
    """
    open_packs: list[list[Example]] = []
    sizes: list[int] = []
    for example in examples:
        size = example.num_inputs
        if size > pack_tokens:
            raise ValueError(f"row {example.row_id} has {size} tokens, a pack only {pack_tokens}")
        fitting = next((i for i, used in enumerate(sizes) if used + size <= pack_tokens), None)
        if fitting is not None:
            open_packs[fitting].append(example)
            sizes[fitting] += size
            continue
        if len(open_packs) == NUM_OPEN_PACKS:
            fullest = sizes.index(max(sizes))
            yield make_pack(open_packs.pop(fullest))
            sizes.pop(fullest)
        open_packs.append([example])
        sizes.append(size)
    yield from map(make_pack, open_packs)
