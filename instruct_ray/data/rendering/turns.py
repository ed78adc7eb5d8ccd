"""An encoded answer with its prompt, or why a row can't be encoded; the examples of a row."""

from collections.abc import Sequence

from instruct_ray.data.example import Example, build_examples
from instruct_ray.data.rendering.encoding import Encoder
from instruct_ray.data.sources.records import RowError

TokenIds = list[int]
# Prompt and completion.
Turn = tuple[TokenIds, TokenIds]
# Unknown characters that an error names.
MAX_SHOWN_CHARACTERS = 5


def join_turn(prompt: TokenIds | RowError, completion: TokenIds | RowError) -> Turn | RowError:
    """Put prompt and completion together; returns the first error if one has one."""
    if isinstance(prompt, RowError):
        return prompt
    return completion if isinstance(completion, RowError) else (prompt, completion)


def build_row(row_id: str, turns: Sequence[Turn | RowError]) -> list[Example] | RowError:
    """Build the examples of a row, or return its first error."""
    encoded: list[Turn] = []
    for turn in turns:
        if isinstance(turn, RowError):
            return turn
        encoded.append(turn)
    return build_examples(row_id, encoded)


def explain_special(encoder: Encoder, texts: Sequence[str]) -> RowError:
    """Make the error of a chat whose texts became special tokens: that of unknown characters, or others."""
    if unknown := [char for text in texts for char in encoder.unknown_characters(text)]:
        shown = ", ".join(map(repr, unknown[:MAX_SHOWN_CHARACTERS]))
        more = f" and {len(unknown) - MAX_SHOWN_CHARACTERS} more" if len(unknown) > MAX_SHOWN_CHARACTERS else ""
        return RowError("unknown_characters", f"has characters that the tokenizer does not know: {shown}{more}")
    return RowError("special_token", "contains text that the tokenizer or the chat template turns into a special token")
