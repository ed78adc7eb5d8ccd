"""Rows that look mislabelled."""

import pytest

from instruct_ray.evidence.suspicious import SuspiciousRow, find_suspicious_rows


def test_two_arms_agree_against_the_label() -> None:
    ids, expected = ["a", "b", "c", "d", "e"], ["high", "high", "high", "high", "High!"]
    tuned, few_shot = ["Low.", "low", "high", "", "high"], ["low", "medium", "low", " ", "HIGH"]
    assert find_suspicious_rows(ids, expected, tuned, few_shot) == [SuspiciousRow(0, "a", "high", "Low.")]


def test_planted_wrong_labels_are_found() -> None:
    right = ["yes" if index % 3 else "no" for index in range(200)]
    planted = {17, 60, 123}
    labels = [("no" if text == "yes" else "yes") if index in planted else text for index, text in enumerate(right)]
    # Few-shot errs elsewhere, too.
    few_shot = ["no" if index % 7 == 0 and index not in planted else text for index, text in enumerate(right)]
    found = find_suspicious_rows([str(index) for index in range(200)], labels, right, few_shot)
    assert {row.index for row in found} == planted


def test_lengths_must_be_equal() -> None:
    with pytest.raises(ValueError, match="shorter"):
        find_suspicious_rows(["a", "b"], ["x", "y"], ["x"], ["x", "y"])
