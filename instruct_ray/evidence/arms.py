"""The ways to answer a held-out row: the base asked plainly, the base shown examples, the tuned model."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config import Config
from instruct_ray.data import ledger, prepare
from instruct_ray.data.reading import readers, sources
from instruct_ray.data.reading.triples import Triple, parse
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer


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
    chats = [renderer.chat(row) for row in rows]
    plain = [renderer.prompt(chat) for chat in chats]
    few_shot = [renderer.prompt(_with_examples(chat, shown)) for chat in chats]
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


def _with_examples(chat: list[Message], shown: list[Message]) -> list[Message]:
    """Examples come before the chat, behind its system message."""
    first = 1 if chat[0]["role"] == "system" else 0
    return [*chat[:first], *shown, *chat[first:]]


def _training_rows(config: Config) -> Iterator[Triple]:
    trained = ledger.trained_row_ids(prepare.find(config).path)
    for chunk in sources.chunks(prepare.find_files(config)):
        for record in readers.read(chunk, config.data):
            row_id = f"{chunk.file.number}:{record.position}"
            if row_id in trained:
                yield parse(record.value, row_id, config.data.sources[chunk.file.source])
