"""Slices: which rows are together, and when a loss can be judged."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.evidence.statistics.slices import (
    OTHER,
    Judgement,
    Slice,
    SliceKind,
    SliceResult,
    judge_slices,
    min_rows_to_judge,
    slice_by_length,
    slice_by_value,
)


def judge(tuned: list[bool], few_shot: list[bool], slices: list[Slice], loss: float = 0.05) -> tuple[SliceResult, ...]:
    """The tuned model against few-shot, one row a group."""
    correct = {"tuned": tuned, "few_shot": few_shot}
    return judge_slices(slices, correct, range(len(tuned)), arm="tuned", reference="few_shot", tolerated_loss=loss)


def all_rows(num_rows: int) -> list[Slice]:
    return [Slice(SliceKind.LABEL, "all", tuple(range(num_rows)))]


@pytest.mark.parametrize(("loss", "rows"), [(0.02, 189), (0.05, 73), (0.1, 35)])
def test_rows_to_judge(loss: float, rows: int) -> None:
    assert min_rows_to_judge(loss) == rows
    assert judge([True] * rows, [True] * rows, all_rows(rows), loss)[0].judgement is Judgement.NO_LOSS
    fewer = judge([True] * (rows - 1), [True] * (rows - 1), all_rows(rows - 1), loss)[0]
    assert fewer.judgement is Judgement.CANNOT_BE_JUDGED


def test_judgements() -> None:
    slices = [
        Slice(SliceKind.INSTRUCTION, name, tuple(range(start, stop)))
        for name, start, stop in (("same", 0, 100), ("worse", 100, 130), ("few", 130, 140), ("open", 140, 240))
    ]
    tuned = [index not in range(100, 115) and index not in range(140, 143) for index in range(240)]
    results = judge(tuned, [True] * 240, slices)
    assert {result.name: result.judgement for result in results} == {
        "same": Judgement.NO_LOSS,
        # Too few rows to show that there is no loss, but enough to show one.
        "worse": Judgement.LOSS,
        "few": Judgement.CANNOT_BE_JUDGED,
        "open": Judgement.NOT_SETTLED,
    }
    assert results[1].accuracies == {"tuned": 0.5, "few_shot": 1.0} and results[1].num_rows == 30


def test_many_slices_make_a_loss_less_certain() -> None:
    tuned, few_shot = [False] * 6 + [True] * 34, [True] * 40
    one = judge(tuned, few_shot, all_rows(40))[0]
    assert one.judgement is Judgement.LOSS
    many = judge(tuned * 5, few_shot * 5, [
        Slice(SliceKind.LABEL, str(start), tuple(range(start, start + 40))) for start in range(0, 200, 40)
    ])  # fmt: skip
    assert many[0].p_value == pytest.approx(5 * (one.p_value or 0))
    assert many[0].judgement is Judgement.CANNOT_BE_JUDGED


def test_related_rows_count_as_fewer() -> None:
    right = [True] * 100
    correct = {"tuned": right, "few_shot": right}
    groups = [index // 4 for index in range(100)]
    [result] = judge_slices(all_rows(100), correct, groups, arm="tuned", reference="few_shot")
    assert result.judgement is Judgement.CANNOT_BE_JUDGED
    [result] = judge_slices(all_rows(100), correct, [0] * 50 + [1] * 50, arm="tuned", reference="few_shot")
    assert result.judgement is Judgement.CANNOT_BE_JUDGED and result.p_value is None


def test_rare_values_share_a_slice() -> None:
    values = ["a"] * 20 + ["b"] * 30 + ["c"] * 9 + ["d"] * 2
    slices = slice_by_value(SliceKind.LABEL, values)
    assert [(part.name, len(part.indices)) for part in slices] == [("b", 30), ("a", 20), (OTHER, 11)]
    assert slice_by_value(SliceKind.INSTRUCTION, ["same"] * 50) == []
    assert slice_by_value(SliceKind.INSTRUCTION, [str(index) for index in range(50)]) == []


def test_lengths() -> None:
    slices = slice_by_length([5, 1, 2, 3, 4, 6, 7, 8])
    assert [part.name for part in slices] == [f"{start} to {start + 1} tokens" for start in (1, 3, 5, 7)]
    assert slices[0].indices == (1, 2)
    assert slice_by_length([7] * 50) == [] == slice_by_length([])


@given(st.lists(st.integers(1, 50), max_size=200))
def test_length_slices_hold_every_row_once(lengths: list[int]) -> None:
    slices = slice_by_length(lengths)
    found = sorted(index for part in slices for index in part.indices)
    assert found == (list(range(len(lengths))) if slices else [])
    ranges = [sorted(lengths[index] for index in part.indices) for part in slices]
    assert all(before[-1] < after[0] for before, after in pairwise(ranges))
