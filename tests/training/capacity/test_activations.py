"""The peak memory measured on the meta device equals that of the real computation."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.capacity.activations import (
    LiveMemoryTracker,
    PackShape,
    countable_attention,
    peak_activation_bytes,
)
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, KeyChunks
from instruct_ray.training.model.load import build_meta_model
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.padded import padded_loss, unpack_branches
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, tree_mask
from tests.training.tiny_models import CONFIGS, CPU, EXAMPLES, SIZES

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
    model = build_meta_model(hf_config, lora, train, torch.float32, countable_attention(hf_config, attn_implementation))
    return peak_activation_bytes(model, shape, in_chunks=False)


@pytest.mark.parametrize("train", [PLAIN, CHECKPOINTED], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3-sliding"])
def test_meta_peak_equals_real_peak(name: str, lora: LoraConfig | None, train: TrainConfig) -> None:
    for attn_implementation in (TREE_CHUNKS, "eager"):
        real_peak = measure_real_peak(CONFIGS[name], lora, train, attn_implementation)
        meta_peak = measure_meta_peak(CONFIGS[name], lora, train, attn_implementation)
        assert meta_peak == pytest.approx(real_peak, rel=TOLERANCE)


PADDED_KINDS: dict[str, PreTrainedConfig] = {
    "llama": CONFIGS["llama"],
    "gpt2": CONFIGS["gpt2"],
    "gemma2": CONFIGS["gemma2"],
    # Positions counted by index, convolution, recurrence with and without attention, experts.
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "lfm2": Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
    "mamba2": Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
    ),
    "recurrent_gemma": RecurrentGemmaConfig(**SIZES, lru_width=32),
    "mixtral": CONFIGS["mixtral"],
}


@pytest.mark.parametrize(("name", "lora"), [*((name, None) for name in PADDED_KINDS), ("mixtral", LORA)])
def test_padded_peak_is_measured_for_every_kind_of_model(name: str, lora: LoraConfig | None) -> None:
    hf_config = PADDED_KINDS[name]
    attn_implementation = default_attn_implementation(hf_config)
    real_model = build_meta_model(hf_config, lora, PLAIN, torch.float32, attn_implementation).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*real_model.parameters(), *real_model.buffers()):
            tensor.fill_(0.01)
    for parameter in real_model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(drop_gradient)
    tracker = LiveMemoryTracker()
    tracker.ignore([*real_model.parameters(), *real_model.buffers()])
    with tracker:
        padded_loss(real_model, PACK, CPU).backward()
    branches = unpack_branches(PACK)
    num_targets = int((PACK["labels"] != IGNORE_INDEX).sum())
    length = max(len(branch.input_ids) for branch in branches)
    model = build_meta_model(hf_config, lora, PLAIN, torch.float32, countable_attention(hf_config, attn_implementation))
    counted = peak_activation_bytes(
        model, PackShape(len(branches), length, num_targets, length, is_padded=True), in_chunks=False
    )
    assert counted == pytest.approx(tracker.peak, rel=0.25)


def test_model_that_looks_at_values_gets_a_rough_estimate(caplog: pytest.LogCaptureFixture) -> None:
    sizer = ModelSizer(CONFIGS["llama"], "sdpa", PackShape(1, 64, 8, 64))
    with patch.object(LlamaForCausalLM, "forward", side_effect=RuntimeError("no .item() on meta tensors")):
        size = sizer.compute_size(None, PLAIN)
    assert "a rough estimate, llama can't be measured" in caplog.text
    measured = ModelSizer(CONFIGS["llama"], "sdpa", PackShape(1, 64, 8, 64)).compute_size(None, PLAIN)
    assert 0.3 * measured.activation_bytes < size.activation_bytes < 3 * measured.activation_bytes


# As many target tokens as a long answer has, and the vocabulary of a small model.
LONG_ANSWER = Example("long", [5, 6, 7], [*(number % 1_000 for number in range(2_047)), 2])
LARGE_VOCABULARY = LlamaConfig(
    vocab_size=49_152,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def test_long_answers_take_as_much_memory_as_estimated() -> None:
    [pack] = pack_examples([LONG_ANSWER], 2_100)
    layout = MaskLayout.from_hf_config(LARGE_VOCABULARY, TREE_CHUNKS, torch.float32)
    shape = PackShape(1, len(pack["input_ids"]), pack["num_trained"], len(pack["input_ids"]))
    model = build_meta_model(LARGE_VOCABULARY, None, PLAIN, torch.float32, TREE_CHUNKS)
    in_chunks, all_logits = (peak_activation_bytes(model, shape, in_chunks=flag) for flag in (True, False))
    assert in_chunks < 0.3 * all_logits
    assert all_logits > 12 * 2_048 * 49_152
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    peak = measure_memory_peak(lambda: pack_loss(model, pack, CPU, layout, in_chunks=True).backward())
    # With the gradients. Of the memory that other tests freed, some is used again.
    assert peak < 1.2 * in_chunks + 4 * model.num_parameters()


def measure_memory_peak(compute: Callable[[], None]) -> int:
    """By how many bytes the memory of this process grows while it computes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = read_memory("VmRSS")
    compute()
    return read_memory("VmHWM") - before


def read_memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))
