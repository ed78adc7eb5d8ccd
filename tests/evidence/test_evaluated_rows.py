"""The rows to answer: groups, a seeded sample of whole groups, the digest."""

import json
from collections import Counter
from pathlib import Path

import pytest

from instruct_ray.data.prepare.split_rule import BY_INPUT
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.evaluated_rows import EvaluatedRows, load_evaluated_rows


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """600 rows in groups of three: the same input with three instructions."""
    rows = [
        Triple(f"row-{number}", f"Rate {number % 3}.", f"Report\u2028 {number // 3}", "Low") for number in range(600)
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row.dump(), ensure_ascii=False) + "\n" for row in rows))
    return path


def load(path: Path, max_rows: int, seed: int = 0) -> EvaluatedRows:
    return load_evaluated_rows(path, BY_INPUT, max_rows, seed)


def test_rows_with_the_same_input_are_a_group(rows_file: Path) -> None:
    found = load(rows_file, 2000)
    assert (len(found.rows), found.num_held_out) == (600, 600)
    assert [row.id for row in found.triples] == [f"row-{number}" for number in range(600)]
    assert set(Counter(row.group for row in found.rows).values()) == {3}


@pytest.mark.parametrize("max_rows", [1, 100, 301])
def test_sample_is_of_whole_groups_and_seeded(rows_file: Path, max_rows: int) -> None:
    found = load(rows_file, max_rows)
    assert found.num_held_out == 600
    if max_rows > 3:
        assert max_rows - 3 < len(found.rows) <= max_rows
        assert set(Counter(row.group for row in found.rows).values()) == {3}
        assert found != load(rows_file, max_rows, seed=1)
        numbers = [int(row.id.split("-")[1]) for row in found.triples]
        assert numbers == sorted(numbers)
    else:
        # Not even one group fits.
        assert len(found.rows) == 1
    assert found == load(rows_file, max_rows)
    assert found.digest == load(rows_file, max_rows).digest != load(rows_file, 2000).digest


def test_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(InputError, match="no held-out rows to answer"):
        load(tmp_path / "test.jsonl", 10)
