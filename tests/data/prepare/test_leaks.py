"""Test rows that are planted among the training rows, under another instruction or reworded, are not trained on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import OUTCOME_COLUMN, read_entries
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.sources.triple import Triple
from tests.fakes import ray_is_running

TOPICS = ("invoices were printed twice", "the login page shows an old logo", "backups stopped on the second server")


def make_report(number: int) -> str:
    return f"Customer {number * 7919} from branch {number * 104729} says that {TOPICS[number % 3]}, ticket {number}"


@pytest.mark.usefixtures("ray_4_cpus")
def test_planted_leak_is_caught_before_tuning(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [Triple(f"row-{number}", "Rate this.", make_report(number), "High") for number in range(80)]
    tested = [row for row in rows if row.assign_split(0.25) == "test"]
    planted = [{"instruction": "How urgent?", "input": row.input, "output": "High"} for row in tested]
    reworded = [{"instruction": "Rate this.", "input": f"{row.input} today", "output": "High"} for row in tested]
    own = [{"instruction": row.instruction, "input": row.input, "output": row.output} for row in rows]
    path = tmp_path / "leak.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*own, *planted, *reworded]))
    config = make_config(data={"sources": [str(path)], "near_duplicates": 0.8})
    packs_dir = prepare(config, ray_is_running).dataset.path
    outcomes = {
        int(entry["position"]): entry[OUTCOME_COLUMN]
        for batch in read_entries(packs_dir)
        for entry in batch.to_pylist()
    }
    in_order = [outcomes[position] for position in sorted(outcomes)]
    assert len(tested) > 10
    # The same input goes to the test rows with every instruction; what resembles a test row is skipped.
    assert set(in_order[80 : 80 + len(planted)]) == {"test"}
    assert set(in_order[80 + len(planted) :]) <= {"near_duplicate", "test"}
    trained = {json.loads(line)["input"] for line in (tmp_path / "runs/tiny/few_shot.jsonl").read_text().splitlines()}
    assert not trained & {row["input"] for row in [*planted, *reworded]}
