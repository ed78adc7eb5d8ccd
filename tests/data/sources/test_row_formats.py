"""Row formats: what `auto` detects, what is parsed, and the errors of rows that can't be used."""

import json
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.config.data import ColumnName, SourceConfig
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import LABEL_COLUMN, ROW_FORMATS, find_row_columns
from instruct_ray.data.sources.triple import Triple
from instruct_ray.data.sources.unsupported_keys import UNSUPPORTED_COLUMNS
from tests.data.sources.chats import AS_TRIPLE, CHAT, assistant, parse, system, user
from tests.data.sources.read_all import GOOD, make_data_config


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "output": "b"}, Triple("0:7", "a", "", "b")),
        ({**GOOD, "input": None, "system": None, "history": None, "id": None}, Triple("0:7", "Rate", "", "High")),
        ({**GOOD, "id": 7, "other": [1]}, Triple("7", "Rate", "x", "High")),
        ({**GOOD, "id": "", "history": "", "system": ""}, Triple("0:7", "Rate", "x", "High")),
        ({**GOOD, "id": {"$oid": "6"}}, Triple("0:7", "Rate", "x", "High")),
        ({**GOOD, "id": [1]}, Triple("0:7", "Rate", "x", "High")),
        ({**GOOD, "messages": [], "conversations": "", "prompt": {}}, Triple("0:7", "Rate", "x", "High")),
        ({"messages": "[]", "conversations": [], "prompt": "a", "completion": "b"}, None),
        (
            {**GOOD, "system": "Be brief.", "history": [["a", "b"]]},
            Triple("0:7", "Rate", "x", "High", "Be brief.", (("a", "b"),)),
        ),
        ({"messages": CHAT}, AS_TRIPLE),
        ({"messages": [system("s"), *CHAT[2:]]}, Triple("0:7", "c", "", "d", "s")),
        ({"messages": [system(""), *CHAT[2:]]}, Triple("0:7", "c", "", "d")),
        ({"messages": CHAT[2:], "system": "s"}, Triple("0:7", "c", "", "d", "s")),
        (
            {"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), assistant("c")]},
            Triple("0:7", "ab", "", "c"),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "user", "value": "c"},
                    {"from": "assistant", "value": "d"},
                ]
            },
            AS_TRIPLE,
        ),
        # Tables store the keys of both kinds of turns.
        ({"messages": [{"from": None, "value": None, **turn} for turn in CHAT], "instruction": None}, AS_TRIPLE),
        ({"conversations": [{"role": None, "content": None, "from": "human", "value": "a"}, assistant("b")]}, None),
        ({"prompt": "a", "completion": " b"}, Triple("0:7", "a", "", " b")),
        ({"prompt": "a", "completion": "b", "system": "s", "id": 7, "input": "x"}, Triple("7", "a", "", "b", "s")),
        ({"prompt": CHAT[:3], "completion": CHAT[3:]}, AS_TRIPLE),
        ({"prompt": [system("s"), *CHAT[:3]], "completion": CHAT[3:]}, replace(AS_TRIPLE, system="s")),
        ({"prompt": [system("s"), CHAT[2]], "completion": CHAT[3:], "system": "t"}, Triple("0:7", "c", "", "d", "s")),
        ({"prompt": CHAT[2:3], "completion": CHAT[3:], "system": "t"}, Triple("0:7", "c", "", "d", "t")),
        # Rows of other formats may have a prompt too, and tables have all columns.
        ({**GOOD, "prompt": "a", "completion": "b"}, Triple("0:7", "Rate", "x", "High")),
        ({"messages": CHAT, "prompt": "a"}, AS_TRIPLE),
        ({"messages": None, "instruction": None, "prompt": "a", "completion": "b"}, None),
    ],
)
def test_auto_detects_formats_by_columns(row: dict[str, object], expected: Triple | None) -> None:
    assert parse(row) == (expected or Triple("0:7", "a", "", "b"))


def test_table_has_all_formats_and_columns_of_the_config() -> None:
    assert set(get_args(SourceConfig.model_fields["format"].annotation)) == {"auto", *ROW_FORMATS}
    assert find_row_columns(make_data_config("x").sources[0]) == {
        *get_args(ColumnName),
        *UNSUPPORTED_COLUMNS,
        LABEL_COLUMN,
    }


def test_named_format_reads_only_its_columns() -> None:
    row = {**GOOD, "messages": CHAT, "conversations": CHAT[2:], "prompt": "a", "completion": "b"}
    assert parse(row, format="triples").output == "High"
    assert parse(row, format="messages") == AS_TRIPLE
    assert parse(row, format="sharegpt") == Triple("0:7", "c", "", "d")
    assert parse(row, format="prompt_completion") == Triple("0:7", "a", "", "b")
    with pytest.raises(RowError, match="has no messages, only 'instruction', 'input', 'output'"):
        parse(GOOD, format="messages")
    with pytest.raises(RowError, match="has no prompt, only 'instruction', 'input', 'output'"):
        parse(GOOD, format="prompt_completion")


INVALID_ROWS: list[tuple[object, str, str]] = [
    ({"instruction": "a", "input": "b"}, "missing_field", "has no output, only 'instruction', 'input'"),
    ({"question": "a", "answer": "b"}, "missing_field", "has no instruction, only 'question', 'answer'"),
    ({}, "missing_field", "has no instruction$"),
    ({**GOOD, "instruction": None}, "missing_field", "has no instruction"),
    ({**GOOD, "output": " \n\t"}, "empty_field", "has an empty output: nothing to train on"),
    ({**GOOD, "instruction": ""}, "empty_field", "has an empty instruction: nothing to ask"),
    ({**GOOD, "input": 3}, "wrong_type", "has input that is int 3, not text"),
    ({**GOOD, "output": True}, "wrong_type", "has output that is bool True"),
    ({**GOOD, "output": ["a"]}, "wrong_type", r"has output that is list \['a'\]"),
    ({**GOOD, "system": {"a": 1}}, "wrong_type", "has system that is dict"),
    ({**GOOD, "id": "\ud800"}, "not_unicode", "an unpaired surrogate in id"),
    ({**GOOD, "input": "\ud83d"}, "not_unicode", "an unpaired surrogate in input"),
    ({**GOOD, "input": "a\x00b"}, "control_character", "a NUL character in input"),
    ({**GOOD, "history": "a"}, "wrong_type", "has a history that is not a list of"),
    ({**GOOD, "history": [["a"]]}, "wrong_type", "has a history that is not a list of"),
    ({**GOOD, "history": [["a", None]]}, "wrong_type", "has history that is null"),
    ({**GOOD, "history": [["a", ""]]}, "empty_field", "an empty turn in history"),
    ([1], "not_an_object", r"is list \[1\], not an object"),
    (None, "not_an_object", "is null, not an object"),
    (3, "not_an_object", "is int 3, not an object"),
    ({"messages": []}, "no_answer", "last turn is not the assistant's"),
    ({"messages": CHAT[:3]}, "no_answer", "last turn is not the assistant's"),
    ({"messages": CHAT[1:]}, "roles", "do not alternate user and assistant, starting with user"),
    ({"messages": [CHAT[0], *CHAT]}, "roles", "do not alternate"),
    ({"messages": [*CHAT[:2], system("s"), *CHAT[2:]]}, "roles", "do not alternate"),
    (
        {"messages": [user("a"), {"role": "tool", "content": "b"}, assistant("c")]},
        "roles",
        "a tool turn in messages that is the result of no call",
    ),
    ({"messages": [{"role": ["user"], "content": "b"}, assistant("c")]}, "roles", r"a turn with role list \['user'\]"),
    ({"messages": [user("a"), {"content": "b"}]}, "roles", "a turn with role null"),
    (
        {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": []}]},
        "wrong_type",
        "a turn in mess",
    ),
    ({"messages": [user([{"type": "image_url"}]), assistant("a")]}, "wrong_type", "parts that are not text"),
    (
        {"messages": [user([{"type": "text", "text": None}]), assistant("a")]},
        "wrong_type",
        "a turn in messages that is",
    ),
    ({"messages": [user(" "), assistant("a")]}, "empty_field", "an empty turn in messages"),
    ({"messages": [user("a\x00"), assistant("a")]}, "control_character", "NUL character in a turn in messages"),
    ({"messages": "hello"}, "wrong_type", "has messages that is not a list of turns"),
    ({"messages": ["hello"]}, "wrong_type", "has messages that is not a list of turns"),
    ({"prompt": "a", "chosen": "b"}, "missing_field", "has no completion, only 'prompt', 'chosen'"),
    ({"prompt": "a", "completion": None}, "missing_field", "has no completion"),
    ({"prompt": " ", "completion": "b"}, "empty_field", "has an empty prompt: nothing to ask"),
    ({"prompt": "a", "completion": "\n"}, "empty_field", "has an empty completion: nothing to train on"),
    ({"prompt": 3, "completion": "b"}, "wrong_type", "has prompt that is int 3, not text"),
    ({"prompt": "a", "completion": CHAT[3:]}, "wrong_type", "has completion that is list .*, not text"),
    ({"prompt": CHAT[:3], "completion": "d"}, "wrong_type", "has completion that is not a list of turns"),
    ({"prompt": ["a"], "completion": CHAT[3:]}, "wrong_type", "has prompt that is not a list of turns"),
    ({"prompt": CHAT[:3]}, "missing_field", "has no completion, only 'prompt'"),
    ({"prompt": [], "completion": CHAT[3:]}, "roles", "has prompt whose last turn is not the user's: nothing to ask"),
    ({"prompt": [system("s")], "completion": CHAT[3:]}, "roles", "has prompt whose last turn is not the user's"),
    ({"prompt": CHAT[:2], "completion": CHAT[3:]}, "roles", "has prompt whose last turn is not the user's"),
    ({"prompt": CHAT[1:3], "completion": CHAT[3:]}, "roles", "has prompt whose turns do not alternate"),
    ({"prompt": [user("a"), system("s"), user("c")], "completion": CHAT[3:]}, "roles", "has prompt whose turns do not"),
    ({"prompt": CHAT[:3], "completion": []}, "roles", "has completion that is not one turn, the assistant's"),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "roles", "has completion that is not one turn, the assistant's"),
    ({"prompt": CHAT[:1], "completion": CHAT[2:3]}, "roles", "has completion that is not one turn, the assistant's"),
    ({"prompt": [user(" ")], "completion": CHAT[3:]}, "empty_field", "has an empty turn in prompt"),
    ({"prompt": CHAT[:3], "completion": [assistant(" ")]}, "empty_field", "has an empty turn in completion"),
    ({"prompt": CHAT[:3], "completion": [assistant(None)]}, "wrong_type", "has a turn in completion that is null"),
]


@pytest.mark.parametrize(("row", "reason", "message"), INVALID_ROWS)
def test_invalid_row_has_reason_and_detail(row: object, reason: str, message: str) -> None:
    with pytest.raises(RowError) as error:
        parse(row)
    assert error.value.reason == reason
    assert error.match(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
turns = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "from", "value"), json_values)) | json_values,
    max_size=3,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("id", "instruction", "input", "output", "system", "history"), json_values),
            **dict.fromkeys(("messages", "conversations", "prompt", "completion"), turns | json_values),
        },
    )
)
def test_any_json_is_parsed_or_has_a_reason(row: dict[str, object]) -> None:
    try:
        triple = parse(row)
    except RowError as error:
        assert error.reason and error.detail.encode()
    else:
        assert triple.output.strip() and triple.instruction.strip()
        assert Triple.load(json.loads(json.dumps(triple.dump()))) == triple
