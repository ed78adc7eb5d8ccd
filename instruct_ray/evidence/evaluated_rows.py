"""driver: the held-out rows that the arms answer, each with its group, in bounded memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.data.prepare.split_rule import SplitRule
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

# Groups are sampled with this many times the rows that are wanted, so that whole groups nearly always fill them.
OVERSAMPLING = 2


@dataclass(frozen=True)
class EvaluatedRow:
    """A held-out row and its group."""

    triple: Triple
    group: str
    """Equal for rows that the split keeps together: those with the same input, or prompt where it is a placeholder."""


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows to answer, in the order of the file."""

    rows: tuple[EvaluatedRow, ...]
    num_held_out: int
    """Rows in the file."""

    @property
    def triples(self) -> list[Triple]:
        """The rows without their groups."""
        return [row.triple for row in self.rows]

    @property
    def digest(self) -> str:
        """sha256 of the prompts and outputs of the answered rows, whatever their order and place in the files."""
        content = sorted([row.prompt_key, row.output] for row in self.triples)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_evaluated_rows(path: Path, split_rule: SplitRule, max_rows: int, seed: int) -> EvaluatedRows:
    """Load the held-out rows; if there are more than `max_rows`, a seeded sample of whole groups.

    Raises:
        InputError: there are none.
    """
    num_rows = sum(1 for _ in _read_lines(path))
    if not num_rows:
        raise InputError(f"{path}: no held-out rows to answer; use a higher data.test_fraction under another run.name")
    # Every group has a random place in [0, 1); only those below the limit are kept in memory.
    limit = 1.0 if num_rows <= max_rows else min(1.0, OVERSAMPLING * max_rows / num_rows)
    while not (groups := _read_groups(path, split_rule, limit, seed)):
        # Few and large groups, none of which has a place below the limit.
        limit *= 4
    chosen = _take_groups(groups, max_rows)
    return EvaluatedRows(tuple(row for _, row in sorted(chosen, key=lambda item: item[0])), num_rows)


def hash_group(key: str) -> str:
    """The name of the group of rows with this split key."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _read_groups(path: Path, split_rule: SplitRule, limit: float, seed: int) -> list[list[tuple[int, EvaluatedRow]]]:
    """The groups with a place below the limit, in that order; rows with their numbers in the file."""
    members: dict[float, list[tuple[int, EvaluatedRow]]] = {}
    for number, line in enumerate(_read_lines(path)):
        triple = Triple.load(json.loads(line))
        group = hash_group(split_rule.key(triple))
        if (place := _place(group, seed)) < limit:
            members.setdefault(place, []).append((number, EvaluatedRow(triple, group)))
    return [members[place] for place in sorted(members)]


def _take_groups(groups: Sequence[list[tuple[int, EvaluatedRow]]], max_rows: int) -> list[tuple[int, EvaluatedRow]]:
    """Whole groups, in order, that are at most `max_rows` rows together."""
    chosen: list[tuple[int, EvaluatedRow]] = []
    for members in groups:
        # Not a later and smaller group instead: large groups would be missing from the sample.
        if chosen and len(chosen) + len(members) > max_rows:
            break
        chosen += members
    # A first group that is larger must be cut.
    return chosen[:max_rows]


def _place(group: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _read_lines(path: Path) -> Iterator[str]:
    # Texts may contain other characters that end a line for Python.
    with path.open(newline="\n") as file:
        for line in file:
            if line.strip():
                yield line
