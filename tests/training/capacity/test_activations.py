"""The peak memory measured on the meta device equals that of the real computation."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.capacity.activations import (
    LiveMemoryTracker,
    PackShape,
    countable_attention,
    peak_activation_bytes,
)
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, KeyChunks
from instruct_ray.training.model.load import build_meta_model
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, tree_mask
from tests.training.tiny_models import CONFIGS, CPU, EXAMPLES

PLAIN = TrainConfig(precision="fp32")
CHECKPOINTED = TrainConfig(precision="fp32", activation_checkpointing=True)
LORA = LoraConfig(rank=4)
# For masks and counters, which matter in a tiny model.
TOLERANCE = 0.1
[PACK] = pack_examples(EXAMPLES, 128)


def measure_real_peak(
    hf_config: PreTrainedConfig, lora: LoraConfig | None, train: TrainConfig, attn_implementation: str
) -> int:
    """The peak while the pack is really computed."""
    torch.manual_seed(0)
    model = build_meta_model(hf_config, lora, train, torch.float32, attn_implementation).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(drop_gradient)
    layout = MaskLayout.from_hf_config(hf_config, attn_implementation, torch.float32)
    tracker = LiveMemoryTracker()
    tracker.ignore([*model.parameters(), *model.buffers()])
    with tracker:
        pack_loss(model, PACK, CPU, layout).backward()
    return tracker.peak


def drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def measure_meta_peak(
    hf_config: PreTrainedConfig, lora: LoraConfig | None, train: TrainConfig, attn_implementation: str
) -> int:
    layout = MaskLayout.from_hf_config(hf_config, attn_implementation, torch.float32)
    tensors = PackTensors.from_pack(PACK, layout, CPU)
    mask = tree_mask(tensors.subtree_end_T, tensors.position_ids_T, layout.window)[0, 0]
    num_targets = int((PACK["labels"] != IGNORE_INDEX).sum())
    shape = PackShape(1, len(PACK["input_ids"]), num_targets, KeyChunks.from_mask(mask).keys_NK.shape[1])
    model = build_meta_model(hf_config, lora, train, torch.float32, countable_attention(attn_implementation))
    return peak_activation_bytes(model, shape)


@pytest.mark.parametrize("train", [PLAIN, CHECKPOINTED], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3-sliding"])
def test_meta_peak_equals_real_peak(name: str, lora: LoraConfig | None, train: TrainConfig) -> None:
    for attn_implementation in (TREE_CHUNKS, "eager"):
        real_peak = measure_real_peak(CONFIGS[name], lora, train, attn_implementation)
        meta_peak = measure_meta_peak(CONFIGS[name], lora, train, attn_implementation)
        assert meta_peak == pytest.approx(real_peak, rel=TOLERANCE)
