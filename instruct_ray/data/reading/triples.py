"""A record -> a triple: the three row formats, and what is wrong with a row, in words."""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from instruct_ray.config import ColumnName, SourceConfig
from instruct_ray.data.reading.records import RowError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
COLUMNS: tuple[ColumnName, ...] = get_args(ColumnName)
MAX_SHOWN_KEYS = 6
HeldOutSide = Literal["validation", "test"]
Side = HeldOutSide | Literal["train"]


@dataclass(frozen=True)
class Triple:
    """One row: an instruction, what it is applied to (may be empty), and the answer; in a chat, the last of several.

    A chat of messages is held in the same form: its last question is the instruction, what was said before the history.
    """

    id: str
    instruction: str
    input: str
    output: str
    system: str | None = None
    """System message of this row, in place of `data.system_prompt`."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns; their answers are trained as well."""

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> "Triple":
        """The inverse of `dump`."""
        history = tuple((question, answer) for question, answer in values["history"])
        return cls(**{**values, "history": history})

    def dump(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        return asdict(self)

    @property
    def split_key(self) -> str:
        """What decides the side of the split: the input, so that a reworded instruction can't leak it; of a chat, all
        that was asked."""
        asked = [question for question, _ in self.history] + [self.input or self.instruction]
        return " ".join(" ".join(asked).casefold().split())

    @property
    def group(self) -> tuple[str, str]:
        """Rows of a group share their rendered text up to the input."""
        return self.system or "", self.instruction if self.input and not self.history else ""

    @property
    def content_digest(self) -> bytes:
        """128 bits over everything that is trained on, equal for exact duplicates only."""
        turns = [part for turn in self.history for part in turn]
        parts = [self.system or "", *turns, self.instruction, self.input, self.output]
        # With their lengths, so that no text can pass for two.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def side(self, test_fraction: float, validation_fraction: float = 0.0) -> Side:
        """Where the row goes, by a hash of `split_key`: the same on every machine and for every order of the rows. What
        is a test row does not depend on how many are for validation."""
        bucket = int.from_bytes(hashlib.sha256(self.split_key.encode()).digest()[:8], "big") / 2**64
        if bucket < test_fraction:
            return "test"
        return "validation" if bucket < test_fraction + validation_fraction else "train"


def columns_of(source: SourceConfig) -> frozenset[str]:
    """The source's columns that a triple is made of."""
    return frozenset(source.columns.get(name, name) for name in COLUMNS)


def parse(row: Any, default_id: str, source: SourceConfig, *, needs_output: bool = True) -> Triple:
    """A record's value -> a triple; without `needs_output` an answer is not looked at, and the triple's is empty.

    Raises:
        RowError: it is no object, or a field is missing, not text, or empty; says which.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not_an_object", f"is {_shown(row)}, not an object with instruction, input and output")
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
        raise RowError("roles", f"has a turn of {_shown(role)} in {name}; known are {', '.join(sorted(ROLES))}")
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
        raise RowError("wrong_type", f"has {where}{name} that is {_shown(value)}, which is not text")
    if "\x00" in value:
        raise RowError("control_character", f"has a NUL character in {where}{name}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(
                "not_unicode", f"has half a surrogate pair in {where}{name}, which is no character"
            ) from None


def _shown(value: Any) -> str:
    """A value in a few words, however large or deep it is."""
    return "null" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
