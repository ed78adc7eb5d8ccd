"""The arms of the comparison: base model zero-shot, base model few-shot, and tuned model, on the same held-out rows."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.data.ledger import trained_row_ids
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.prepare.source_changes import find_run_files
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.row_id import format_row_id
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple


@dataclass(frozen=True)
class Arm:
    """A model and the prompts it answers, one per held-out row."""

    name: str
    model_dir: Path
    prompts: list[list[int]]


def make_arms(
    renderer: Renderer, base_dir: Path, tuned_dir: Path, rows: Sequence[Triple], examples: Sequence[Triple]
) -> list[Arm]:
    """Make the three arms, with all prompts rendered by the contract of the tuned model.

    Args:
        renderer: the renderer of the tuned model.
        base_dir: folder of the base model.
        tuned_dir: folder of the tuned model.
        rows: the held-out rows.
        examples: training rows that the few-shot arm gets as earlier turns of the chat.
    """
    example_turns: list[Message] = []
    for example in examples:
        example_turns += renderer.messages(example.instruction, example.input)
        example_turns.append({"role": "assistant", "content": example.output})
    chats = [renderer.chat(row) for row in rows]
    zero_shot = [renderer.prompt(chat) for chat in chats]
    few_shot = [renderer.prompt(_insert_examples(chat, example_turns)) for chat in chats]
    return [
        Arm("zero_shot", base_dir, zero_shot),
        Arm("few_shot", base_dir, few_shot),
        Arm("tuned", tuned_dir, zero_shot),
    ]


def choose_few_shot_examples(run: OpenRun) -> list[Triple]:
    """Choose `evidence.num_few_shot` training rows by a seeded hash, with as many different outputs as possible."""
    count, seed = run.config.evidence.num_few_shot, run.config.run.seed

    def rank(row: Triple) -> str:
        return hashlib.sha256(f"{seed}:{row.id}".encode()).hexdigest()

    # First one row per output: examples with the same output would teach the model that output.
    best_by_output: dict[str, Triple] = {}
    for row in _read_training_rows(run):
        if row.output not in best_by_output or rank(row) < rank(best_by_output[row.output]):
            best_by_output[row.output] = row
    examples = heapq.nsmallest(count, best_by_output.values(), key=rank)
    if len(examples) < count:
        chosen_ids = {row.id for row in examples}
        remaining = (row for row in _read_training_rows(run) if row.id not in chosen_ids)
        examples += heapq.nsmallest(count - len(examples), remaining, key=rank)
    return examples


def _insert_examples(chat: list[Message], example_turns: list[Message]) -> list[Message]:
    """Insert the examples after the system message of a chat, if it has one, and before its other messages."""
    start = 1 if chat[0]["role"] == "system" else 0
    return [*chat[:start], *example_turns, *chat[start:]]


def _read_training_rows(run: OpenRun) -> Iterator[Triple]:
    """Read the rows that the model was trained on, from the source files."""
    row_ids = trained_row_ids(run.packs.path)
    for chunk in split_into_chunks(find_run_files(run.config)):
        for record in read_records(chunk, run.config.data):
            row_id = format_row_id(chunk.file.number, record.position)
            if row_id in row_ids:
                yield parse_row(record.value, row_id, run.config.data.sources[chunk.file.source])
