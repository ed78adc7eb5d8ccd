"""The outcome of a record: one decision for `prepare` and `preview`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.decisions import DuplicateFilter, RowDecision, decide_rows, group_key, num_copies
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.files import find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.triple import Triple
from tests.data.sources.read_all import GOOD


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


@pytest.fixture
def decide(make_config: Callable[..., Config], tmp_path: Path, renderer: Renderer) -> Callable[..., list[RowDecision]]:
    """Decides about rows in one batch."""

    def decide_batch(rows: list[Any], weight: float = 1.0, **options: Any) -> list[RowDecision]:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
        data = make_config(data={"sources": [{"path": str(path), "weight": weight}], **options}).data
        [file] = find_source_files(data.sources, tmp_path)
        [chunk] = split_into_chunks([file])
        return decide_rows(list(read_records(chunk, data)), file, renderer, data, seed=0)

    return decide_batch


def test_each_row_has_one_decision_with_unparsed_rows_first(decide: Callable[..., list[RowDecision]]) -> None:
    rows = [GOOD | {"input": f"report {n}"} for n in range(20)]
    long = GOOD | {"input": "word " * 200}
    decisions = decide([long, *rows, {"instruction": "a"}, 7])
    assert [decision.row_id for decision in decisions] == ["0:21", "0:22", "0:0", *(f"0:{n + 1}" for n in range(20))]
    unparsed, too_long, usable = decisions[:2], decisions[2], decisions[3:]
    assert [decision.outcome for decision in unparsed] == ["quarantined", "quarantined"]
    assert [decision.error and decision.error.reason for decision in unparsed] == ["missing_field", "not_an_object"]
    assert (too_long.outcome, too_long.fitted) == ("too_long", None)
    assert too_long.num_tokens > 200
    for row, decision in zip(rows, usable, strict=True):
        split = Triple("", row["instruction"], row["input"], "").assign_split(0.25)
        assert decision.outcome == ("trained" if split == "train" else split)
        assert decision.copies == (split == "train")
        assert decision.fitted is not None and decision.num_tokens == decision.fitted.num_tokens
    assert {decision.outcome for decision in usable} == {"trained", "test"}


def test_a_weight_below_one_skips_rows_to_train_on_only(decide: Callable[..., list[RowDecision]]) -> None:
    rows = [GOOD | {"input": f"report {n}"} for n in range(60)]
    full, half = decide(rows), decide(rows, weight=0.5)
    skipped = [decision for decision in half if decision.outcome == "left_out"]
    assert 5 < len(skipped) < 40
    assert all(decision.fitted is None and decision.num_tokens > 0 for decision in skipped)
    held_out = [[d.row_id for d in decisions if d.outcome == "test"] for decisions in (full, half)]
    assert held_out[0] == held_out[1]


def test_smaller_train_fractions_are_parts_of_larger_ones(decide: Callable[..., list[RowDecision]]) -> None:
    rows = [{"instruction": f"{verb} it", "input": f"report {n}", "output": "b"} for n in range(200) for verb in "ab"]
    trained, held_out = [], []
    for fraction in (0.25, 0.5, 1.0):
        decisions = decide(rows, train_fraction=fraction)
        trained.append({decision.split_key for decision in decisions if decision.outcome == "trained"})
        held_out.append([decision.row_id for decision in decisions if decision.outcome == "test"])
        # Rows with the same input stay together.
        left_out = {decision.split_key for decision in decisions if decision.outcome == "left_out"}
        assert not left_out & trained[-1]
        assert len(trained[-1]) / len(trained[-1] | left_out) == pytest.approx(fraction, abs=0.1)
    assert trained[0] < trained[1] < trained[2]
    assert held_out[0] == held_out[1] == held_out[2] != []


@pytest.mark.parametrize(("weight", "counts"), [(1.0, {1}), (2.5, {2, 3}), (0.5, {0, 1}), (3.0, {3})])
def test_copies_are_the_weight_on_average(weight: float, counts: set[int]) -> None:
    copies = [num_copies(weight, 0, f"0:{n}") for n in range(2000)]
    assert set(copies) == counts
    assert sum(copies) / len(copies) == pytest.approx(weight, abs=0.05)


def test_duplicate_filter_recognizes_content_that_was_added() -> None:
    duplicates = DuplicateFilter()
    assert [duplicates.add(content) for content in (b"a", b"b", b"a", b"a")] == [True, True, False, False]


def test_group_key_is_equal_for_one_instruction_with_inputs() -> None:
    assert group_key(Triple("", "Rate", "x", "y")) == group_key(Triple("", "Rate", "z", "y"))
    assert group_key(Triple("", "Rate", "x", "y")) != group_key(Triple("", "Judge", "x", "y"))
    assert 0 <= group_key(Triple("", "Rate", "x", "y")) < 2**64
