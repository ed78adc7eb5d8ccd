"""On a GPU, packs give the losses and gradients of their examples alone: FlexAttention, and the compiled loss.

The reference is plain transformers on a CPU in fp32, one example at a time.
"""

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.requirements import MIN_FLEX_HEAD_DIM, packed_attn_implementation
from instruct_ray.training.model.tree_mask import FLEX, MaskLayout
from tests.gpu.gpu_mark import NEEDS_GPU
from tests.training.tiny_models import (
    EXAMPLES,
    MIXED_LAYERS,
    SIZES,
    compute_gradients,
    compute_unpacked_loss,
    make_model,
)

pytestmark = NEEDS_GPU
GPU = torch.device("cuda")
FLEX_SIZES = SIZES | {"head_dim": MIN_FLEX_HEAD_DIM}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**FLEX_SIZES),
    "qwen3": Qwen3Config(**FLEX_SIZES),
    "mistral": MistralConfig(**FLEX_SIZES, sliding_window=6),
    "gemma3": Gemma3TextConfig(**FLEX_SIZES, **MIXED_LAYERS),
    "mixtral": MixtralConfig(**FLEX_SIZES, num_local_experts=4, num_experts_per_tok=2),
}
# Products in another order than on the CPU.
FP32_TOLERANCE = 1e-4


def sum_packed_losses(model: PreTrainedModel, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    attn_implementation = packed_attn_implementation(config, GPU)
    assert attn_implementation == FLEX
    model.set_attn_implementation(attn_implementation)
    layout = MaskLayout.from_hf_config(config, attn_implementation, dtype)
    packs = pack_examples(EXAMPLES, 128)
    return torch.stack([pack_loss(model, pack, GPU, layout) for pack in packs]).sum()


def relative_distance(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients, over the norm of the expected ones."""
    assert actual.keys() == expected.keys()
    differences = torch.stack([(actual[name].cpu().float() - expected[name]).norm() for name in expected])
    return float(differences.norm() / torch.stack([gradient.norm() for gradient in expected.values()]).norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_in_fp32_equal_those_of_examples_alone(name: str) -> None:
    model = make_model(CONFIGS[name])
    expected_loss = torch.stack([compute_unpacked_loss(model, example) for example in EXAMPLES]).sum()
    expected = compute_gradients(model, expected_loss)
    model = model.to(GPU)
    loss = sum_packed_losses(model, CONFIGS[name], torch.float32)
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=FP32_TOLERANCE, atol=0)
    assert relative_distance(compute_gradients(model, loss), expected) < FP32_TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_in_bf16_are_as_close_as_those_of_examples_alone(name: str) -> None:
    model = make_model(CONFIGS[name])
    expected = compute_gradients(model, torch.stack([compute_unpacked_loss(model, e) for e in EXAMPLES]).sum())
    model = model.bfloat16()
    alone = compute_gradients(model, torch.stack([compute_unpacked_loss(model, e) for e in EXAMPLES]).sum())
    model = model.to(GPU)
    packed = compute_gradients(model, sum_packed_losses(model, CONFIGS[name], torch.bfloat16))
    assert relative_distance(packed, expected) < 1.5 * relative_distance(alone, expected)
