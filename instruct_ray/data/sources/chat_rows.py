"""Chats as lists of turns: OpenAI's messages, ShareGPT's conversations, and TRL's prompts with a completion."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instruct_ray.config.data import ColumnName
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_fields import RowFields, check_text, short_repr
from instruct_ray.data.sources.triple import Triple
from instruct_ray.data.sources.unsupported_keys import check_turn_keys

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Keys of a turn that exclude it from training: OpenAI's, and those of axolotl and ms-swift.
TARGET_KEYS = ("weight", "train", "training", "loss")


class Turn(NamedTuple):
    """One message of a chat."""

    role: str
    text: str
    is_target: bool = True
    """False if the row excludes this turn from training, as OpenAI's `weight: 0` does."""


def parse_chat(fields: RowFields, row_id: str, needs_output: bool, *, column: ColumnName) -> Triple:
    """Parse the turns in `column`; a `system` column is used if the first turn is not a system message.

    Raises:
        RowError: the turns can't be trained on.
    """
    turns, name = _parse_turns(fields, column), fields.name(column)
    system = _take_system(turns, fields)
    if not needs_output:
        if turns and turns[-1].role == "assistant":
            turns.pop()
        turns.append(Turn("assistant", ""))
    _check_roles([turn.role for turn in turns], name)
    _check_not_empty(turns if needs_output else turns[:-1], name)
    return _make_triple(row_id, system, turns, name)


def parse_chat_prompt(fields: RowFields, row_id: str, needs_output: bool) -> Triple:
    """Parse the turns in `prompt`, up to the last question, and the one in `completion`, its answer.

    A `system` column is used if the first turn of the prompt is not a system message.

    Raises:
        RowError: the turns can't be trained on.
    """
    turns, name = _parse_turns(fields, "prompt"), fields.name("prompt")
    system = _take_system(turns, fields)
    if not turns or turns[-1].role != "user":
        raise RowError("roles", f"has {name} whose last turn is not the user's: nothing to ask")
    turns.append(_parse_completion(fields) if needs_output else Turn("assistant", ""))
    _check_roles([turn.role for turn in turns], name)
    _check_not_empty(turns[:-1], name)
    return _make_triple(row_id, system, turns, name)


def _parse_completion(fields: RowFields) -> Turn:
    """Return the only turn in `completion`."""
    turns, name = _parse_turns(fields, "completion"), fields.name("completion")
    if [turn.role for turn in turns] != ["assistant"]:
        raise RowError("roles", f"has {name} that is not one turn, the assistant's")
    _check_not_empty(turns, name)
    return turns[0]


def _parse_turns(fields: RowFields, column: ColumnName) -> list[Turn]:
    turns, name = fields.require(column), fields.name(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is not a list of turns")
    return [_parse_turn(turn, name) for turn in turns]


def _take_system(turns: list[Turn], fields: RowFields) -> str:
    """Remove a system message from the start of a chat; returns its text, without one that of the `system` column."""
    system = fields.optional_text("system")
    return turns.pop(0).text if turns and turns[0].role == "system" else system


def _make_triple(row_id: str, system: str, turns: Sequence[Turn], name: str) -> Triple:
    """Make the triple of a chat whose roles were checked.

    Turns after the last target are left out: they are neither trained on nor part of a prompt.

    Raises:
        RowError: no turn is a target.
    """
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    while pairs and not pairs[-1][1].is_target:
        pairs.pop()
    if not pairs:
        raise RowError("no_answer", f"has {name} whose assistant turns all have weight 0: nothing to train on")
    *history, (question, answer) = pairs
    return Triple(
        row_id,
        question.text,
        "",
        answer.text,
        system if system.strip() else None,
        tuple((user.text, assistant.text) for user, assistant in history),
        tuple(index for index, (_, assistant) in enumerate(history) if not assistant.is_target),
    )


def _check_not_empty(turns: Sequence[Turn], name: str) -> None:
    if not all(turn.text.strip() for turn in turns):
        raise RowError("empty_field", f"has an empty turn in {name}")


def _check_roles(roles: Sequence[str], name: str) -> None:
    if not roles or roles[-1] != "assistant":
        raise RowError("no_answer", f"has {name} whose last turn is not the assistant's: nothing to train on")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError("roles", f"has {name} whose turns do not alternate user and assistant, starting with user")


def _parse_turn(turn: Mapping[str, Any], name: str) -> Turn:
    """Parse a message ({role, content}) or a ShareGPT turn ({from, value}).

    A turn from a table may have all four keys, of which two are null.
    """
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise RowError("roles", f"has a turn with role {short_repr(role)} in {name}; known roles are {known}")
    check_turn_keys(turn, name)
    return Turn(ROLES[role], parse_content(content, name), is_target(turn, ROLES[role], name))


def parse_content(content: Any, name: str) -> str:
    """Parse the content of a turn in column `name`: text, or a list of text parts.

    Raises:
        RowError: it is something else.
    """
    return _join_parts(content, name) if isinstance(content, list) else check_text(content, f"a turn in {name}")


def is_target(turn: Mapping[str, Any], role: str, name: str) -> bool:
    """Whether an assistant turn is to be trained on; other turns never are, whatever their weight.

    Raises:
        RowError: the row asks for what can't be done.
    """
    is_wanted = True
    for key in TARGET_KEYS:
        value = turn.get(key)
        if value is None or (role != "assistant" and (key == "weight" or not value)):
            continue
        if not isinstance(value, int | float) or value not in (0, 1) or role != "assistant":
            raise RowError(
                "unsupported_key",
                f"has a turn of the {role} with {key} {short_repr(value)} in {name}; only the assistant's turns are "
                "trained on, with weight 0 or 1",
            )
        is_wanted = is_wanted and bool(value)
    return is_wanted


def _join_parts(parts: Sequence[Any], name: str) -> str:
    """Join the text parts of OpenAI's list content; other parts are an error."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or "text" not in part:
            kind = part.get("type") if isinstance(part, dict) else part
            raise RowError("wrong_type", f"has a turn in {name} with parts that are not text but {short_repr(kind)}")
    return "".join(check_text(part["text"], f"a turn in {name}") for part in parts)
