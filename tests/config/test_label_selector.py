"""Label selectors as Ray writes them."""

import pytest
from ray._private.label_utils import validate_label_selector

from instruct_ray.config.label_selector import matches
from instruct_ray.config.train import TrainConfig


@pytest.mark.parametrize("condition", ["spot", "!spot", "in(a, b)", "!in(a,b)", "A-1.b_2"])
def test_conditions_of_ray_are_accepted(condition: str) -> None:
    selector = {"ray.io/accelerator-type": condition}
    assert TrainConfig(label_selector=selector).label_selector == selector
    assert validate_label_selector(selector) is None


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"market": "spot or not"}, "market: 'spot or not' is not a condition; write VALUE"),
        ({"market": "in()"}, "is not a condition"),
        ({"market": ""}, "is not a condition"),
        ({"-market": "spot"}, "'-market' is not the key of a label"),
    ],
)
def test_others_are_refused(selector: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        TrainConfig(label_selector=selector)


@pytest.mark.parametrize(
    ("labels", "selector", "expected"),
    [
        ({}, {}, True),
        ({"market": "spot"}, {"market": "spot"}, True),
        ({"market": "spot"}, {"market": "!spot"}, False),
        ({}, {"market": "spot"}, False),
        ({}, {"market": "!spot"}, True),
        ({"zone": "b"}, {"zone": "in(a, b)"}, True),
        ({"zone": "c"}, {"zone": "in(a,b)"}, False),
        ({"zone": "c"}, {"zone": "!in(a, b)"}, True),
        ({"zone": "a", "market": "spot"}, {"zone": "a", "market": "!spot"}, False),
    ],
)
def test_nodes_match_by_all_conditions(labels: dict[str, str], selector: dict[str, str], expected: bool) -> None:
    assert matches(labels, selector) is expected
