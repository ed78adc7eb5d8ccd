"""What is offloaded trains the same, and continues from the same checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.distributed.offload_probe import HALF, NUM_MICRO
from tests.training.processes import run_ranks

# Gradient norms are summed in another order; found: 6e-8.
TOLERANCE = 1e-6
# Behind HALF steps, of as many losses and one norm each.
SECOND_HALF = HALF * (NUM_MICRO + 1)


def make_base(folder: Path) -> None:
    """A random 2-layer Llama in `folder/base`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")


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
def test_offloading_changes_nothing(tmp_path: Path, stage: int, precision: str) -> None:
    make_base(tmp_path)
    for rank in run_ranks("tests.training.distributed.offload_probe", 2, tmp_path, str(stage), precision):
        expected = rank["none"]["whole"]
        assert set(rank) == ({"none", "optimizer", "parameters", "both"} if stage == 3 else {"none", "optimizer"})
        for kind in rank.values():
            assert kind["whole"] == pytest.approx(expected, rel=TOLERANCE)
            # Its own checkpoint: bitwise. So a run that ran out of memory may continue offloaded.
            assert kind["again"] == kind["whole"][SECOND_HALF:]
            assert kind["switched"] == pytest.approx(expected[SECOND_HALF:], rel=TOLERANCE)
