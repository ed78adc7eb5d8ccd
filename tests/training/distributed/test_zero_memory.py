"""Memory of the ranks at ZeRO stages 0 and 3."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.processes import run_ranks

pytestmark = pytest.mark.slow
MIB = 2**20


def test_no_rank_holds_the_whole_model_at_stage_3(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    size = 2 * model.num_parameters()
    model.save_pretrained(tmp_path / "base", max_shard_size="50MB")
    del model
    peak = {}
    for stage in (0, 3):
        ranks = run_ranks("tests.training.model.load_probe", 2, tmp_path, str(stage))
        print(stage, size // MIB, [{name: value // MIB for name, value in rank.items()} for rank in ranks])
        peak[stage] = max(rank["engine"] for rank in ranks)
        for rank in ranks:
            assert rank["weights"] == pytest.approx(size / 2 if stage == 3 else size, rel=0.01)
    # Its half of the weights, and one gathered layer at a time.
    assert max(rank["loading"] for rank in ranks) < 0.75 * size
    # Half of the weights, of their fp32 copies and of the two moments.
    assert peak[3] < 0.6 * peak[0]
