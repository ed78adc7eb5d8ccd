"""Parquet and Arrow: only the columns of a triple are read, and code in a file is never run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, make_data_config, read_all_records, read_all_values, replace_errors

ROWS = [{**GOOD, "input": f"x{n}"} for n in range(5)]


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.fixture(params=[".parquet", ".arrow"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"a{request.param}"


def test_reads_only_triple_columns(path: Path) -> None:
    table = pa.table({**{name: [row[name] for row in ROWS] for name in GOOD}, "vector": [[0.5] * 100] * 5})
    assert read_all_values(write_table(path, table)) == ROWS
    renamed = table.rename_columns(["question", "input", "output", "instruction"])
    [first, *_] = read_all_values(write_table(path, renamed), columns={"instruction": "question"})
    assert (
        parse_row(first, "", make_data_config(path, columns={"instruction": "question"}).sources[0]).instruction
        == "Rate"
    )
    assert "instruction" not in first


def test_invalid_utf8_affects_only_its_row(path: Path) -> None:
    texts = pa.array([b"a", b"\xff\xfe", b"c", b"\xe9"]).view(pa.string())
    records = read_all_records(write_table(path, pa.table({"instruction": texts, "output": ["1", "2", "3", "4"]})))
    good = [{"instruction": "a", "output": "1"}, {"instruction": "c", "output": "3"}]
    assert replace_errors(record.value for record in records) == [good[0], "not_utf8", good[1], "not_utf8"]
    assert [record.position for record in records] == [0, 1, 2, 3]
    assert len({record.digest for record in records}) == 4


def test_too_large_row_affects_only_itself(path: Path) -> None:
    table = pa.table({"instruction": ["a", "b" * 500, "c"], "output": ["1", "2", "3"]})
    assert (
        replace_errors(r.value for r in read_all_records(write_table(path, table), max_row_bytes=100))[1] == "too_large"
    )


def test_reads_dictionaries_large_strings_and_many_batches(path: Path) -> None:
    texts = pa.array(["Rate", "Rank"] * 2000)
    table = pa.table({"instruction": texts.dictionary_encode(), "output": texts.cast(pa.large_string())})
    records = read_all_records(write_table(path, table))
    assert [record.position for record in records] == list(range(4000))
    assert all(record.value["instruction"] == record.value["output"] for record in records)


def test_duplicate_column_names_are_an_error(path: Path) -> None:
    write_table(path, pa.Table.from_arrays([pa.array(["a"])] * 2, names=["output", "output"]))
    with pytest.raises(InputError, match="two columns named output"):
        read_all_records(path)


def test_corrupted_file_is_an_input_error(path: Path) -> None:
    content = write_table(path, pa.table({"output": [os.urandom(50).hex() for _ in range(100)]})).read_bytes()
    middle = content[: len(content) // 4] + b"\xff" * 60 + content[len(content) // 4 + 60 :]
    for corrupted in (content[:20], middle if path.suffix == ".parquet" else content[:-3000]):
        path.write_bytes(corrupted)
        with pytest.raises(InputError) as error:
            read_all_records(path)
        assert str(path) in str(error.value)


CANARY = b"cos\nsystem\n(S'touch %s'\ntR."
READ = """
import contextlib, os, sys
import ray.data, pyarrow as pa, pyarrow.parquet as pq
from ray.data.extensions import ArrowTensorType, ArrowPythonObjectType
from tests.data.sources.read_all import read_all_values
path, canary, instruction = sys.argv[1:]
values = read_all_values(path)
assert not os.path.exists(canary), "the pickle was run"
with contextlib.suppress(Exception):
    pq.read_table(path) if path.endswith("parquet") else pa.ipc.open_stream(path)
assert os.path.exists(canary), "plain Arrow must run the pickle, or the test proves nothing"
print(values)
"""


def write_malicious_table(path: Path, canary: Path, column: str) -> Path:
    """Write a table whose `column` is a Ray tensor with a pickle as metadata; unpickling creates the canary file."""
    metadata = {
        "ARROW:extension:name": "ray.data.arrow_tensor",
        "ARROW:extension:metadata": CANARY % str(canary).encode(),
    }
    storage = pa.array([[1, 2]] * 5, pa.list_(pa.int64()))
    table = pa.table({**{name: [row[name] for row in ROWS] for name in GOOD if name != column}, column: storage})
    field = table.schema.get_field_index(column)
    table = table.cast(table.schema.set(field, table.schema.field(column).with_metadata(metadata)))
    return write_table(path, table)


@pytest.mark.parametrize("column", ["tensor", "instruction"])
def test_pickle_in_schema_is_never_run(path: Path, tmp_path: Path, column: str) -> None:
    canary = tmp_path / "canary"
    write_malicious_table(path, canary, column)
    # Ray unpickles the metadata of tensors only with this setting.
    environment = {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READ, path, canary, column],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = ROWS if column == "tensor" else [{**row, "instruction": [1, 2]} for row in ROWS]
    assert json.loads(run.stdout.replace("'", '"')) == expected
