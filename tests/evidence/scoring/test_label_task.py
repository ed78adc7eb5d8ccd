"""Label tasks: what counts as one, and confusion counts."""

import pytest

from instruct_ray.evidence.scoring.label_task import count_confusion, find_labels, macro_f1


def test_few_short_repeated_outputs_are_labels() -> None:
    assert find_labels(["High", "low", "high."] * 10) == ("high", "low")
    # One typo does not change that.
    assert find_labels(["high", "low"] * 20 + ["hihg"]) is not None


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        ["yes", "no"] * 5,
        ["same"] * 50,
        [f"answer {index}" for index in range(50)],
        ["yes", "no"] * 10 + [f"answer {index}" for index in range(10)],
        [f"a sentence of more than {count} words in every row" for count in ("eight", "nine")] * 20,
    ],
    ids=["none", "few rows", "one label", "distinct", "half distinct", "long"],
)
def test_other_outputs_are_no_labels(outputs: list[str]) -> None:
    assert find_labels(outputs) is None


def test_confusion_counts_answers_outside_the_labels() -> None:
    confusion = count_confusion(["High", "low.", "perhaps", "high"], ["high", "high", "low", "high"])
    assert confusion.labels == ("high", "low")
    assert confusion.counts == ((2, 1, 0), (0, 0, 1))
    assert confusion.num_outside == 1


def test_macro_f1_by_hand() -> None:
    # high: 2 * 2 / (2 answered + 3 expected); low: none of 1 answered + 1 expected.
    assert macro_f1(["High", "low.", "perhaps", "high"], ["high", "high", "low", "high"]) == pytest.approx(0.4)
    assert macro_f1(["a", "b"], ["a", "b"]) == 1 and macro_f1(["", ""], ["a", "b"]) == 0
    with pytest.raises(ValueError, match="no rows"):
        macro_f1([], [])
    with pytest.raises(ValueError, match="1 answers to 2 rows"):
        macro_f1(["a"], ["a", "b"])
