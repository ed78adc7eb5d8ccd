"""Keys of known row formats that change what a row means, but can't be trained on: a row with one is rejected by name.

Without this, `documents` or `images` would be dropped silently, and the model trained on an answer without them.
`tools`, `tool_calls` and the like are used in `messages`, see `tool_rows.py`, and rejected in rows of other formats.
Keys that are not in these tables are metadata and are ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from instruct_ray.data.sources.records import RowError

# Columns of OpenAI, TRL, LLaMA-Factory and ms-swift rows.
UNSUPPORTED_COLUMNS = (
    "functions", "documents", "chat_template_kwargs",
    "images", "image", "videos", "video", "audios", "audio",
)  # fmt: skip
# Keys of their turns.
UNSUPPORTED_TURN_KEYS = (
    "function_call", "tools", "functions", "documents", "refusal", "annotations",
    "reasoning_content", "reasoning", "reasoning_details", "thinking", "train_detail",
    "images", "image", "videos", "video", "audios", "audio",
)  # fmt: skip
# Keys of turns with tools, which are used in `messages`.
TOOL_TURN_KEYS = ("tool_calls", "tool_call_id", "name")
# Texts of empty values: some data sets store `tools` as JSON.
_EMPTY_TEXTS = ("", "[]", "{}", "null")


def check_columns(row: Mapping[str, Any], used_columns: frozenset[str]) -> None:
    """Check that a row has no value in an unsupported column, apart from columns that our names are mapped to.

    Raises:
        RowError: it has; names the column.
    """
    for column in UNSUPPORTED_COLUMNS:
        if column in row and column not in used_columns and not is_empty(row[column]):
            raise RowError("unsupported_key", f"has {column}, which can't be trained on yet; remove the row or the key")


def check_turn_keys(turn: Mapping[str, Any], name: str, allowed: Sequence[str] = ()) -> None:
    """Check that a turn of the chat in column `name` has no value under an unsupported key, apart from some.

    Raises:
        RowError: it has; names the key.
    """
    for key in (*UNSUPPORTED_TURN_KEYS, *TOOL_TURN_KEYS):
        if key in turn and key not in allowed and not is_empty(turn[key]):
            raise RowError(
                "unsupported_key", f"has a turn with {key} in {name}, which can't be trained on yet; remove the row"
            )


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing. Tables fill up the keys that a row or a turn does not have with nulls."""
    if isinstance(value, str):
        return value.strip() in _EMPTY_TEXTS
    if isinstance(value, dict):
        return all(is_empty(item) for item in value.values())
    return value is None or value == []
