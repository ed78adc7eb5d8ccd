"""A user's own measure: loading it, and what it may return."""

import sys
from pathlib import Path

import pytest

from instruct_ray.evidence.scoring.custom import load_metric, score_rows

MODULE = """
THRESHOLD = 3
def length(answer, expected, row):
    return len(answer) - len(expected) + row["bonus"]
def fails(answer, expected, row):
    raise KeyError("x")
def text(answer, expected, row):
    return "much"
def infinite(answer, expected, row):
    return float("inf")
def two(answer, expected):
    return 1
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of a user."""
    (tmp_path / "my_scores_of_test_custom.py").write_text(MODULE)
    (tmp_path / "my_broken_of_test_custom.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scores_of_test_custom", raising=False)


def test_a_function_scores_rows() -> None:
    metric = load_metric("my_scores_of_test_custom:length")
    assert score_rows(metric, ["ab", "c"], ["a", "c"], [{"id": "1", "bonus": 0}, {"id": "2", "bonus": 5}]) == [1.0, 5.0]
    assert score_rows(metric, [], [], []) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_scores_of_test_custom", "not of the form module:function"),
        ("a:b:c", "not of the form module:function"),
        ("my_missing_of_test_custom:f", "can't import my_missing_of_test_custom: ModuleNotFoundError"),
        ("my_broken_of_test_custom:f", "can't import my_broken_of_test_custom: ZeroDivisionError"),
        ("my_scores_of_test_custom:lenght", "has no function lenght"),
        ("my_scores_of_test_custom:THRESHOLD", "has no function THRESHOLD"),
        ("my_scores_of_test_custom:two", r"must take \(answer, expected, row\)"),
    ],
)
def test_what_can_not_be_loaded(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^evidence.metric: .*{message}"):
        load_metric(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "failed on row r7: KeyError: 'x'"),
        ("text", "returned 'much' for row r7"),
        ("infinite", "returned inf for row r7"),
    ],
)
def test_what_is_no_score(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^evidence.metric: {message}"):
        score_rows(load_metric(f"my_scores_of_test_custom:{name}"), ["a"], ["a"], [{"id": "r7"}])
