"""A tokenized answer of a row with its prompt: what rendering makes and packing takes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100
Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """A tokenised answer of a row, with the prompt it follows."""

    row_id: str
    prompt_ids: Sequence[int] | Int32s
    completion_ids: Sequence[int] | Int32s
    num_counted: int = 0
    """Tokens of it that an earlier answer of the same row, a chat, already counts."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion, the stop token included."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_inputs(self) -> int:
        """Tokens the model reads: the stop token is only predicted, never read."""
        return self.num_tokens - 1

    def inputs_and_labels(self) -> tuple[Int32s, Int32s]:
        """(tokens read, token trained to be predicted from each or IGNORE_INDEX); shape (num_inputs,) both."""
        tokens = np.concatenate((self.prompt_ids, self.completion_ids)).astype(np.int32, copy=False)
        labels = tokens[1:].copy()
        labels[: len(self.prompt_ids) - 1] = IGNORE_INDEX
        return tokens[:-1], labels


def build_examples(
    row_id: str, turns: Sequence[tuple[Sequence[int] | Int32s, Sequence[int] | Int32s]]
) -> list[Example]:
    """A row's (prompt, completion) turns -> its examples; those of a chat count what they share once."""
    examples: list[Example] = []
    num_counted = 0
    for turn, (prompt, completion) in enumerate(turns, start=1):
        name = row_id if len(turns) == 1 else f"{row_id}/{turn}"
        examples.append(Example(name, prompt, completion, num_counted))
        num_counted = len(prompt) + len(completion)
    return examples
