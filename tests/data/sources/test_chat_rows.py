"""Chats: turns that are not trained on, and keys that change what a row means but can't be trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from instruct_ray.data.sources.unsupported_keys import UNSUPPORTED_COLUMNS, UNSUPPORTED_TURN_KEYS
from tests.data.sources.read_all import GOOD, make_data_config, read_all_records

SOURCE = make_data_config("x").sources[0]
CALL = [{"id": "1", "type": "function", "function": {"name": "restart", "arguments": "{}"}}]


def parse(row: Mapping[str, object]) -> Triple:
    return parse_row(dict(row), "0:7", SOURCE)


def openai_turn(role: str, text: object, **keys: object) -> dict[str, object]:
    return {"role": role, "content": text, **keys}


def sharegpt_turn(role: str, text: object, **keys: object) -> dict[str, object]:
    return {"from": {"user": "human", "assistant": "gpt"}[role], "value": text, **keys}


def make_chats(*answers: dict[str, object]) -> list[dict[str, object]]:
    """The same chat as OpenAI, ShareGPT and TRL rows; `answers` are the keys of the assistant's turns."""
    texts = [
        ("user", f"q{n // 2}", {}) if n % 2 == 0 else ("assistant", f"a{n // 2}", answers[n // 2])
        for n in range(2 * len(answers))
    ]
    openai = [openai_turn(role, text, **keys) for role, text, keys in texts]
    sharegpt = [sharegpt_turn(role, text, **keys) for role, text, keys in texts]
    return [{"messages": openai}, {"conversations": sharegpt}, {"prompt": openai[:-1], "completion": openai[-1:]}]


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("off", [0, 0.0, False])
def test_turns_of_weight_0_are_prompts_only(key: str, off: object) -> None:
    history = (("q0", "a0"), ("q1", "a1"))
    for row in make_chats({key: off}, {key: None}, {key: 1}):
        assert parse(row) == Triple("0:7", "q2", "", "a2", None, history, (0,))
    # What follows the last target is neither trained on nor part of a prompt.
    for row in make_chats({}, {key: True}, {key: off}, {key: off}):
        assert parse(row) == Triple("0:7", "q1", "", "a1", None, (("q0", "a0"),))
    for row in make_chats({key: off}, {key: off}):
        with pytest.raises(RowError, match="whose assistant turns all have weight 0: nothing to train on"):
            parse(row)


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", [1], float("nan")])
def test_other_weights_are_rejected(value: object) -> None:
    for row in make_chats({}, {"weight": value}):
        with pytest.raises(RowError, match="only the assistant's turns are trained on, with weight 0 or 1"):
            parse(row)


def test_weights_of_questions_change_nothing_unless_they_ask_for_training() -> None:
    expected = Triple("0:7", "q", "", "a")
    for keys in ({"weight": 0}, {"weight": 1}, {"train": False}):
        assert parse({"messages": [openai_turn("user", "q", **keys), openai_turn("assistant", "a")]}) == expected
    with pytest.raises(RowError, match="a turn of the user with train bool True"):
        parse({"messages": [openai_turn("user", "q", train=True), openai_turn("assistant", "a")]})


def test_a_question_is_answered_whatever_the_weight_of_its_answer() -> None:
    row = make_chats({"weight": 0}, {"weight": 0})[0]
    triple = parse_row(row, "0:7", SOURCE, needs_output=False)
    assert (triple.instruction, triple.history) == ("q1", (("q0", "a0"),))


def test_only_what_is_trained_on_makes_duplicates() -> None:
    trained, untrained = (parse(make_chats({"weight": weight}, {})[0]) for weight in (1, 0))
    assert trained.content_digest != untrained.content_digest
    assert "untrained_turns" not in trained.dump()
    assert [Triple.load(triple.dump()) for triple in (trained, untrained)] == [trained, untrained]


@pytest.mark.parametrize("column", UNSUPPORTED_COLUMNS)
def test_unsupported_columns_are_named_in_every_format(column: str) -> None:
    for row in (GOOD, *make_chats({}), {"prompt": "a", "completion": "b"}):
        for value in ([{"type": "function"}], "see this", {"a": 0}):
            with pytest.raises(RowError, match=f"has {column}, which can't be trained on yet") as error:
                parse({**row, column: value})
            assert error.value.reason == "unsupported_key"
        for empty in (None, "", "[]", [], {}, {"a": None, "b": ""}):
            assert parse({**row, column: empty}) == parse(row)


@pytest.mark.parametrize("key", UNSUPPORTED_TURN_KEYS)
def test_unsupported_keys_of_turns_are_named_in_every_format(key: str) -> None:
    for row in make_chats({}, {key: CALL}):
        with pytest.raises(RowError, match=f"has a turn with {key} in .*, which can't be trained on yet") as error:
            parse(row)
        assert error.value.reason == "unsupported_key"
    for row, plain in zip(make_chats({}, {key: None}), make_chats({}, {}), strict=True):
        assert parse(row) == parse(plain)


@pytest.mark.parametrize("role", ["tool", "observation", "function_call", "function", "bing"])
def test_unknown_roles_are_named(role: str) -> None:
    turns = [sharegpt_turn("user", "q"), {"from": role, "value": "x"}, sharegpt_turn("assistant", "a")]
    with pytest.raises(RowError, match=f"a turn with role str '{role}' in conversations"):
        parse({"conversations": turns})


def test_parts_that_are_not_text_are_named() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://a.example"}},
    ]
    with pytest.raises(RowError, match="parts that are not text but str 'image_url'"):
        parse({"messages": [openai_turn("user", parts), openai_turn("assistant", "a")]})


def test_metadata_and_mapped_columns_are_no_unsupported_keys() -> None:
    turns = [openai_turn("user", "q", timestamp=3), openai_turn("assistant", "a", likes=[1])]
    assert parse({"messages": turns, "topic": "x", "label": False}) == Triple("0:7", "q", "", "a")
    source = make_data_config("x", columns={"input": "documents"}).sources[0]
    assert parse_row({**GOOD, "documents": "y"}, "0:7", source) == Triple("0:7", "Rate", "y", "High")


def test_completions_that_are_not_wanted_are_rejected() -> None:
    rows = [{"prompt": "a", "completion": "b"}, make_chats({})[2]]
    for row in rows:
        assert parse({**row, "label": True}) == parse({**row, "label": None}) == parse(row)
        with pytest.raises(RowError, match="has label false: a completion that is not wanted"):
            parse({**row, "label": False})


def test_columns_of_tables_are_checked_as_well(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        make_chats({"weight": 0, "tool_calls": None}, {"weight": 1, "tool_calls": None})[0] | {"functions": None},
        make_chats({"weight": 0, "tool_calls": None}, {"weight": 1, "tool_calls": CALL})[0] | {"functions": None},
        make_chats({"weight": 0, "tool_calls": None}, {"weight": 1, "tool_calls": None})[0] | {"functions": CALL},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    plain, with_calls, with_functions = (record.value for record in read_all_records(tmp_path / "a.parquet"))
    assert parse(plain) == Triple("0:7", "q1", "", "a1", None, (("q0", "a0"),), (0,))
    for row, message in ((with_calls, "has a call of restart"), (with_functions, "has functions")):
        with pytest.raises(RowError, match=message):
            parse(row)
