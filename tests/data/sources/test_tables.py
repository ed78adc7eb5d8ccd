"""Parquet and Arrow: only the columns of a triple, and never the code that a file brings along."""

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
from tests.data.sources.read_all import GOOD, config_of, reasons_for, records_of, values_of

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


def test_only_the_columns_of_a_triple_are_read(path: Path) -> None:
    table = pa.table({**{name: [row[name] for row in ROWS] for name in GOOD}, "vector": [[0.5] * 100] * 5})
    assert values_of(write_table(path, table)) == ROWS
    renamed = table.rename_columns(["question", "input", "output", "instruction"])
    [first, *_] = values_of(write_table(path, renamed), columns={"instruction": "question"})
    assert parse_row(first, "", config_of(path, columns={"instruction": "question"}).sources[0]).instruction == "Rate"
    assert "instruction" not in first


def test_text_that_is_no_utf8_costs_its_row_alone(path: Path) -> None:
    texts = pa.array([b"a", b"\xff\xfe", b"c", b"\xe9"]).view(pa.string())
    records = records_of(write_table(path, pa.table({"instruction": texts, "output": ["1", "2", "3", "4"]})))
    good = [{"instruction": "a", "output": "1"}, {"instruction": "c", "output": "3"}]
    assert reasons_for(record.value for record in records) == [good[0], "not_utf8", good[1], "not_utf8"]
    assert [record.position for record in records] == [0, 1, 2, 3]
    assert len({record.digest for record in records}) == 4


def test_a_row_over_the_limit_costs_its_row_alone(path: Path) -> None:
    table = pa.table({"instruction": ["a", "b" * 500, "c"], "output": ["1", "2", "3"]})
    assert reasons_for(r.value for r in records_of(write_table(path, table), max_row_bytes=100))[1] == "too_large"


def test_dictionaries_large_text_and_many_batches_are_rows(path: Path) -> None:
    texts = pa.array(["Rate", "Rank"] * 2000)
    table = pa.table({"instruction": texts.dictionary_encode(), "output": texts.cast(pa.large_string())})
    records = records_of(write_table(path, table))
    assert [record.position for record in records] == list(range(4000))
    assert all(record.value["instruction"] == record.value["output"] for record in records)


def test_two_columns_of_one_name_are_refused(path: Path) -> None:
    write_table(path, pa.Table.from_arrays([pa.array(["a"])] * 2, names=["output", "output"]))
    with pytest.raises(InputError, match="two columns named output"):
        records_of(path)


def test_damage_inside_is_one_error(path: Path) -> None:
    content = write_table(path, pa.table({"output": [os.urandom(50).hex() for _ in range(100)]})).read_bytes()
    middle = content[: len(content) // 4] + b"\xff" * 60 + content[len(content) // 4 + 60 :]
    for damaged in (content[:20], middle if path.suffix == ".parquet" else content[:-3000]):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            records_of(path)
        assert str(path) in str(error.value)


CANARY = b"cos\nsystem\n(S'touch %s'\ntR."
READ = """
import contextlib, os, sys
import ray.data, pyarrow as pa, pyarrow.parquet as pq
from ray.data.extensions import ArrowTensorType, ArrowPythonObjectType
from tests.data.sources.read_all import values_of
path, canary, instruction = sys.argv[1:]
found = values_of(path)
assert not os.path.exists(canary), "it ran"
with contextlib.suppress(Exception):
    pq.read_table(path) if path.endswith("parquet") else pa.ipc.open_stream(path)
assert os.path.exists(canary), "a file that does no harm proves nothing"
print(found)
"""


def booby_trapped(path: Path, canary: Path, column: str) -> Path:
    """A file with a column of Ray's tensors, whose metadata is a pickle that makes the canary file."""
    note = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": CANARY % str(canary).encode()}
    storage = pa.array([[1, 2]] * 5, pa.list_(pa.int64()))
    table = pa.table({**{name: [row[name] for row in ROWS] for name in GOOD if name != column}, column: storage})
    field = table.schema.get_field_index(column)
    table = table.cast(table.schema.set(field, table.schema.field(column).with_metadata(note)))
    return write_table(path, table)


@pytest.mark.parametrize("column", ["tensor", "instruction"])
def test_a_pickle_in_the_schema_never_runs(path: Path, tmp_path: Path, column: str) -> None:
    canary = tmp_path / "canary"
    booby_trapped(path, canary, column)
    # The switches with which Ray unpickles: off, the file could do no harm to anybody.
    switches = {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READ, path, canary, column],
        capture_output=True, text=True, env={**os.environ, **switches}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = ROWS if column == "tensor" else [{**row, "instruction": [1, 2]} for row in ROWS]
    assert json.loads(run.stdout.replace("'", '"')) == expected
