"""Rows whose chats have tools: what is read, and what is rejected by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.tool_chat import ToolChat
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.chats import assistant, parse, system, user
from tests.data.sources.read_all import GOOD, make_data_config, read_all_records

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLS: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
CHAT = [user("How is it in Rome?"), CALLS, RESULT, assistant("Sunny.")]


def as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
    return {**CALLS, "content": None, "tool_calls": [{**call, "function": function}]}


def test_calls_and_answers_are_targets() -> None:
    triple = parse({"messages": [system("Be brief."), *CHAT], "tools": [TOOL]})
    assert triple.tool_chat == ToolChat.make([TOOL], CHAT, (1, 3))
    assert (triple.instruction, triple.system, triple.output) == ("How is it in Rome?", "Be brief.", "Sunny.")
    assert triple.split_key == "how is it in rome?"
    assert Triple.load(json.loads(json.dumps(triple.dump()))) == triple


def test_other_spellings_are_the_same_row() -> None:
    expected = parse({"messages": CHAT, "tools": [TOOL]})
    spelled = [CHAT[0], {**as_text(CALL), "weight": 1}, {**RESULT, "content": [{"type": "text", "text": "sunny"}]}]
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True, "description": None}}
    assert parse({"messages": [*spelled, CHAT[3]], "tools": [strict]}) == expected
    assert parse({"messages": CHAT, "tools": json.dumps([TOOL])}) == expected
    assert parse({"messages": CHAT, "functions": [TOOL]}, columns={"tools": "functions"}) == expected


def test_excluded_and_missing_answers() -> None:
    chat = [CHAT[0], {**CALLS, "weight": 0}, RESULT, CHAT[3], user("Thanks"), {**assistant("Bye"), "weight": 0}]
    triple = parse({"messages": chat, "tools": [TOOL]})
    assert triple.tool_chat is not None
    assert (triple.tool_chat.targets, len(triple.tool_chat.messages)) == ((3,), 4)
    asked = parse_row(
        {"messages": CHAT[:3], "tools": [TOOL]}, "0:7", make_data_config("x").sources[0], needs_output=False
    )
    assert asked.tool_chat is not None and asked.tool_chat.messages[:-1] == CHAT[:3]


def test_tools_make_another_row_and_group() -> None:
    plain = [user("a"), assistant("b")]
    rows = [parse({"messages": plain, "tools": tools}) for tools in ([], [TOOL])]
    assert rows[0].tool_chat is None and rows[1].tools == [TOOL]
    assert rows[0].content_digest != rows[1].content_digest and rows[0].group != rows[1].group


def test_nulls_that_tables_fill_in_are_no_keys(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "now", "description": "The time."}}
    rows = [{"messages": CHAT, "tools": [TOOL]}, {"messages": [user("a"), assistant("b")], "tools": [other]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = (parse(record.value) for record in read_all_records(tmp_path / "a.parquet"))
    assert first == parse(rows[0])
    assert second.tools == [other]


def named(name: object) -> dict[str, Any]:
    return {"type": "function", "function": {**TOOL["function"], "name": name}}


def called(**function: object) -> list[dict[str, Any]]:
    return [CHAT[0], {**CALLS, "tool_calls": [{"type": "function", "function": {"name": "weather", **function}}]}]


@pytest.mark.parametrize(
    ("messages", "tools", "reason", "message"),
    [
        (CHAT, [], "tool_call", "has a call of weather in messages, which is not among its tools; define it"),
        (CHAT, "{", "tools", "has tools that are no JSON"),
        (CHAT, {"a": 1}, "tools", "no list of at most 128 function definitions"),
        (CHAT, [TOOL["function"]], "tools", "an entry that is not"),
        (CHAT, [named("we ather")], "tools", "has tools with name str 'we ather': use up to 64 letters"),
        (CHAT, [TOOL, TOOL], "tools", "two tools of the same name"),
        (CHAT, [{**TOOL, "function": {**TOOL["function"], "extra": 1}}], "tools", "the unknown key str 'extra'"),
        (CHAT, [{**TOOL, "function": {**TOOL["function"], "description": "\0"}}], "control_character", "NUL"),
        (called(arguments="{"), [TOOL], "tool_call", "has arguments of weather in messages that are no JSON"),
        (called(arguments="[1]"), [TOOL], "tool_call", "not an object"),
        (called(), [TOOL], "tool_call", "null, not an object"),
        ([CHAT[0], {**CALLS, "tool_calls": ["x"]}], [TOOL], "tool_call", "has a tool call in messages that is not"),
        ([CHAT[0], {**CALLS, "tool_calls": "x"}], [TOOL], "wrong_type", "tool_calls in messages that are str 'x'"),
        ([CHAT[0], CALLS, CHAT[3]], [TOOL], "roles", "tool_calls in messages without a tool turn for each"),
        ([CHAT[0], RESULT, CHAT[3]], [TOOL], "roles", "the result of no call before it"),
        ([CHAT[0], CALLS, {**RESULT, "tool_call_id": "2"}], [TOOL], "no_answer", "last turn is not the assistant's"),
        ([*CHAT[:2], {**RESULT, "tool_call_id": "2"}, CHAT[3]], [TOOL], "roles", "the result of no call before it"),
        ([CHAT[0], CHAT[0], CHAT[3]], [TOOL], "roles", "do not alternate"),
        (CHAT[:3], [TOOL], "no_answer", "whose last turn is not the assistant's"),
        ([CHAT[0], {**CHAT[3], "weight": 0}], [TOOL], "no_answer", "without an assistant turn to train on"),
        ([CHAT[0], {**CHAT[3], "function_call": CALL}], [TOOL], "unsupported_key", "a turn with function_call"),
        ([{**CHAT[0], "name": "Ann"}, CHAT[3]], [TOOL], "unsupported_key", "a turn with name"),
        ([{"role": "observation", "content": "x"}, CHAT[3]], [TOOL], "roles", "known roles of chats with tools are"),
        ([user(""), CHAT[3]], [TOOL], "empty_field", "has an empty turn in messages"),
    ],
)  # fmt: skip
def test_wrong_rows_are_rejected_by_name(messages: Any, tools: Any, reason: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as error:
        parse({"messages": messages, "tools": tools})
    assert error.value.reason == reason


def test_other_formats_have_no_tools() -> None:
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for row in (GOOD, {"conversations": shared}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(RowError, match="has tools, which only rows with messages can have"):
            parse({**row, "tools": [TOOL]})
        assert parse({**row, "tools": []}) == parse(row)
    # Another column may have that name.
    assert parse({**GOOD, "tools": "y"}, columns={"input": "tools"}).input == "y"
    with pytest.raises(RowError, match="has a turn with tool_calls in conversations"):
        parse({"conversations": [shared[0], {**shared[1], "tool_calls": [CALL]}]})
