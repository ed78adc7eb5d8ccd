"""The ways to answer a held-out row: the base asked plainly, the base shown examples, the tuned model."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config import Config
from instruct_ray.data.contract import Message, Renderer
from instruct_ray.data.triples import Triple, parse, read_rows


@dataclass(frozen=True)
class Arm:
    """One way to answer: a model and the prompts it gets."""

    name: str
    folder: Path
    prompts: list[list[int]]


def make_arms(
    renderer: Renderer, base: Path, tuned: Path, rows: Sequence[Triple], examples: Sequence[Triple]
) -> list[Arm]:
    """The three arms over the same rows, every prompt rendered by the contract that the model was trained with."""
    shown: list[Message] = []
    for example in examples:
        shown += renderer.messages(example.instruction, example.input)
        shown.append({"role": "assistant", "content": example.output})
    plain = [renderer.prompt(renderer.messages(row.instruction, row.input)) for row in rows]
    few_shot = [renderer.prompt([*shown, *renderer.messages(row.instruction, row.input)]) for row in rows]
    return [Arm("zero_shot", base, plain), Arm("few_shot", base, few_shot), Arm("tuned", tuned, plain)]


def choose_examples(config: Config) -> list[Triple]:
    """`evidence.num_few_shot` training rows by a seeded hash, with as many different outputs as there can be."""
    count = config.evidence.num_few_shot

    def rank(row: Triple) -> str:
        return hashlib.sha256(f"{config.run.seed}:{row.id}".encode()).hexdigest()

    # One candidate per output first: examples that all show the same answer teach that answer.
    best: dict[str, Triple] = {}
    for row in _training_rows(config):
        if row.output not in best or rank(row) < rank(best[row.output]):
            best[row.output] = row
    chosen = heapq.nsmallest(count, best.values(), key=rank)
    if len(chosen) < count:
        taken = {row.id for row in chosen}
        others = (row for row in _training_rows(config) if row.id not in taken)
        chosen += heapq.nsmallest(count - len(chosen), others, key=rank)
    return chosen


def _training_rows(config: Config) -> Iterator[Triple]:
    for number, source in enumerate(config.data.sources):
        for position, row in read_rows(source):
            triple = parse(row, f"{number}:{position}")
            if not triple.is_test(config.data.test_fraction):
                yield triple
