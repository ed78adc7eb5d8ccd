"""What is counted on shapes alone is what the real computation holds."""

import pytest
import torch
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
# Masks and counters, which a tiny model notices.
TOLERANCE = 0.1
[PACK] = pack_examples(EXAMPLES, 128)


def real_peak(config: PreTrainedConfig, lora: LoraConfig | None, train: TrainConfig, implementation: str) -> int:
    """Counted while the pack is computed for real."""
    torch.manual_seed(0)
    model = build_meta_model(config, lora, train, torch.float32, implementation).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None))
    layout = MaskLayout.from_hf_config(config, implementation, torch.float32)
    live = LiveMemoryTracker()
    live.ignore([*model.parameters(), *model.buffers()])
    with live:
        pack_loss(model, PACK, CPU, layout).backward()
    return live.peak


def counted_peak(config: PreTrainedConfig, lora: LoraConfig | None, train: TrainConfig, implementation: str) -> int:
    layout = MaskLayout.from_hf_config(config, implementation, torch.float32)
    tensors = PackTensors.from_pack(PACK, layout, CPU)
    keys_NK = KeyChunks.from_mask(tree_mask(tensors.subtree_end_T, tensors.position_ids_T, layout.window)[0, 0]).keys_NK
    num_trained = int((PACK["labels"] != IGNORE_INDEX).sum())
    shape = PackShape(1, len(PACK["input_ids"]), num_trained, keys_NK.shape[1])
    return peak_activation_bytes(
        build_meta_model(config, lora, train, torch.float32, countable_attention(implementation)), shape
    )


@pytest.mark.parametrize("train", [PLAIN, CHECKPOINTED], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3-sliding"])
def test_shapes_count_what_the_computation_holds(name: str, lora: LoraConfig | None, train: TrainConfig) -> None:
    for implementation in (TREE_CHUNKS, "eager"):
        real = real_peak(CONFIGS[name], lora, train, implementation)
        assert counted_peak(CONFIGS[name], lora, train, implementation) == pytest.approx(real, rel=TOLERANCE)
