"""A tokenized row: the output of rendering and the input of packing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Label of positions without a loss, as in torch and transformers.
IGNORE_INDEX = -100
Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """One answer of a row, tokenized, with the prompt before it."""

    row_id: str
    prompt_ids: Sequence[int] | Int32s
    completion_ids: Sequence[int] | Int32s
    """Tokens of the answer and the stop token."""
    num_counted: int = 0
    """Tokens that are already counted by the example of an earlier answer of the same chat."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt and completion, including the stop token."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_inputs(self) -> int:
        """Number of tokens that the model reads. The stop token is only predicted."""
        return self.num_tokens - 1

    def inputs_and_labels(self) -> tuple[Int32s, Int32s]:
        """Return the tokens to read and the token to predict at each, both of shape (num_inputs,).

        Positions of the prompt have the label IGNORE_INDEX.
        """
        tokens = np.concatenate((self.prompt_ids, self.completion_ids)).astype(np.int32, copy=False)
        labels = tokens[1:].copy()
        labels[: len(self.prompt_ids) - 1] = IGNORE_INDEX
        return tokens[:-1], labels


def build_examples(
    row_id: str, turns: Sequence[tuple[Sequence[int] | Int32s, Sequence[int] | Int32s]]
) -> list[Example]:
    """Build the examples of a row, one for each (prompt, completion) turn.

    In a chat, each prompt repeats the turns before it; those tokens are counted once.
    """
    examples: list[Example] = []
    num_counted = 0
    for turn, (prompt, completion) in enumerate(turns, start=1):
        example_id = row_id if len(turns) == 1 else f"{row_id}/{turn}"
        examples.append(Example(example_id, prompt, completion, num_counted))
        num_counted = len(prompt) + len(completion)
    return examples
