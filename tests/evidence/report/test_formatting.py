"""Numbers as the report shows them."""

import pytest

from instruct_ray.evidence.report.formatting import interval, number, p_value, percent, points, seconds, short_label


def test_numbers_are_written_for_people() -> None:
    assert [percent(0.8702), percent(None)] == ["87.0\u00a0%", "–"]
    assert [points(0.042), points(-0.042), points(-0.0001), points(None)] == ["+4.2", "−4.2", "+0.0", "–"]
    assert [number(1234.4), number(3.42), number(7.0), number(-397.0)] == ["1,234", "3.4", "7", "−397"]
    assert [seconds(0.0854), seconds(1.25)] == ["85\u00a0ms", "1.25\u00a0s"]
    assert [p_value(0.0004), p_value(0.0321), p_value(None)] == ["< 0.001", "0.032", "–"]


@pytest.mark.parametrize(
    ("lower", "upper", "kind", "shown"),
    [
        (0.821, 0.904, "percent", "82.1–90.4\u00a0%"),
        (-0.01, 0.05, "points", "−1.0 to +5.0"),
        (0.06, 0.08, "seconds", "60–80\u00a0ms"),
        (0.9, 1.1, "seconds", "900\u00a0ms to 1.10\u00a0s"),
        (None, 0.5, "percent", "–"),
    ],
)
def test_intervals_name_their_unit_once(lower: float | None, upper: float, kind: str, shown: str) -> None:
    assert interval(lower, upper, kind) == shown


def test_labels_of_charts_stay_in_one_line() -> None:
    assert short_label("a\n b", 10) == "a b"
    assert short_label("abcdefghij", 5) == "abcd…"
