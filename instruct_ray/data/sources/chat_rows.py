"""Chats as lists of turns: OpenAI's messages and ShareGPT's conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

from instruct_ray.config.data import ColumnName
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_fields import RowFields, check_text, short_repr
from instruct_ray.data.sources.triple import Triple

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse_chat(fields: RowFields, row_id: str, needs_output: bool, *, column: ColumnName) -> Triple:
    """Parse the turns in `column`; a `system` column is used if the first turn is not a system message.

    Raises:
        RowError: the turns can't be trained on.
    """
    turns, name = fields.require(column), fields.name(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is not a list of turns")
    messages = [_parse_turn(turn, name) for turn in turns]
    system = fields.optional_text("system")
    if messages and messages[0][0] == "system":
        system = messages.pop(0)[1]
    if not needs_output:
        if messages and messages[-1][0] == "assistant":
            messages.pop()
        messages.append(("assistant", ""))
    _check_roles([role for role, _ in messages], name)
    texts = [text for _, text in messages]
    if not all(text.strip() for text in (texts if needs_output else texts[:-1])):
        raise RowError("empty_field", f"has an empty turn in {name}")
    history = tuple(zip(texts[:-2:2], texts[1:-2:2], strict=True))
    return Triple(row_id, texts[-2], "", texts[-1], system if system.strip() else None, history)


def _check_roles(roles: Sequence[str], name: str) -> None:
    if not roles or roles[-1] != "assistant":
        raise RowError("no_answer", f"has {name} whose last turn is not the assistant's: nothing to train on")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError("roles", f"has {name} whose turns do not alternate user and assistant, starting with user")


def _parse_turn(turn: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return (role, text) of a message ({role, content}) or a ShareGPT turn ({from, value}).

    A turn from a table may have all four keys, of which two are null.
    """
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise RowError("roles", f"has a turn with role {short_repr(role)} in {name}; known roles are {known}")
    if isinstance(content, list):
        return ROLES[role], _join_parts(content, name)
    return ROLES[role], check_text(content, f"a turn in {name}")


def _join_parts(parts: Sequence[Any], name: str) -> str:
    """Join the text parts of OpenAI's list content; other parts are an error."""
    if not all(isinstance(part, dict) and part.get("type") == "text" and "text" in part for part in parts):
        raise RowError("wrong_type", f"has a turn in {name} with parts that are not text")
    return "".join(check_text(part["text"], f"a turn in {name}") for part in parts)
