"""Parses rows as those of a source, and makes the messages of chats."""

from typing import Any

from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.read_all import make_data_config


def parse(row: object, **source: Any) -> Triple:
    return parse_row(row, "0:7", make_data_config("x", **source).sources[0])


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: object) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def system(text: object) -> dict[str, object]:
    return {"role": "system", "content": text}


CHAT = [user("a"), assistant("b"), user("c"), assistant("d")]
AS_TRIPLE = Triple("0:7", "c", "", "d", None, (("a", "b"),))
