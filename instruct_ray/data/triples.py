"""A record -> a triple: the three row formats, and what is wrong with a row, in words."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instruct_ray.config import SourceConfig
from instruct_ray.data.readers import RowError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


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
        return hashlib.blake2b("\x1e".join(parts).encode(), digest_size=16).digest()

    def is_test(self, fraction: float) -> bool:
        """Whether the row is held out: a hash of `split_key`, so the same on every machine and for every order."""
        bucket = int.from_bytes(hashlib.sha256(self.split_key.encode()).digest()[:8], "big")
        return bucket < fraction * 2**64


def parse(row: Any, default_id: str, source: SourceConfig) -> Triple:
    """A record's value -> a triple.

    Raises:
        RowError: it is no object, or a field is missing, not text, or empty; says which.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not_an_object", f"is {type(row).__name__}, not an object with instruction, input and output")
    columns = source.columns
    values = {ours: row.get(columns.get(ours, ours)) for ours in _FIELDS}
    row_id = default_id if values["id"] is None else str(values["id"])
    format = source.format if source.format != "auto" else _detect(values)
    if format == "triples":
        return _from_triple(row_id, values, columns)
    name = "messages" if format == "messages" else "conversations"
    return _from_chat(row_id, values[name], values["system"], columns.get(name, name))


_FIELDS = ("id", "instruction", "input", "output", "system", "history", "messages", "conversations")


def _detect(values: Mapping[str, Any]) -> str:
    if values["messages"] is not None:
        return "messages"
    return "sharegpt" if values["conversations"] is not None else "triples"


def _from_triple(row_id: str, values: Mapping[str, Any], columns: Mapping[Any, str]) -> Triple:
    def text(field: str, optional: bool = False) -> str:
        name, value = columns.get(field, field), values[field]
        if value is None:
            if optional:
                return ""
            raise RowError("missing_field", f"has no {name}")
        _check_text(name, value)
        if not optional and not value.strip():
            raise RowError("empty_field", f"has an empty {name}: nothing to {'train on' if field == 'output' else 'ask'}")
        return str(value)

    instruction, output = text("instruction"), text("output")
    return Triple(
        row_id,
        instruction,
        text("input", optional=True),
        output,
        text("system", optional=True) or None,
        _history(values["history"], columns.get("history", "history")),
    )


def _history(turns: Any, name: str) -> tuple[tuple[str, str], ...]:
    if turns is None:
        return ()
    if not isinstance(turns, list) or any(not isinstance(turn, list | tuple) or len(turn) != 2 for turn in turns):
        raise RowError("wrong_type", f"has a {name} that is no list of [question, answer] pairs")
    for turn in turns:
        for part in turn:
            _check_text(name, part)
            if not part.strip():
                raise RowError("empty_field", f"has an empty turn in {name}")
    return tuple((question, answer) for question, answer in turns)


def _from_chat(row_id: str, turns: Any, system: Any, name: str) -> Triple:
    if turns is None:
        raise RowError("missing_field", f"has no {name}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is no list of turns")
    texts = [_turn(turn, name) for turn in turns]
    if texts and texts[0][0] == "system":
        system = texts.pop(0)[1]
    if system is not None:
        _check_text("system", system)
    if not texts or texts[-1][0] != "assistant":
        raise RowError("no_answer", f"has {name} whose last turn is not the assistant's: nothing to train on")
    expected = ["user", "assistant"] * (len(texts) // 2)
    if [role for role, _ in texts] != expected:
        raise RowError("roles", f"has {name} in which user and assistant do not take turns, the user first")
    said = [text for _, text in texts]
    return Triple(row_id, said[-2], "", said[-1], system or None, tuple(zip(said[:-2:2], said[1:-2:2], strict=True)))


def _turn(turn: Mapping[str, Any], name: str) -> tuple[str, str]:
    """(role, text) of a message ({role, content}) or a ShareGPT turn ({from, value})."""
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise RowError("roles", f"has a turn of {role!r} in {name}; known are {', '.join(sorted(ROLES))}")
    if isinstance(content, list):
        content = _joined_parts(content, name)
    _check_text(name, content)
    if not content.strip():
        raise RowError("empty_field", f"has an empty turn in {name}")
    return ROLES[role], content


def _joined_parts(parts: Sequence[Any], name: str) -> str:
    """OpenAI's list content: text parts only."""
    if not all(isinstance(part, dict) and part.get("type") == "text" and "text" in part for part in parts):
        raise RowError("wrong_type", f"has a turn in {name} with parts that are not text")
    for part in parts:
        _check_text(name, part["text"])
    return "".join(part["text"] for part in parts)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise RowError("wrong_type", f"has {name} = {str(value)[:80]!r}, which is not text")
    if "\x00" in value:
        raise RowError("control_character", f"has a NUL character in {name}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError("not_unicode", f"has bytes or half a surrogate pair in {name} that are no character") from None
