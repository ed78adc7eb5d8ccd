"""Columns of a row format that have other names in a file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.chats import AS_TRIPLE, CHAT, parse
from tests.data.sources.read_all import read_all_records


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_columns_can_be_renamed_in_every_file_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = {"question": "a", "a.b": "b", "instruction": "not this"}
    if name == "a.csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if name == "a.json" else row))
    columns = {"instruction": "question", "output": "a.b", "id": "no such"}
    [record] = read_all_records(path, columns=columns)
    assert parse(record.value, columns=columns) == Triple("0:7", "a", "", "b")
    with pytest.raises(RowError, match="has no answer"):
        parse(record.value, columns={**columns, "output": "answer"})


def test_chat_columns_can_be_renamed() -> None:
    row = {"dialog": CHAT}
    assert parse(row, columns={"messages": "dialog"}) == AS_TRIPLE
    assert parse(row, columns={"conversations": "dialog"}, format="sharegpt") == AS_TRIPLE


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "prompt": "not this", "answer": "b"}, Triple("0:7", "a", "", "b")),
        ({"question": CHAT[:3], "answer": CHAT[3:]}, AS_TRIPLE),
    ],
)
def test_prompt_and_completion_can_be_renamed(tmp_path: Path, row: dict[str, Any], expected: Triple) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    columns = {"prompt": "question", "completion": "answer"}
    [record] = read_all_records(path, columns=columns)
    assert parse(record.value, columns=columns) == expected
    with pytest.raises(RowError, match="has no reply, only 'question', 'answer'"):
        parse({"question": "a", "answer": "b"}, columns={**columns, "completion": "reply"})
