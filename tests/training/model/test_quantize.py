"""Adapters on a 4-bit base model. Training needs bitsandbytes, which is optional: it makes every import slower."""

from pathlib import Path

import pytest
import torch

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.errors import InputError
from instruct_ray.training.capacity.model_sizer import count_quantizable
from instruct_ray.training.model import requirements
from instruct_ray.training.model.load import build_meta_model
from instruct_ray.training.model.requirements import check_quantization_available
from tests.training.distributed.offload_probe import CHECKPOINT_STEP, NUM_MICRO_BATCHES
from tests.training.processes import run_ranks
from tests.training.tiny_models import CONFIGS, save_llama


def test_missing_bitsandbytes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    check_quantization_available(LoraConfig())
    with pytest.raises(InputError, match=r"model.lora.quantize: needs bitsandbytes .*instruct-ray\[qlora\]"):
        check_quantization_available(LoraConfig(quantize="4bit"))


def test_quantizable_parameters_are_those_of_frozen_linear_layers() -> None:
    model = build_meta_model(CONFIGS["llama"], LoraConfig(rank=4), TrainConfig(), torch.bfloat16, "sdpa")
    # Three layers: queries and outputs 32 x 32, keys and values 16 x 32, three matrices 48 x 32.
    assert count_quantizable(model) == 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)


@pytest.mark.parametrize("stage", [1, 2])
def test_adapters_on_four_bits_resume_bitwise(tmp_path: Path, stage: int) -> None:
    pytest.importorskip("bitsandbytes", reason="needs instruct-ray[qlora]")
    save_llama(tmp_path / "base")
    ranks = run_ranks("tests.training.model.quantize_probe", 2, tmp_path, str(stage))
    for rank in ranks:
        assert rank["dtypes"] == ["torch.bfloat16", "torch.uint8"]
        assert rank["resumed"] == rank["uninterrupted"][CHECKPOINT_STEP * (NUM_MICRO_BATCHES + 1) :]
    # Two adapter matrices for each of the seven linear layers of two layers, gathered on rank 0.
    assert [rank["num_lora_tensors"] for rank in ranks] == [2 * 7 * 2, 0]
