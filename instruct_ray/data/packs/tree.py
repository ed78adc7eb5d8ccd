"""Examples -> packs: prefix trees of examples, so that a token shared by several is computed once. Pure functions.

A pack lays its tree out depth first, and each token carries the position just past its subtree:

    query i may see key j   <=>   j <= i < subtree_end[j]

which lets a token see the path from the root to itself and nothing else: its own example, whatever else is in the pack.
"""

from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np

from instruct_ray.data.example import IGNORE_INDEX, Example, Int32s


class Pack(TypedDict):
    """One row of a packed data set; the first four have one entry per token that the model reads."""

    input_ids: Int32s
    position_ids: Int32s
    """Distance from the root: positions continue along each branch."""
    labels: Int32s
    """The token that this position predicts, -100 where nothing is trained."""
    subtree_end: Int32s
    """The position just past the last token that may see this one."""
    num_trained: int
    num_tokens: int
    """What the rows would cost unpacked and unpadded."""
    row_ids: list[str]


class _Branch:
    """A run of positions without a fork, and the branches behind it."""

    __slots__ = ("branches", "inputs", "labels")

    def __init__(self, inputs: Int32s, labels: Int32s) -> None:
        self.inputs, self.labels = inputs, labels
        self.branches: dict[int, list[_Branch]] = {}

    def num_shared(self, inputs: Int32s, labels: Int32s) -> int:
        """Leading positions that an example could share: the same token, and not trained by both."""
        size = min(len(self.inputs), len(inputs))
        differs = self.inputs[:size] != inputs[:size]
        differs |= (self.labels[:size] != IGNORE_INDEX) & (labels[:size] != IGNORE_INDEX)
        first = int(differs.argmax())
        return first if differs[first] else size

    def add(self, branch: "_Branch") -> None:
        self.branches.setdefault(int(branch.inputs[0]), []).append(branch)

    def split(self, size: int) -> None:
        """Let what lies past `size` positions become a branch behind them."""
        tail = _Branch(self.inputs[size:], self.labels[size:])
        tail.branches = self.branches
        self.inputs, self.labels, self.branches = self.inputs[:size], self.labels[:size], {}
        self.add(tail)


class PrefixTree:
    """A prefix tree of examples. A position is shared by examples with the same path to it as long as at most one of
    them trains on it: its label is one token."""

    def __init__(self) -> None:
        self._root = _Branch(np.empty(0, np.int32), np.empty(0, np.int32))
        self._examples: list[Example] = []
        self.size = 0
        """Tokens that the model computes."""

    def add(self, example: Example, max_size: int) -> bool:
        """Add an example unless the tree would outgrow `max_size`; says whether it did."""
        inputs, labels = example.inputs_and_labels()
        path = self._shared_path(inputs, labels)
        num_shared = sum(size for _, size in path)
        if self.size + len(inputs) - num_shared > max_size:
            return False
        parent = self._root
        depth = 0
        for parent, size in path:
            if size < len(parent.inputs):
                parent.split(size)
            # Labels are views of an example's own array until another example trains on the same position.
            own = labels[depth : depth + size]
            parent.labels = np.where(own != IGNORE_INDEX, own, parent.labels)
            depth += size
        if num_shared < len(inputs):
            parent.add(_Branch(inputs[num_shared:], labels[num_shared:]))
        self.size += len(inputs) - num_shared
        self._examples.append(example)
        return True

    def pack(self) -> Pack:
        """Lay the tree out depth first."""
        inputs: list[Int32s] = []
        labels: list[Int32s] = []
        positions: list[Int32s] = []
        ends: list[int] = []
        sizes: list[int] = []
        self._lay_out(inputs, labels, positions, ends, sizes)
        return Pack(
            input_ids=np.concatenate(inputs),
            position_ids=np.concatenate(positions),
            labels=np.concatenate(labels),
            subtree_end=np.repeat(np.array(ends, np.int32), sizes),
            num_trained=sum(len(example.completion_ids) for example in self._examples),
            num_tokens=sum(example.num_tokens - example.num_counted for example in self._examples),
            row_ids=[example.row_id for example in self._examples],
        )

    def _lay_out(
        self,
        inputs: list[Int32s],
        labels: list[Int32s],
        positions: list[Int32s],
        ends: list[int],
        sizes: list[int],
    ) -> None:
        """Append each branch in turn; all positions of a branch end where the last branch behind it does."""
        index = 0
        open_branches: list[tuple[int, int]] = []
        stack = [(branch, 0) for branch in _children_reversed(self._root)]
        while stack:
            branch, depth = stack.pop()
            while open_branches and open_branches[-1][1] >= depth:
                ends[open_branches.pop()[0]] = index
            open_branches.append((len(ends), depth))
            ends.append(0)
            size = len(branch.inputs)
            sizes.append(size)
            inputs.append(branch.inputs)
            labels.append(branch.labels)
            positions.append(np.arange(depth, depth + size, dtype=np.int32))
            index += size
            stack += [(behind, depth + size) for behind in _children_reversed(branch)]
        for number, _ in open_branches:
            ends[number] = index

    def _shared_path(self, inputs: Int32s, labels: Int32s) -> list[tuple[_Branch, int]]:
        """(branch, shared positions) from the root on; only the last may be shared in part."""
        path: list[tuple[_Branch, int]] = []
        branch, depth = self._root, 0
        while depth < len(inputs):
            for behind in branch.branches.get(int(inputs[depth]), ()):
                if size := behind.num_shared(inputs[depth:], labels[depth:]):
                    break
            else:
                return path
            path.append((behind, size))
            depth += size
            if size < len(behind.inputs):
                return path
            branch = behind
        return path


def _children_reversed(branch: _Branch) -> list[_Branch]:
    """Branches in reverse order, as a stack wants them."""
    return [behind for twins in branch.branches.values() for behind in twins][::-1]


def pack_examples(examples: Iterable[Example], pack_tokens: int) -> Iterator[Pack]:
    """Fill trees of at most `pack_tokens` in the order given; every example lands in exactly one.

    Raises:
        ValueError: an example is longer than a pack.
    """
    tree = PrefixTree()
    for example in examples:
        if example.num_inputs > pack_tokens:
            raise ValueError(f"row {example.row_id} has {example.num_tokens} tokens, a pack only {pack_tokens}")
        if not tree.add(example, pack_tokens):
            yield tree.pack()
            tree = PrefixTree()
            tree.add(example, pack_tokens)
    if tree.size:
        yield tree.pack()


def empty_pack() -> Pack:
    """A pack in which nothing is trained, for a rank that has no other."""
    zero = np.zeros(1, np.int32)
    return Pack(
        input_ids=zero,
        position_ids=zero,
        labels=zero + IGNORE_INDEX,
        subtree_end=zero + 1,
        num_trained=0,
        num_tokens=0,
        row_ids=[],
    )
