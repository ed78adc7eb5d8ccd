"""Rows of three formats, and what is wrong with one, in words."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.read_all import GOOD, config_of, records_of


def triple_of(row: object, **source: Any) -> Triple:
    return parse_row(row, "0:7", config_of("x", **source).sources[0])


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: object) -> dict[str, object]:
    return {"role": "assistant", "content": text}


CHAT = [user("a"), assistant("b"), user("c"), assistant("d")]
AS_TRIPLE = Triple("0:7", "c", "", "d", None, (("a", "b"),))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "output": "b"}, Triple("0:7", "a", "", "b")),
        ({**GOOD, "input": None, "system": None, "history": None, "id": None}, Triple("0:7", "Rate", "", "High")),
        ({**GOOD, "id": 7, "other": [1]}, Triple("7", "Rate", "x", "High")),
        ({**GOOD, "id": "", "history": "", "system": ""}, Triple("0:7", "Rate", "x", "High")),
        (
            {**GOOD, "system": "Be brief.", "history": [["a", "b"]]},
            Triple("0:7", "Rate", "x", "High", "Be brief.", (("a", "b"),)),
        ),
        ({"messages": CHAT}, AS_TRIPLE),
        ({"messages": [{"role": "system", "content": "s"}, *CHAT[2:]]}, Triple("0:7", "c", "", "d", "s")),
        ({"messages": [{"role": "system", "content": ""}, *CHAT[2:]]}, Triple("0:7", "c", "", "d")),
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
        # As a table holds turns of both kinds.
        ({"messages": [{"from": None, "value": None, **turn} for turn in CHAT], "instruction": None}, AS_TRIPLE),
        ({"conversations": [{"role": None, "content": None, "from": "human", "value": "a"}, assistant("b")]}, None),
    ],
)
def test_formats_are_told_by_their_columns(row: dict[str, object], expected: Triple | None) -> None:
    assert triple_of(row) == (expected or Triple("0:7", "a", "", "b"))


def test_a_named_format_reads_its_columns_only() -> None:
    row = {**GOOD, "messages": CHAT, "conversations": CHAT[2:]}
    assert triple_of(row, format="triples").output == "High"
    assert triple_of(row, format="messages") == AS_TRIPLE
    assert triple_of(row, format="sharegpt") == Triple("0:7", "c", "", "d")
    with pytest.raises(RowError, match="has no messages, only 'instruction', 'input', 'output'"):
        triple_of(GOOD, format="messages")


BAD_ROWS: list[tuple[object, str, str]] = [
    ({"instruction": "a", "input": "b"}, "missing_field", "has no output, only 'instruction', 'input'"),
    ({"prompt": "a", "completion": "b"}, "missing_field", "has no instruction, only 'prompt', 'completion'"),
    ({}, "missing_field", "has no instruction$"),
    ({**GOOD, "instruction": None}, "missing_field", "has no instruction"),
    ({**GOOD, "output": " \n\t"}, "empty_field", "has an empty output: nothing to train on"),
    ({**GOOD, "instruction": ""}, "empty_field", "has an empty instruction: nothing to ask"),
    ({**GOOD, "input": 3}, "wrong_type", "has input that is int 3, which is not text"),
    ({**GOOD, "output": True}, "wrong_type", "has output that is bool True"),
    ({**GOOD, "output": ["a"]}, "wrong_type", r"has output that is list \['a'\]"),
    ({**GOOD, "system": {"a": 1}}, "wrong_type", "has system that is dict"),
    ({**GOOD, "id": [1]}, "wrong_type", "has id that is list"),
    ({**GOOD, "id": "\ud800"}, "not_unicode", "half a surrogate pair in id"),
    ({**GOOD, "input": "\ud83d"}, "not_unicode", "half a surrogate pair in input"),
    ({**GOOD, "input": "a\x00b"}, "control_character", "a NUL character in input"),
    ({**GOOD, "history": "a"}, "wrong_type", "has a history that is no list of"),
    ({**GOOD, "history": [["a"]]}, "wrong_type", "has a history that is no list of"),
    ({**GOOD, "history": [["a", None]]}, "wrong_type", "has history that is null"),
    ({**GOOD, "history": [["a", ""]]}, "empty_field", "an empty turn in history"),
    ([1], "not_an_object", r"is list \[1\], not an object"),
    (None, "not_an_object", "is null, not an object"),
    (3, "not_an_object", "is int 3, not an object"),
    ({"messages": []}, "no_answer", "last turn is not the assistant's"),
    ({"messages": CHAT[:3]}, "no_answer", "last turn is not the assistant's"),
    ({"messages": CHAT[1:]}, "roles", "do not take turns, the user first"),
    ({"messages": [CHAT[0], *CHAT]}, "roles", "do not take turns"),
    ({"messages": [*CHAT[:2], {"role": "system", "content": "s"}, *CHAT[2:]]}, "roles", "do not take turns"),
    ({"messages": [user("a"), {"role": "tool", "content": "b"}, assistant("c")]}, "roles", "a turn of str 'tool'"),
    ({"messages": [{"role": ["user"], "content": "b"}, assistant("c")]}, "roles", r"a turn of list \['user'\]"),
    ({"messages": [user("a"), {"content": "b"}]}, "roles", "a turn of null"),
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
    ({"messages": "hello"}, "wrong_type", "has messages that is no list of turns"),
    ({"messages": ["hello"]}, "wrong_type", "has messages that is no list of turns"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD_ROWS)
def test_what_is_wrong_with_a_row_is_said(row: object, reason: str, message: str) -> None:
    with pytest.raises(RowError) as error:
        triple_of(row)
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
            **dict.fromkeys(("messages", "conversations"), turns | json_values),
        },
    )
)
def test_any_json_is_a_triple_or_a_reason(row: dict[str, object]) -> None:
    try:
        triple = triple_of(row)
    except RowError as error:
        assert error.reason and error.detail.encode()
    else:
        assert triple.output.strip() and triple.instruction.strip()
        assert Triple.load(json.loads(json.dumps(triple.dump()))) == triple


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_columns_are_renamed_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = {"question": "a", "a.b": "b", "instruction": "not this"}
    if name == "a.csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if name == "a.json" else row))
    columns = {"instruction": "question", "output": "a.b", "id": "no such"}
    [record] = records_of(path, columns=columns)
    assert triple_of(record.value, columns=columns) == Triple("0:7", "a", "", "b")
    with pytest.raises(RowError, match="has no answer"):
        triple_of(record.value, columns={**columns, "output": "answer"})


def test_chat_columns_are_renamed() -> None:
    row = {"dialog": CHAT}
    assert triple_of(row, columns={"messages": "dialog"}) == AS_TRIPLE
    assert triple_of(row, columns={"conversations": "dialog"}, format="sharegpt") == AS_TRIPLE


@pytest.mark.parametrize("row", [{**GOOD, "output": 7}, {"instruction": "Rate", "input": "x"}, {**GOOD, "output": ""}])
def test_a_question_may_come_without_an_answer_or_with_any(row: dict[str, Any]) -> None:
    found = parse_row({**row, "id": None}, "0:7", config_of("x").sources[0], needs_output=False)
    assert found == Triple("0:7", "Rate", "x", "")


@pytest.mark.parametrize("chat", [CHAT, CHAT[:3], [*CHAT[:3], assistant("")]])
def test_the_last_question_of_a_chat_is_asked(chat: list[dict[str, object]]) -> None:
    source = config_of("x").sources[0]
    assert parse_row({"messages": chat}, "0:7", source, needs_output=False) == Triple(
        "0:7", "c", "", "", None, (("a", "b"),)
    )


@pytest.mark.parametrize(
    "row", [{"messages": []}, {"messages": [assistant("a")]}, {"messages": [user(" ")]}, {"input": "x"}]
)
def test_nothing_to_ask_is_bad_without_an_answer_too(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        parse_row(row, "0:7", config_of("x").sources[0], needs_output=False)


def test_a_reworded_instruction_stays_on_its_side() -> None:
    texts = [f"report {number}" for number in range(200)]
    sides = [Triple("a", "Rate this.", text, "x").assign_split(0.25) == "test" for text in texts]
    reworded = [Triple("b", "How bad?", f"  {text.upper()} ", "x").assign_split(0.25) == "test" for text in texts]
    assert sides == reworded
    assert 20 < sum(sides) < 80


texts = st.text(st.sampled_from("ab1:\x1e"), max_size=4)
triples = st.builds(
    Triple,
    st.just("a"),
    texts,
    texts,
    texts,
    st.none() | texts,
    st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
)


@given(triples, triples)
@example(Triple("a", "b\x1ec", "d", "e"), Triple("a", "b", "c\x1ed", "e"))
def test_only_what_is_trained_alike_is_a_duplicate(one: Triple, other: Triple) -> None:
    trained = [(t.system or "", t.history, t.instruction, t.input, t.output) for t in (one, other)]
    assert (one.content_digest == other.content_digest) == (trained[0] == trained[1])
