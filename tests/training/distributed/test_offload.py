"""Offloading trains the same model, and resumes from the same checkpoints."""

from pathlib import Path

import pytest

from tests.training.distributed.offload_probe import CHECKPOINT_STEP, NUM_MICRO_BATCHES
from tests.training.processes import run_ranks
from tests.training.tiny_models import save_llama

# Gradient norms are summed in another order; measured: 6e-8.
TOLERANCE = 1e-6
# The first value after the checkpoint: each step has a loss per micro-batch and a norm.
RESUMED_VALUES = CHECKPOINT_STEP * (NUM_MICRO_BATCHES + 1)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pytest.param(1, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        pytest.param(2, "bf16", marks=pytest.mark.slow),
        (3, "bf16"),
        pytest.param(3, "fp32", marks=pytest.mark.slow),
    ],
)
def test_offloading_does_not_change_losses(tmp_path: Path, stage: int, precision: str) -> None:
    save_llama(tmp_path / "base")
    for rank in run_ranks("tests.training.distributed.offload_probe", 2, tmp_path, str(stage), precision):
        expected = rank["none"]["uninterrupted"]
        assert set(rank) == ({"none", "optimizer", "parameters", "both"} if stage == 3 else {"none", "optimizer"})
        for losses in rank.values():
            assert losses["uninterrupted"] == pytest.approx(expected, rel=TOLERANCE)
            # From its own checkpoint, bitwise.
            assert losses["resumed"] == losses["uninterrupted"][RESUMED_VALUES:]
            # From a checkpoint without offloading: a run that was out of memory can resume with offloading.
            assert losses["switched"] == pytest.approx(expected[RESUMED_VALUES:], rel=TOLERANCE)
