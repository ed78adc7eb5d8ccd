"""Gradients of bf16 weights are added up and reduced in fp32, over micro-batches and over ranks."""

from pathlib import Path

import pytest

from tests.training.distributed.bf16_probe import NUM_MICRO_BATCHES, SMALL
from tests.training.processes import run_ranks


def test_small_gradients_are_not_lost(tmp_path: Path) -> None:
    first, second = run_ranks("tests.training.distributed.bf16_probe", 2, tmp_path)
    assert len(first) == 8
    # bf16 would round it to a multiple of 2**-7, after losing most of the small ones.
    expected = 1 + (2 * NUM_MICRO_BATCHES - 1) * SMALL
    for name, gradient in first.items():
        # From stage 1 on, one rank has the weight.
        assert max(gradient, second[name]) == pytest.approx(expected, rel=1e-6), name
