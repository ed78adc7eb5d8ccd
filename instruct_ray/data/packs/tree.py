"""Examples -> packs: prefix trees of examples, so that a token shared by several examples is computed once. Pure.

A pack stores its tree in depth-first order, and each token has the index just past its subtree:

    query i attends to key j   <=>   j <= i < subtree_end[j]

So a token attends to the path from the root to itself, which is its own example, and to nothing else in the pack.
"""

from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np

from instruct_ray.data.example import IGNORE_INDEX, Example, Int32s


class Pack(TypedDict):
    """One row of a packed data set; the first four fields have one entry per token that the model reads."""

    input_ids: Int32s
    position_ids: Int32s
    """Distance from the root: positions continue along each branch."""
    labels: Int32s
    """The target token of this position; -100 where there is none."""
    subtree_end: Int32s
    """Index just past the last token that attends to this one."""
    num_trained: int
    """Target tokens."""
    num_tokens: int
    """Tokens of the rows, unpacked and unpadded."""
    row_ids: list[str]


class _Branch:
    """A sequence of positions without a fork, and its child branches by their first token."""

    __slots__ = ("children", "inputs", "labels")

    def __init__(self, inputs: Int32s, labels: Int32s) -> None:
        self.inputs, self.labels = inputs, labels
        self.children: dict[int, list[_Branch]] = {}

    def num_shared(self, inputs: Int32s, labels: Int32s) -> int:
        """Count the leading positions that an example can share: equal tokens, and a target in at most one of them."""
        size = min(len(self.inputs), len(inputs))
        differs = self.inputs[:size] != inputs[:size]
        differs |= (self.labels[:size] != IGNORE_INDEX) & (labels[:size] != IGNORE_INDEX)
        first = int(differs.argmax())
        return first if differs[first] else size

    def add_child(self, branch: "_Branch") -> None:
        self.children.setdefault(int(branch.inputs[0]), []).append(branch)

    def split(self, size: int) -> None:
        """Keep the first `size` positions and move the rest into a child."""
        tail = _Branch(self.inputs[size:], self.labels[size:])
        tail.children = self.children
        self.inputs, self.labels, self.children = self.inputs[:size], self.labels[:size], {}
        self.add_child(tail)


class PrefixTree:
    """A prefix tree of examples.

    Examples with the same path to a position share it as long as at most one of them has a target there, since a
    position has one label.
    """

    def __init__(self) -> None:
        self._root = _Branch(np.empty(0, np.int32), np.empty(0, np.int32))
        self._examples: list[Example] = []
        self.size = 0
        """Positions in the tree: the tokens that the model computes."""

    def add(self, example: Example, max_size: int) -> bool:
        """Add an example unless the tree would exceed `max_size`; returns whether it was added."""
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
            # Not in place: the labels are a view of the array of the example that created the branch.
            new_labels = labels[depth : depth + size]
            parent.labels = np.where(new_labels != IGNORE_INDEX, new_labels, parent.labels)
            depth += size
        if num_shared < len(inputs):
            parent.add_child(_Branch(inputs[num_shared:], labels[num_shared:]))
        self.size += len(inputs) - num_shared
        self._examples.append(example)
        return True

    def to_pack(self) -> Pack:
        """Store the tree in depth-first order."""
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
        """Append the branches in depth-first order; all positions of a branch have the same subtree end."""
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
            stack += [(child, depth + size) for child in _children_reversed(branch)]
        for number, _ in open_branches:
            ends[number] = index

    def _shared_path(self, inputs: Int32s, labels: Int32s) -> list[tuple[_Branch, int]]:
        """Find (branch, shared positions) from the root down; only the last branch may be shared in part."""
        path: list[tuple[_Branch, int]] = []
        branch, depth = self._root, 0
        while depth < len(inputs):
            for child in branch.children.get(int(inputs[depth]), ()):
                if size := child.num_shared(inputs[depth:], labels[depth:]):
                    break
            else:
                return path
            path.append((child, size))
            depth += size
            if size < len(child.inputs):
                return path
            branch = child
        return path


def _children_reversed(branch: _Branch) -> list[_Branch]:
    """The children of a branch in the order in which a stack takes them."""
    return [child for same_token in branch.children.values() for child in same_token][::-1]


def pack_examples(examples: Iterable[Example], pack_tokens: int) -> Iterator[Pack]:
    """Fill packs of at most `pack_tokens` with examples in the given order; each example goes into exactly one pack.

    Raises:
        ValueError: an example is longer than a pack.
    """
    tree = PrefixTree()
    for example in examples:
        if example.num_inputs > pack_tokens:
            raise ValueError(f"row {example.row_id} has {example.num_tokens} tokens, a pack only {pack_tokens}")
        if not tree.add(example, pack_tokens):
            yield tree.to_pack()
            tree = PrefixTree()
            tree.add(example, pack_tokens)
    if tree.size:
        yield tree.to_pack()


def empty_pack() -> Pack:
    """Make a pack of one token without a target, for a rank that has no pack at a step."""
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
