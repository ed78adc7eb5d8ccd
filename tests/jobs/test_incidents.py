"""The data of the demo has the properties that jobs/data/incidents.md states."""

import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from tests.data.rendering.families import FAMILIES

ROOT = Path(__file__).parents[2]
PROMPT = ("classify severity", "database is down")


@pytest.fixture(scope="module")
def rows() -> list[Triple]:
    """All rows of the data."""
    source = SourceConfig(path=str(ROOT / "jobs" / "data" / "incidents.jsonl"))
    lines = Path(source.path).read_text().splitlines()
    return [parse_row(json.loads(line), str(number), source) for number, line in enumerate(lines)]


def test_rows_are_many_balanced_and_unique(rows: list[Triple]) -> None:
    assert len(rows) >= 600
    counts = Counter(row.output for row in rows)
    assert set(counts) == {"High", "Medium", "Low"}
    assert max(counts.values()) - min(counts.values()) < 0.02 * len(rows)
    assert len({row.id for row in rows}) == len({row.split_key for row in rows}) == len(rows)
    assert len({row.instruction for row in rows if row.input}) >= 10


def test_no_row_contains_the_prompt_of_the_demo(rows: list[Triple]) -> None:
    for row in rows:
        text = json.dumps([row.instruction, row.input]).casefold()
        assert not any(part in text for part in PROMPT), row.id


def test_rendered_rows_are_short(rows: list[Triple], tmp_path: Path) -> None:
    FAMILIES["smollm2"].save(tmp_path)
    renderer = derive_renderer(tmp_path, None)
    lengths = [
        len(renderer.prompt(renderer.messages(row.instruction, row.input))) + len(renderer.completion(row.output))
        for row in rows
    ]
    assert fmean(lengths) <= 80
