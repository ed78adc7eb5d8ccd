"""Chats as lists of turns: OpenAI's messages, ShareGPT's conversations, and TRL's prompts with a completion."""

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
    messages, name = _parse_turns(fields, column), fields.name(column)
    system = _take_system(messages, fields)
    if not needs_output:
        if messages and messages[-1][0] == "assistant":
            messages.pop()
        messages.append(("assistant", ""))
    _check_roles([role for role, _ in messages], name)
    _check_not_empty(messages if needs_output else messages[:-1], name)
    return _make_triple(row_id, system, messages)


def parse_chat_prompt(fields: RowFields, row_id: str, needs_output: bool) -> Triple:
    """Parse the turns in `prompt`, up to the last question, and the one in `completion`, its answer.

    A `system` column is used if the first turn of the prompt is not a system message.

    Raises:
        RowError: the turns can't be trained on.
    """
    messages, name = _parse_turns(fields, "prompt"), fields.name("prompt")
    system = _take_system(messages, fields)
    if not messages or messages[-1][0] != "user":
        raise RowError("roles", f"has {name} whose last turn is not the user's: nothing to ask")
    messages.append(_parse_completion(fields) if needs_output else ("assistant", ""))
    _check_roles([role for role, _ in messages], name)
    _check_not_empty(messages[:-1], name)
    return _make_triple(row_id, system, messages)


def _parse_completion(fields: RowFields) -> tuple[str, str]:
    """Return the only turn in `completion`."""
    messages, name = _parse_turns(fields, "completion"), fields.name("completion")
    if [role for role, _ in messages] != ["assistant"]:
        raise RowError("roles", f"has {name} that is not one turn, the assistant's")
    _check_not_empty(messages, name)
    return messages[0]


def _parse_turns(fields: RowFields, column: ColumnName) -> list[tuple[str, str]]:
    """Return (role, text) of each turn in a column."""
    turns, name = fields.require(column), fields.name(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is not a list of turns")
    return [_parse_turn(turn, name) for turn in turns]


def _take_system(messages: list[tuple[str, str]], fields: RowFields) -> str:
    """Remove a system message from the start of a chat; returns its text, without one that of the `system` column."""
    system = fields.optional_text("system")
    return messages.pop(0)[1] if messages and messages[0][0] == "system" else system


def _make_triple(row_id: str, system: str, messages: Sequence[tuple[str, str]]) -> Triple:
    """Make the triple of a chat whose roles were checked."""
    texts = [text for _, text in messages]
    history = tuple(zip(texts[:-2:2], texts[1:-2:2], strict=True))
    return Triple(row_id, texts[-2], "", texts[-1], system if system.strip() else None, history)


def _check_not_empty(messages: Sequence[tuple[str, str]], name: str) -> None:
    if not all(text.strip() for _, text in messages):
        raise RowError("empty_field", f"has an empty turn in {name}")


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
