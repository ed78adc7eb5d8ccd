"""The ways to answer a held-out row: the base asked plainly, the base shown examples, the tuned model."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.data.ledger import trained_row_ids
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.prepare.pipeline import find_run_files
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple


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


def choose_few_shot_examples(run: OpenRun) -> list[Triple]:
    """`evidence.num_few_shot` training rows by a seeded hash, with as many different outputs as there can be."""
    count, seed = run.config.evidence.num_few_shot, run.config.run.seed

    def rank(row: Triple) -> str:
        return hashlib.sha256(f"{seed}:{row.id}".encode()).hexdigest()

    # One candidate per output first: examples that all show the same answer teach that answer.
    best: dict[str, Triple] = {}
    for row in _training_rows(run):
        if row.output not in best or rank(row) < rank(best[row.output]):
            best[row.output] = row
    chosen = heapq.nsmallest(count, best.values(), key=rank)
    if len(chosen) < count:
        taken = {row.id for row in chosen}
        others = (row for row in _training_rows(run) if row.id not in taken)
        chosen += heapq.nsmallest(count - len(chosen), others, key=rank)
    return chosen


def _with_examples(chat: list[Message], shown: list[Message]) -> list[Message]:
    """Examples come before the chat, behind its system message."""
    first = 1 if chat[0]["role"] == "system" else 0
    return [*chat[:first], *shown, *chat[first:]]


def _training_rows(run: OpenRun) -> Iterator[Triple]:
    trained = trained_row_ids(run.packs.path)
    for chunk in split_into_chunks(find_run_files(run.config)):
        for record in read_records(chunk, run.config.data):
            row_id = f"{chunk.file.number}:{record.position}"
            if row_id in trained:
                yield parse_row(record.value, row_id, run.config.data.sources[chunk.file.source])
