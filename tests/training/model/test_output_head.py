"""The loss in chunks equals that of all logits, for every kind of linear head; other heads are recognized."""

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CohereConfig, GraniteConfig, PreTrainedConfig, PreTrainedModel

from instruct_ray.data.example import Example
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.model import output_head
from instruct_ray.training.model.loss import pack_loss, token_losses
from instruct_ray.training.model.output_head import (
    _cross_entropy,
    _fused_cross_entropy,
    chunked_cross_entropy,
    find_unchunkable_head,
)
from instruct_ray.training.model.padded import padded_loss
from tests.training.tiny_models import (
    CONFIGS,
    CPU,
    SHARED_PROMPT,
    SIZES,
    assert_same_gradients,
    build_layout,
    compute_gradients,
    default_attention,
    make_model,
)

# More target tokens than the hidden size of the tiny models, 32, and not a multiple of a chunk.
CHUNK_ROWS = 8
[LONG_PACK] = pack_examples(
    [Example("a", SHARED_PROMPT, [*range(20, 55), 2]), Example("b", [*SHARED_PROMPT, 12], [*range(5, 20), 2])], 128
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "CPU_CHUNK_ROWS", CHUNK_ROWS)


@pytest.fixture
def chunked_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of rows of each loss that is computed in chunks."""
    calls: list[int] = []

    def count(hidden: torch.Tensor, *arguments: object) -> torch.Tensor:
        calls.append(len(hidden))
        return chunked_cross_entropy(hidden, *arguments)

    monkeypatch.setattr(output_head, "chunked_cross_entropy", count)
    return calls


def make_head_model(name: str) -> PreTrainedModel:
    """A model whose head is tied, has a bias, or is a copy that an adapter trains."""
    model = make_model(CONFIGS["llama"])
    if name == "tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    if name == "bias":
        model.lm_head.bias = nn.Parameter(torch.randn(model.config.vocab_size))
    if name == "adapter":
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    return model


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["untied", "tied", "bias", "adapter"])
def test_loss_and_gradients_equal_those_of_all_logits(name: str, is_packed: bool, chunked_calls: list[int]) -> None:
    model = make_head_model(name)
    assert find_unchunkable_head(CONFIGS["llama"], model) is None
    layout = build_layout(model)

    def gradients(*, in_chunks: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if is_packed:
            loss = pack_loss(model, LONG_PACK, CPU, layout, in_chunks=in_chunks)
        else:
            with default_attention(model):
                loss = padded_loss(model, LONG_PACK, CPU, in_chunks=in_chunks)
        return loss.detach(), compute_gradients(model, loss)

    expected_loss, expected = gradients(in_chunks=False)
    assert not chunked_calls
    loss, actual = gradients(in_chunks=True)
    assert chunked_calls == [LONG_PACK["num_trained"]]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert_same_gradients(actual, expected)
    assert any("lm_head" in name or "embed_tokens" in name for name in expected)


def test_losses_of_single_tokens_equal_those_of_all_logits(chunked_calls: list[int]) -> None:
    model = make_model(CONFIGS["qwen3"])
    layout = build_layout(model)
    losses_N, expected_N = (token_losses(model, LONG_PACK, CPU, layout, in_chunks=flag) for flag in (True, False))
    assert len(chunked_calls) == 1
    torch.testing.assert_close(losses_N, expected_N, rtol=1e-5, atol=1e-6)


def test_loss_of_bf16_weights_is_summed_in_fp32() -> None:
    torch.manual_seed(0)
    head, hidden_NF = nn.Linear(32, 64, bias=False).bfloat16(), torch.randn(500, 32).bfloat16()
    labels_N = torch.randint(64, (500,))
    loss = chunked_cross_entropy(hidden_NF, head, labels_N)
    exact = nn.functional.cross_entropy(hidden_NF.double() @ head.weight.double().T, labels_N, reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_head_computes_logits_again_after_a_failure() -> None:
    model = make_model(CONFIGS["llama"])
    wrong_labels_N, ids_1T = torch.full((40,), 1_000), torch.zeros(1, 40, dtype=torch.long)
    with default_attention(model):
        with pytest.raises((IndexError, RuntimeError)):
            output_head.compute_target_loss(model, wrong_labels_N, lambda: model(input_ids=ids_1T), in_chunks=True)
        assert model(input_ids=ids_1T).logits.shape == (1, 40, 64)


COHERE = CohereConfig(**SIZES)
GRANITE = GraniteConfig(**SIZES, logits_scaling=2.0)


@pytest.mark.parametrize("hf_config", [CONFIGS["gemma2"], COHERE, GRANITE], ids=["soft cap", "scale", "divisor"])
def test_models_that_change_their_logits_are_recognized(hf_config: PreTrainedConfig) -> None:
    problem = find_unchunkable_head(hf_config, make_model(hf_config))
    assert problem == f"{hf_config.model_type} changes the output of its head (by a soft cap or a scale)"


def test_adapters_of_the_head_are_recognized() -> None:
    model = get_peft_model(make_model(CONFIGS["llama"]), LoraConfig(r=4, target_modules=["lm_head"]))
    problem = find_unchunkable_head(CONFIGS["llama"], model)
    assert problem == "the output head of llama is not a plain linear layer"


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "mixtral", "mistral"])
def test_plain_heads_allow_chunks(name: str) -> None:
    assert find_unchunkable_head(CONFIGS[name], make_model(CONFIGS[name])) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_targets", [1, 7, 300])
def test_fused_cross_entropy_equals_plain_cross_entropy(num_targets: int) -> None:
    torch.manual_seed(0)
    plain_NV = torch.randn(num_targets, 50_000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    fused_NV = plain_NV.detach().clone().requires_grad_()
    labels_N = torch.randint(50_000, (num_targets,), device="cuda")
    expected, fused = _cross_entropy(plain_NV, labels_N), _fused_cross_entropy()(fused_NV, labels_N)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)
    expected.sum().backward()
    fused.sum().backward()
    torch.testing.assert_close(fused_NV.grad, plain_NV.grad, rtol=1e-2, atol=1e-6)
