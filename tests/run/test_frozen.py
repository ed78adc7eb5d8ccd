"""Frozen config sections: later stages must use the values of earlier ones, except keys that are safe to change."""

from collections.abc import Callable

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.run.frozen import freeze_config


def test_changed_keys_are_refused_with_both_values(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "run", "data")
    freeze_config(make_config(), "run", "data", "train")
    freeze_config(make_config(train={"epochs": 9}), "run", "data")
    with pytest.raises(InputError, match=r"train\.epochs was 1, now 9"):
        freeze_config(make_config(train={"epochs": 9}), "run", "train")
    with pytest.raises(InputError, match=r"data\.pack_tokens was 128, now 64; run\.seed was 0, now 1"):
        freeze_config(make_config(data={"pack_tokens": 64}, run={"seed": 1}), "run", "data")


def test_keys_that_only_affect_execution_may_change(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "run", "train")
    freeze_config(make_config(train={"num_workers": 8, "max_failures": 0}), "run", "train")
    for selector in ({"market": "spot"}, {"market": "on-demand", "zone": "a"}):
        freeze_config(make_config(train={"label_selector": selector}), "run", "train")


def test_adding_an_adapter_is_a_change(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "model")
    with pytest.raises(InputError, match=r"model\.lora was None, now {'rank': 16"):
        freeze_config(make_config(model={"lora": {}}), "model")
