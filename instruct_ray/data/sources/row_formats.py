"""A record -> a triple: the three row formats, and what is wrong with a row, in words."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from instruct_ray.config.data import ColumnName, SourceConfig
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
COLUMNS: tuple[ColumnName, ...] = get_args(ColumnName)
MAX_SHOWN_KEYS = 6


def triple_columns(source: SourceConfig) -> frozenset[str]:
    """The source's columns that a triple is made of."""
    return frozenset(source.columns.get(name, name) for name in COLUMNS)


def parse_row(row: Any, default_id: str, source: SourceConfig, *, needs_output: bool = True) -> Triple:
    """A record's value -> a triple; without `needs_output` an answer is not looked at, and the triple's is empty.

    Raises:
        RowError: it is no object, or a field is missing, not text, or empty; says which.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not_an_object", f"is {_short_repr(row)}, not an object with instruction, input and output")
    fields = _Fields(row, source.columns)
    row_id = _id(fields, default_id)
    if source.format == "messages" or (source.format == "auto" and fields["messages"] is not None):
        return _from_chat(row_id, fields, "messages", needs_output=needs_output)
    if source.format == "sharegpt" or (source.format == "auto" and fields["conversations"] is not None):
        return _from_chat(row_id, fields, "conversations", needs_output=needs_output)
    return Triple(
        row_id,
        fields.text("instruction", "nothing to ask"),
        fields.optional_text("input"),
        fields.text("output", "nothing to train on") if needs_output else "",
        fields.optional_text("system") or None,
        _history(fields),
    )


class _Fields:
    """A row by our names of its columns."""

    __slots__ = ("columns", "row")

    def __init__(self, row: Mapping[str, Any], columns: Mapping[Any, str]) -> None:
        self.row, self.columns = row, columns

    def name(self, ours: ColumnName) -> str:
        """The source's name."""
        return self.columns.get(ours, ours)

    def __getitem__(self, ours: ColumnName) -> Any:
        return self.row.get(self.columns.get(ours, ours) if self.columns else ours)

    def text(self, ours: ColumnName, why_not_empty: str) -> str:
        value = self[ours]
        if value is None:
            raise self.missing(ours)
        _check_text(value, self.name(ours))
        if not value.strip():
            raise RowError("empty_field", f"has an empty {self.name(ours)}: {why_not_empty}")
        return str(value)

    def optional_text(self, ours: ColumnName) -> str:
        value = self[ours]
        if value is None:
            return ""
        _check_text(value, self.name(ours))
        return str(value)

    def missing(self, ours: ColumnName) -> RowError:
        keys = [reprlib.repr(key) for key in self.row]
        shown = ", ".join([*keys[:MAX_SHOWN_KEYS], *(["…"] if len(keys) > MAX_SHOWN_KEYS else [])])
        return RowError(
            "missing_field", f"has no {self.name(ours)}, only {shown}" if keys else f"has no {self.name(ours)}"
        )


def _id(fields: _Fields, default: str) -> str:
    value = fields["id"]
    if value is None or value == "":
        return default
    text = str(value) if isinstance(value, int | float) else value
    _check_text(text, fields.name("id"))
    return str(text)


def _history(fields: _Fields) -> tuple[tuple[str, str], ...]:
    turns, name = fields["history"], fields.name("history")
    # An empty cell of a table is no history.
    if turns is None or turns == "":
        return ()
    if not isinstance(turns, list) or any(not isinstance(turn, list | tuple) or len(turn) != 2 for turn in turns):
        raise RowError("wrong_type", f"has a {name} that is no list of [question, answer] pairs")
    for turn in turns:
        for part in turn:
            _check_text(part, name)
            if not part.strip():
                raise RowError("empty_field", f"has an empty turn in {name}")
    return tuple((question, answer) for question, answer in turns)


def _from_chat(row_id: str, fields: _Fields, column: ColumnName, *, needs_output: bool) -> Triple:
    turns, name = fields[column], fields.name(column)
    if turns is None:
        raise fields.missing(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is no list of turns")
    said = [_turn(turn, name) for turn in turns]
    system = fields.optional_text("system")
    if said and said[0][0] == "system":
        system = said.pop(0)[1]
    if not needs_output:
        said = [*(said[:-1] if said and said[-1][0] == "assistant" else said), ("assistant", "")]
    if not said or said[-1][0] != "assistant":
        raise RowError("no_answer", f"has {name} whose last turn is not the assistant's: nothing to train on")
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise RowError("roles", f"has {name} in which user and assistant do not take turns, the user first")
    texts = [text for _, text in said]
    if not all(text.strip() for text in (texts if needs_output else texts[:-1])):
        raise RowError("empty_field", f"has an empty turn in {name}")
    history = tuple(zip(texts[:-2:2], texts[1:-2:2], strict=True))
    return Triple(row_id, texts[-2], "", texts[-1], system if system.strip() else None, history)


def _turn(turn: Mapping[str, Any], name: str) -> tuple[str, str]:
    """(role, text) of a message ({role, content}) or a ShareGPT turn ({from, value}); tables have None for the rest."""
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise RowError("roles", f"has a turn of {_short_repr(role)} in {name}; known are {', '.join(sorted(ROLES))}")
    if isinstance(content, list):
        content = _joined_parts(content, name)
    _check_text(content, name, "a turn in ")
    return ROLES[role], str(content)


def _joined_parts(parts: Sequence[Any], name: str) -> str:
    """OpenAI's list content: text parts only."""
    if not all(isinstance(part, dict) and part.get("type") == "text" and "text" in part for part in parts):
        raise RowError("wrong_type", f"has a turn in {name} with parts that are not text")
    for part in parts:
        _check_text(part["text"], name, "a turn in ")
    return "".join(part["text"] for part in parts)


def _check_text(value: Any, name: str, where: str = "") -> None:
    if not isinstance(value, str):
        raise RowError("wrong_type", f"has {where}{name} that is {_short_repr(value)}, which is not text")
    if "\x00" in value:
        raise RowError("control_character", f"has a NUL character in {where}{name}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(
                "not_unicode", f"has half a surrogate pair in {where}{name}, which is no character"
            ) from None


def _short_repr(value: Any) -> str:
    """A value in a few words, however large or deep it is."""
    return "null" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
