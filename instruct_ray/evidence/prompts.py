"""The prompts of the arms: the row alone, with examples as earlier turns, or with passages of documents. Pure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

T = TypeVar("T")

PASSAGES_HEADER = "These passages may help:"


def few_shot_counts(evidence: EvidenceConfig) -> tuple[int, ...]:
    """The number of examples of each few-shot arm."""
    counts = evidence.num_few_shot if isinstance(evidence.num_few_shot, tuple) else (evidence.num_few_shot,)
    return tuple(dict.fromkeys(count for count in counts if count))


@contextmanager
def name_rejected_prompt(arm: str, row: Triple, remedy: str) -> Iterator[None]:
    """Name arm, row and remedy in the error of a prompt that the tokenizer or the chat template rejects."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{arm}: the prompt of test row {row.id}: {error}; {remedy}") from None


def zero_shot_prompts(renderer: Renderer, rows: Sequence[Triple], arm: str, remedy: str) -> list[list[int]]:
    """The prompt of each row as in training.

    Raises:
        InputError: one is rejected; names the arm, the row and the remedy.
    """
    prompts = []
    for row, prompt in zip(rows, renderer.row_prompts(rows), strict=True):
        if isinstance(prompt, RowError):
            raise InputError(f"{arm}: the prompt of test row {row.id}: {prompt.detail}; {remedy}")
        prompts.append(prompt)
    return prompts


def few_shot_prompt(renderer: Renderer, row: Triple, examples: Sequence[Triple]) -> list[int]:
    """The prompt of a row with examples as earlier turns of the chat: the best one comes last, next to the row.

    An example's earlier turns come with it. Its own system message does not: a chat has one, that of the row.
    """
    turns: list[Message] = []
    for example in reversed(examples):
        turns += [turn for turn in renderer.chat(example) if turn["role"] != "system"]
        turns.append(renderer.answer(example))
    chat = renderer.chat(row)
    start = 1 if chat[0]["role"] == "system" else 0
    return renderer.prompt([*chat[:start], *turns, *chat[start:]], row.tools)


def passages_prompt(renderer: Renderer, row: Triple, passages: Sequence[str]) -> list[int]:
    """The prompt of a row with passages before its last message."""
    chat = renderer.chat(row)
    if passages:
        text = "\n\n".join([PASSAGES_HEADER, *passages, chat[-1]["content"]])
        chat = [*chat[:-1], {**chat[-1], "content": text}]
    return renderer.prompt(chat, row.tools)


def fit_to_context(
    make_prompt: Callable[[Sequence[T]], list[int]], additions: Sequence[T], max_tokens: int
) -> tuple[list[int], int]:
    """The prompt with as many additions as leave it within `max_tokens`, and their number.

    One that does not fit is left out, and the next one tried.

    Args:
        make_prompt: makes the prompt with some additions, the best ones first.
        additions: the best ones first.
        max_tokens: limit of the prompt; one without additions may exceed it.
    """
    prompt = make_prompt(additions)
    if len(prompt) <= max_tokens:
        return prompt, len(additions)
    kept, prompt = list[T](), make_prompt([])
    for addition in additions:
        longer = make_prompt([*kept, addition])
        if len(longer) <= max_tokens:
            kept, prompt = [*kept, addition], longer
    return prompt, len(kept)
