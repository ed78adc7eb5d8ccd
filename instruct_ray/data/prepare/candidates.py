"""The training rows that few-shot examples are chosen from: a pool of bounded size, with many different outputs.

Each chunk's task offers its best rows. Which of these are trained on is known after the second pass; then the pool is
written to the run's folder, so that `evaluate` reads no sources.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.data.sources.triple import Triple

# Name in the unfinished folder; the file is moved to the run's own path at the end.
CANDIDATES_FILE = "few_shot.jsonl"
POOL_ROWS = 2000
# More rows are offered than the pool has, since some turn out to be duplicates.
NUM_OFFERED = 4 * POOL_ROWS
MIN_OFFERED_PER_CHUNK = 16
# A longer row makes no example.
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Candidate:
    """A training row that may become an example, without its text."""

    row_id: str
    rank: str
    """Seeded hash of the row: a random order."""
    output: bytes
    """Digest of the output."""


class CandidatePool:
    """The best rows of all that were added, with their texts: one row per output first, then others, both by rank."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._seed = limit, seed
        self._rows: dict[str, tuple[Candidate, Triple]] = {}

    def add(self, row_id: str, triple: Triple) -> None:
        """Add a row, unless it is too long for an example."""
        if triple.num_characters > MAX_CHARACTERS:
            return
        self._rows[row_id] = (rank_row(row_id, triple, self._seed), triple)
        if len(self._rows) >= 2 * self._limit:
            self._rows = {one.row_id: self._rows[one.row_id] for one in self.best()}

    def best(self) -> list[Candidate]:
        """The best rows, at most as many as the limit, best first."""
        return choose_best([candidate for candidate, _ in self._rows.values()], self._limit)

    def triples(self) -> list[tuple[Candidate, Triple]]:
        """The best rows with their texts, best first."""
        return [self._rows[candidate.row_id] for candidate in self.best()]


def rank_row(row_id: str, triple: Triple, seed: int) -> Candidate:
    """The place of a row in the random order of a seed."""
    rank = hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest()
    return Candidate(row_id, rank, hashlib.blake2b(triple.output.encode(), digest_size=8).digest())


def choose_best(candidates: Iterable[Candidate], limit: int) -> list[Candidate]:
    """The best candidates: the first row of each output, then the other rows, both by rank.

    Examples with the same output would teach the model that output.
    """
    first: list[Candidate] = []
    others: list[Candidate] = []
    outputs: set[bytes] = set()
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
        (others if candidate.output in outputs else first).append(candidate)
        outputs.add(candidate.output)
    return [*first, *others][:limit]


def num_offered(num_chunks: int) -> int:
    """Rows that each of the chunks offers."""
    return max(MIN_OFFERED_PER_CHUNK, -(-NUM_OFFERED // num_chunks))


def write_offered(path: Path, pool: CandidatePool) -> list[Candidate]:
    """Write the rows that a chunk offers, and return them without their texts."""
    offered = pool.triples()
    with path.open("w") as file:
        for candidate, triple in offered:
            file.write(json.dumps({"row_id": candidate.row_id, **triple.dump()}, ensure_ascii=False) + "\n")
    return [candidate for candidate, _ in offered]


def write_pool(shuffle_dir: Path, path: Path, candidates: Sequence[Candidate], trained_ids: set[str]) -> None:
    """Write the pool, best first, from what the chunks offered.

    Args:
        shuffle_dir: the folder of the offered rows.
        path: the file to write.
        candidates: the rows that all chunks offered.
        trained_ids: the ids of those that are trained on.
    """
    pool = choose_best((candidate for candidate in candidates if candidate.row_id in trained_ids), POOL_ROWS)
    places = {candidate.row_id: place for place, candidate in enumerate(pool)}
    lines = [""] * len(pool)
    for offered in sorted(shuffle_dir.glob("offered-*.jsonl")):
        with offered.open(newline="\n") as file:
            for line in file:
                values = json.loads(line)
                place = places.get(values.pop("row_id"))
                if place is not None:
                    lines[place] = json.dumps(values, ensure_ascii=False) + "\n"
    with path.open("w") as file:
        file.writelines(lines)


def read_pool(path: Path) -> list[Triple]:
    """Read the pool of a run, best first."""
    with path.open(newline="\n") as file:
        return [Triple.load(json.loads(line)) for line in file]
