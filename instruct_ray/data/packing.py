"""Examples -> packs: prefix trees of examples, so that a token shared by several is computed once. Pure functions.

A pack lays its tree out depth first, and each token carries the position just past its subtree:

    query i may see key j   <=>   j <= i < subtree_end[j]

which lets a token see the path from the root to itself and nothing else: its own example, whatever else is in the pack.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

IGNORE_INDEX = -100
ROOT = 0


@dataclass(frozen=True)
class Example:
    """A tokenised row."""

    row_id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, the stop token included."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_inputs(self) -> int:
        """Tokens the model reads: the stop token is only predicted, never read."""
        return self.num_tokens - 1

    def positions(self) -> Iterator[tuple[int, int]]:
        """(token read, token trained to be predicted from it or IGNORE_INDEX) of every position."""
        tokens = [*self.prompt_ids, *self.completion_ids]
        num_untrained = len(self.prompt_ids) - 1
        for position, token in enumerate(tokens[:-1]):
            yield token, tokens[position + 1] if position >= num_untrained else IGNORE_INDEX


class Pack(TypedDict):
    """One row of a packed data set; the first four have one entry per token that the model reads."""

    input_ids: list[int]
    position_ids: list[int]
    """Distance from the root: positions continue along each branch."""
    labels: list[int]
    """The token that this position predicts, -100 where nothing is trained."""
    subtree_end: list[int]
    """The position just past the last token that may see this one."""
    num_trained: int
    num_tokens: int
    """What the rows would cost unpacked and unpadded."""
    row_ids: list[str]


class Tree:
    """A prefix tree of examples. A position is shared by examples with the same path to it as long as at most one of
    them trains on it: its label is one token."""

    def __init__(self) -> None:
        self._tokens = [-1]
        self._labels = [IGNORE_INDEX]
        self._children: list[dict[int, list[int]]] = [{}]
        self._examples: list[Example] = []

    @property
    def size(self) -> int:
        """Tokens that the model computes."""
        return len(self._tokens) - 1

    def growth(self, example: Example) -> int:
        """Tokens that the tree would gain by an example."""
        return example.num_inputs - len(self._shared_path(example))

    def add(self, example: Example) -> None:
        """Add an example."""
        path = self._shared_path(example)
        node = path[-1] if path else ROOT
        for depth, (token, label) in enumerate(example.positions()):
            if depth < len(path):
                if label != IGNORE_INDEX:
                    self._labels[path[depth]] = label
            else:
                node = self._append(node, token, label)
        self._examples.append(example)

    def pack(self) -> Pack:
        """Lay the tree out depth first."""
        pack = Pack(
            input_ids=[],
            position_ids=[],
            labels=[],
            subtree_end=[0] * self.size,
            num_trained=sum(len(example.completion_ids) for example in self._examples),
            num_tokens=sum(example.num_tokens for example in self._examples),
            row_ids=[example.row_id for example in self._examples],
        )
        branch: list[int] = []
        stack = [(child, 0) for child in self._descendants(ROOT)]
        while stack:
            node, depth = stack.pop()
            index = len(pack["input_ids"])
            for ended in branch[depth:]:
                pack["subtree_end"][ended] = index
            branch[depth:] = [index]
            pack["input_ids"].append(self._tokens[node])
            pack["position_ids"].append(depth)
            pack["labels"].append(self._labels[node])
            stack += [(child, depth + 1) for child in self._descendants(node)]
        for ended in branch:
            pack["subtree_end"][ended] = self.size
        return pack

    def _shared_path(self, example: Example) -> list[int]:
        """The nodes that an example would share, from the root on."""
        path: list[int] = []
        node = ROOT
        for token, label in example.positions():
            for child in self._children[node].get(token, ()):
                if label == IGNORE_INDEX or self._labels[child] == IGNORE_INDEX:
                    node = child
                    path.append(child)
                    break
            else:
                return path
        return path

    def _append(self, parent: int, token: int, label: int) -> int:
        node = len(self._tokens)
        self._tokens.append(token)
        self._labels.append(label)
        self._children.append({})
        self._children[parent].setdefault(token, []).append(node)
        return node

    def _descendants(self, node: int) -> list[int]:
        """Children in reverse order, as a stack wants them."""
        return [child for twins in self._children[node].values() for child in twins][::-1]


def pack(examples: Iterable[Example], pack_tokens: int) -> Iterator[Pack]:
    """Fill trees of at most `pack_tokens` in the order given; every example lands in exactly one.

    Raises:
        ValueError: an example is longer than a pack.
    """
    tree = Tree()
    for example in examples:
        if example.num_inputs > pack_tokens:
            raise ValueError(f"row {example.row_id} has {example.num_inputs} tokens, a pack only {pack_tokens}")
        if tree.size + tree.growth(example) > pack_tokens:
            yield tree.pack()
            tree = Tree()
        tree.add(example)
    if tree.size:
        yield tree.pack()


def empty_pack() -> Pack:
    """A pack in which nothing is trained, for a rank that has no other."""
    return Pack(
        input_ids=[0], position_ids=[0], labels=[IGNORE_INDEX], subtree_end=[1], num_trained=0, num_tokens=0, row_ids=[]
    )
