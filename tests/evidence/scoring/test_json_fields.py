"""JSON outputs: valid ones, and fields by path."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.evidence.scoring.json_fields import FieldAccuracy, expects_json, parse_object, score_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4).map(json.dumps)


def test_which_outputs_are_json() -> None:
    assert expects_json(['{"a": 1}', " {} "])
    assert not expects_json([]) and not expects_json(['{"a": 1}', "[1]"]) and not expects_json(["yes"])


@pytest.mark.parametrize(
    "text", ["", "[1]", "1", '{"a": 1', '{"a": NaN}', '{"a": 1, "a": 2}', 'x {"a": 1}', "[" * 100_000]
)
def test_no_object(text: str) -> None:
    assert parse_object(text) is None


def test_fields_by_path() -> None:
    expected = ['{"name": "x", "size": {"w": 1, "h": 2}, "tags": ["a", "b"]}'] * 2
    answers = ['{"tags": ["a", "c"], "name": "x", "size": {"w": 1.0}, "more": 0}', "no JSON"]
    scores = score_json(answers, expected)
    assert scores.valid == (True, False) and scores.extra_fields == 1
    assert scores.field_accuracy == (3 / 5, 0.0)
    assert scores.fields == (
        FieldAccuracy("name", 2, 1),
        FieldAccuracy("size.h", 2, 0),
        FieldAccuracy("size.w", 2, 1),
        FieldAccuracy("tags.0", 2, 1),
        FieldAccuracy("tags.1", 2, 0),
    )


def test_values_are_compared_as_json() -> None:
    assert score_json(['{"a": true}'], ['{"a": 1}']).field_accuracy == (0.0,)
    assert score_json(['{"a": "1"}'], ['{"a": 1}']).field_accuracy == (0.0,)
    assert score_json(['{"a": null}', "{}"], ['{"a": null}'] * 2).field_accuracy == (1.0, 0.0)
    # A dot in a key is no path.
    assert score_json(['{"a": {"b": 1}}'], ['{"a.b": 1}']).field_accuracy == (0.0,)
    assert score_json(["{}", '{"a": 1}'], ["{}", "{}"]).field_accuracy == (1.0, 0.0)
    assert score_json(['{"a": {}}'], ['{"a": []}']).field_accuracy == (0.0,)


def test_an_expected_output_must_be_an_object() -> None:
    with pytest.raises(ValueError, match="no JSON object is expected"):
        score_json(["{}"], ["yes"])


@given(objects)
def test_an_equal_object_is_right(text: str) -> None:
    scores = score_json([json.dumps(json.loads(text), indent=2)], [text])
    assert scores.valid == (True,) and scores.field_accuracy == (1.0,) and scores.extra_fields == 0
