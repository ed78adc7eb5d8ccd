"""The table of row formats: a record -> a triple.

To add a format, write its parse function here or in a module beside this one (such as `chat_rows.py`), add an entry to
`_FORMATS`, and add its name and columns to `SourceConfig.format` and `ColumnName` in `config/data.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from instruct_ray.config.data import ColumnName, SourceConfig
from instruct_ray.data.sources.chat_rows import parse_chat, parse_chat_prompt
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_fields import RowFields, check_text, short_repr
from instruct_ray.data.sources.tool_rows import parse_messages
from instruct_ray.data.sources.triple import Triple
from instruct_ray.data.sources.unsupported_keys import UNSUPPORTED_COLUMNS, check_columns, is_empty

# Whether the completion of an unpaired preference row (TRL) is a good one.
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class RowFormat:
    """How rows of one format are recognized and parsed."""

    name: str
    """The value of `format` in the config."""
    key_column: ColumnName
    """Column that a row of this format must have. `auto` takes the first format whose key column is not empty."""
    other_columns: tuple[ColumnName, ...]
    parse: Callable[[RowFields, str, bool], Triple]
    """`parse(fields, row_id, needs_output)` returns the triple or raises a `RowError`. Without `needs_output`, the
    answer is not checked and the output is empty."""


def parse_row(row: Any, default_id: str, source: SourceConfig, *, needs_output: bool = True) -> Triple:
    """Parse the value of a record; without `needs_output` its answer is ignored and the triple has none.

    Raises:
        RowError: it is not an object, a field is missing, not text, or empty, or it has a key that can't be trained on;
            names the field.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not_an_object", f"is {short_repr(row)}, not an object with fields such as instruction")
    fields = RowFields(row, source.columns)
    row_id = _read_id(fields, default_id)
    check_columns(row, frozenset(source.columns.values()))
    row_format = _detect_format(fields) if source.format == "auto" else ROW_FORMATS[source.format]
    has_tools = "tools" in source.columns or "tools" not in source.columns.values()
    if row_format is not MESSAGES and has_tools and not is_empty(fields["tools"]):
        raise RowError("unsupported_key", f"has {fields.name('tools')}, which only rows with messages can have")
    return row_format.parse(fields, row_id, needs_output)


def find_row_columns(source: SourceConfig) -> frozenset[str]:
    """Return the source's names of all columns that decide what becomes of a row."""
    columns: set[ColumnName] = {"id"}
    for row_format in _FORMATS:
        columns |= {row_format.key_column, *row_format.other_columns}
    return frozenset(source.columns.get(column, column) for column in columns) | {*UNSUPPORTED_COLUMNS, LABEL_COLUMN}


def find_required_columns(source: SourceConfig) -> frozenset[str]:
    """Return the source's names of the columns that rows of some format can't do without."""
    columns: set[ColumnName] = {"output", "completion", *(row_format.key_column for row_format in _FORMATS)}
    return frozenset(source.columns.get(column, column) for column in columns)


def _detect_format(fields: RowFields) -> RowFormat:
    values = [(row_format, fields[row_format.key_column]) for row_format in _FORMATS]
    # A key column that is empty decides only if no other format has one.
    present = [row_format for row_format, value in values if value is not None]
    filled = [row_format for row_format, value in values if not is_empty(value)]
    return next(iter(filled or present), TRIPLES)


def _read_id(fields: RowFields, default: str) -> str:
    value = fields["id"]
    # Nothing depends on the id, so one of another type, such as MongoDB's objects, does not matter.
    if not isinstance(value, str | int | float) or value == "":
        return default
    return check_text(str(value), fields.name("id"))


def _parse_triple(fields: RowFields, row_id: str, needs_output: bool) -> Triple:
    return Triple(
        row_id,
        fields.require_text("instruction", "nothing to ask"),
        fields.optional_text("input"),
        fields.require_text("output", "nothing to train on") if needs_output else "",
        fields.optional_text("system") or None,
        _parse_history(fields),
    )


def _parse_history(fields: RowFields) -> tuple[tuple[str, str], ...]:
    turns, name = fields["history"], fields.name("history")
    # The history of a CSV row without one is an empty cell.
    if turns is None or turns == "":
        return ()
    if not isinstance(turns, list) or any(not isinstance(turn, list | tuple) or len(turn) != 2 for turn in turns):
        raise RowError("wrong_type", f"has a {name} that is not a list of [user, assistant] pairs")
    for turn in turns:
        for text in turn:
            if not check_text(text, name).strip():
                raise RowError("empty_field", f"has an empty turn in {name}")
    return tuple((user, assistant) for user, assistant in turns)


def _parse_prompt_completion(fields: RowFields, row_id: str, needs_output: bool) -> Triple:
    if needs_output and fields.get_raw(LABEL_COLUMN) is False:
        raise RowError("unsupported_key", f"has {LABEL_COLUMN} false: a completion that is not wanted; remove the row")
    if isinstance(fields["prompt"], list):
        return parse_chat_prompt(fields, row_id, needs_output)
    return Triple(
        row_id,
        fields.require_text("prompt", "nothing to ask"),
        "",
        fields.require_text("completion", "nothing to train on") if needs_output else "",
        fields.optional_text("system") or None,
    )


TRIPLES = RowFormat("triples", "instruction", ("input", "output", "system", "history"), _parse_triple)
MESSAGES = RowFormat("messages", "messages", ("system", "tools"), parse_messages)
# In the order in which `auto` tries them. Chats are first: their rows may have an `instruction` column too. Prompts are
# last: rows of all other formats may have a `prompt` column too.
_FORMATS = (
    MESSAGES,
    RowFormat("sharegpt", "conversations", ("system",), partial(parse_chat, column="conversations")),
    TRIPLES,
    RowFormat("prompt_completion", "prompt", ("completion", "system"), _parse_prompt_completion),
)
ROW_FORMATS = {row_format.name: row_format for row_format in _FORMATS}
