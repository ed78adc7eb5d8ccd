"""Rows that are read for their prompt only."""

from dataclasses import replace
from typing import Any

import pytest

from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.chats import AS_TRIPLE, CHAT, assistant, user
from tests.data.sources.read_all import GOOD, make_data_config


@pytest.mark.parametrize("row", [{**GOOD, "output": 7}, {"instruction": "Rate", "input": "x"}, {**GOOD, "output": ""}])
def test_output_is_ignored_if_not_needed(row: dict[str, Any]) -> None:
    triple = parse_row({**row, "id": None}, "0:7", make_data_config("x").sources[0], needs_output=False)
    assert triple == Triple("0:7", "Rate", "x", "")


@pytest.mark.parametrize("chat", [CHAT, CHAT[:3], [*CHAT[:3], assistant("")]])
def test_last_user_message_is_the_prompt_if_no_output_is_needed(chat: list[dict[str, object]]) -> None:
    source = make_data_config("x").sources[0]
    assert parse_row({"messages": chat}, "0:7", source, needs_output=False) == Triple(
        "0:7", "c", "", "", None, (("a", "b"),)
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a"}, Triple("0:7", "a", "", "")),
        ({"prompt": "a", "completion": 7}, Triple("0:7", "a", "", "")),
        ({"prompt": CHAT[:3]}, replace(AS_TRIPLE, output="")),
        ({"prompt": CHAT[:3], "completion": "d"}, replace(AS_TRIPLE, output="")),
    ],
)
def test_completion_is_ignored_if_no_output_is_needed(row: dict[str, Any], expected: Triple) -> None:
    assert parse_row(row, "0:7", make_data_config("x").sources[0], needs_output=False) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": []},
        {"messages": [assistant("a")]},
        {"messages": [user(" ")]},
        {"input": "x"},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": CHAT[:2]},
        {"prompt": [user(" ")]},
    ],
)
def test_missing_prompt_is_an_error_even_if_no_output_is_needed(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        parse_row(row, "0:7", make_data_config("x").sources[0], needs_output=False)
