"""Chats with tools: OpenAI's messages with `tool_calls` and results, and the column `tools` with the definitions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from instruct_ray.config.data import ColumnName
from instruct_ray.data.sources.chat_rows import ROLES, is_target, parse_chat, parse_content
from instruct_ray.data.sources.json_parser import parse_json
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_fields import RowFields, short_repr
from instruct_ray.data.sources.tool_chat import ToolChat
from instruct_ray.data.sources.tool_definitions import (
    check_arguments,
    check_function_name,
    check_texts,
    drop_nulls,
    parse_tools,
)
from instruct_ray.data.sources.triple import Triple
from instruct_ray.data.sources.unsupported_keys import check_turn_keys, is_empty

COLUMN: ColumnName = "messages"
# Keys that turns of a role may have besides those of any chat.
TOOL_KEYS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}


def parse_messages(fields: RowFields, row_id: str, needs_output: bool) -> Triple:
    """Parse the turns in `messages`, with the tools in `tools` if there are any.

    Raises:
        RowError: the turns can't be trained on.
    """
    turns = fields.require(COLUMN)
    if is_empty(fields["tools"]) and not _has_tool_turn(turns):
        return parse_chat(fields, row_id, needs_output, column=COLUMN)
    name = fields.name(COLUMN)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_type", f"has {name} that is not a list of turns")
    tools = parse_tools(fields["tools"], fields.name("tools"))
    names = frozenset(tool["function"]["name"] for tool in tools)
    messages = [_parse_turn(turn, name, names) for turn in turns]
    targets = [
        index
        for index, turn in enumerate(turns)
        if messages[index]["role"] == "assistant" and is_target(turn, "assistant", name)
    ]
    system = fields.optional_text("system")
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
        targets = [index - 1 for index in targets]
    if not needs_output:
        messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        messages.append({"role": "assistant", "content": ""})
        targets = [len(messages) - 1]
    _check_order(messages, name)
    if not targets:
        raise RowError("no_answer", f"has {name} without an assistant turn to train on")
    return _make_triple(row_id, system, tools, messages[: targets[-1] + 1], targets)


def _make_triple(
    row_id: str, system: str, tools: list[Any], messages: list[dict[str, Any]], targets: Sequence[int]
) -> Triple:
    chat = ToolChat.make(tools, messages, tuple(targets))
    answer = messages[-1]
    calls = [call["function"] for call in answer.get("tool_calls", [])]
    # Replaced by what the chat template writes once the row is rendered.
    output = answer["content"] + (json.dumps(calls, ensure_ascii=False) if calls else "")
    return Triple(row_id, chat.user_texts[-1], "", output, system if system.strip() else None, tool_chat=chat)


def _has_tool_turn(turns: Any) -> bool:
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and (turn.get("role") == "tool" or not is_empty(turn.get("tool_calls")))
        for turn in turns
    )


def _parse_turn(turn: Mapping[str, Any], name: str, tool_names: frozenset[str]) -> dict[str, Any]:
    role = turn.get("role")
    if role != "tool" and (not isinstance(role, str) or ROLES.get(role) != role):
        raise RowError(
            "roles",
            f"has a turn with role {short_repr(role)} in {name}; known roles of chats with tools are assistant, "
            "system, tool, user",
        )
    check_turn_keys(turn, name, TOOL_KEYS.get(role, ()))
    is_target(turn, role, name)
    calls = turn.get("tool_calls") if role == "assistant" else None
    if is_empty(calls):
        message: dict[str, Any] = {"role": role, "content": parse_content(turn.get("content"), name)}
        # The result of a tool may be empty.
        if role != "tool" and not message["content"].strip():
            raise RowError("empty_field", f"has an empty turn in {name}")
    else:
        content = turn.get("content")
        text = "" if content is None else parse_content(content, name)
        message = {"role": role, "content": text, "tool_calls": _parse_calls(calls, name, tool_names)}
    for key in TOOL_KEYS["tool"] if role == "tool" else ():
        if turn.get(key) is not None:
            message[key] = parse_content(turn[key], f"{key} of a turn in {name}")
    return message


def _parse_calls(calls: Any, name: str, tool_names: frozenset[str]) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise RowError("wrong_type", f"has tool_calls in {name} that are {short_repr(calls)}, not a list")
    return [_parse_call(call, name, tool_names) for call in calls]


def _parse_call(call: Any, name: str, tool_names: frozenset[str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type") not in (None, "function"):
        raise RowError(
            "tool_call",
            f"has a tool call in {name} that is not {{type: function, function: {{name, arguments}}}}",
        )
    function_name = check_function_name(function.get("name"), f"a tool call in {name}")
    if function_name not in tool_names:
        raise RowError(
            "tool_call",
            f"has a call of {function_name} in {name}, which is not among its tools; define it in the column tools",
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments.encode(errors="surrogatepass")) if arguments.strip() else {}
        if isinstance(arguments, RowError):
            raise RowError("tool_call", f"has arguments of {function_name} in {name} that are no JSON: {arguments}")
    else:
        arguments = drop_nulls(arguments)
    check_arguments(arguments, f"arguments of {function_name} in {name}")
    parsed: dict[str, Any] = {"type": "function", "function": {"name": function_name, "arguments": arguments}}
    if call.get("id") is not None:
        check_texts(call["id"], f"an id in {name}")
        parsed = {"id": str(call["id"]), **parsed}
    return parsed


def _check_order(messages: Sequence[Mapping[str, Any]], name: str) -> None:
    """Check that questions, calls, their results and answers follow each other as in OpenAI's API."""
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError("no_answer", f"has {name} whose last turn is not the assistant's: nothing to train on")
    previous, num_open = "", 0
    open_ids: set[str | None] = set()
    for message in messages:
        role = message["role"]
        if role == "tool":
            call_id = message.get("tool_call_id")
            if not num_open or (call_id is not None and call_id not in open_ids):
                raise RowError("roles", f"has a tool turn in {name} that is the result of no call before it")
            num_open -= 1
            open_ids.discard(call_id)
        elif num_open:
            raise RowError("roles", f"has tool_calls in {name} without a tool turn for each of them")
        elif role == "system" or (role == "user") != (previous in ("", "assistant")):
            raise RowError(
                "roles",
                f"has {name} whose turns do not alternate: a question, then calls with their results, then an answer",
            )
        if role == "assistant":
            calls = message.get("tool_calls", [])
            num_open, open_ids = len(calls), {call.get("id") for call in calls}
        previous = role
