"""The packing check: which base models pass it, which fail, and what the result says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch._inductor import cpp_builder
from transformers import (
    AfmoeConfig,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    JetMoeConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
)

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.model import packing_comparison
from instruct_ray.training.model.loss import token_losses
from instruct_ray.training.model.packing_check import (
    PackingCheck,
    PackingCheckError,
    resolve_packing_mode,
    run_packing_check,
)
from instruct_ray.training.model.packing_comparison import NUM_EXAMPLES, sample_check_packs
from instruct_ray.training.model.padded import padded_loss, unpack_branches
from tests.training.tiny_models import CONFIGS, CPU, EXAMPLES, SIZES, default_attention, make_model, save_packs

PACK_TOKENS = 64
MOE_SIZES = SIZES | {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
SaveBase = Callable[[PreTrainedConfig], Path]


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    save_packs(tmp_path / "packs", list(pack_examples(EXAMPLES, PACK_TOKENS)), PACK_TOKENS)
    return PackedDataset.open(tmp_path / "packs")


@pytest.fixture
def save_base(tmp_path: Path) -> SaveBase:
    def save_base(config: PreTrainedConfig) -> Path:
        make_model(config).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save_base


@pytest.fixture
def single_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run_check(base_dir: Path, dataset: PackedDataset) -> PackingCheck:
    return run_packing_check(base_dir, load_hf_config(base_dir), dataset, CPU)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_the_exactness_tests_pass(name: str, save_base: SaveBase, dataset: PackedDataset) -> None:
    check = run_check(save_base(CONFIGS[name]), dataset)
    assert check.is_packed, check.reason
    assert check.loss_difference is not None
    assert check.gradient_difference is not None
    assert check.loss_difference < 1e-6
    assert check.gradient_difference < 1e-4
    assert check.longest > (check.window or 0)
    assert check.num_layers == 3


def test_sampled_examples_are_long_and_share_tokens(dataset: PackedDataset) -> None:
    packs = sample_check_packs(dataset)
    branches_by_pack = [unpack_branches(pack) for pack in packs]
    longest = max(len(branch.input_ids) for branches in branches_by_pack for branch in branches)
    assert longest == max(example.num_inputs for example in EXAMPLES)
    assert all(1 <= len(branches) <= NUM_EXAMPLES for branches in branches_by_pack)
    # Without a shared prompt the check would show nothing.
    assert any(len(pack["input_ids"]) < pack["num_tokens"] for pack in packs)


def test_attention_by_index_in_the_input_is_detected(save_base: SaveBase, dataset: PackedDataset) -> None:
    config = GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=128,
    )
    check = run_check(save_base(config), dataset)
    assert not check.is_packed
    assert check.loss_difference is not None
    assert check.loss_difference > 10 * check.loss_tolerance
    assert "packed and alone differ by" in check.reason


def test_non_finite_difference_fails(dataset: PackedDataset, tmp_path: Path) -> None:
    model = make_model(CONFIGS["llama"])
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    model.save_pretrained(tmp_path / "base")
    assert not run_check(tmp_path / "base", dataset).is_packed


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    ],
)
def test_model_that_does_not_take_the_masks_is_detected(
    config: PreTrainedConfig, save_base: SaveBase, dataset: PackedDataset
) -> None:
    check = run_check(save_base(config), dataset)
    assert not check.is_packed
    assert check.reason.startswith(f"{config.model_type} does not take the mask of a pack: ")


@pytest.mark.parametrize(
    "config", [AfmoeConfig(**MOE_SIZES, sliding_window=8), JetMoeConfig(**MOE_SIZES, kv_channels=8)]
)
def test_models_that_take_a_view_of_the_attention_pass(
    config: PreTrainedConfig, save_base: SaveBase, dataset: PackedDataset
) -> None:
    check = run_check(save_base(config), dataset)
    assert check.is_packed, check.reason


@contextmanager
def no_compiler() -> Iterator[None]:
    """Compile a part of the packed loss, as on a GPU, while torch finds no compiler."""
    compiled = torch.compile(lambda losses_N: losses_N.sin())
    # Without the caches, which may hold what another test compiled.
    options = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    cpp_builder.cpp_compiler_search.cache_clear()
    with (
        torch._inductor.config.patch(options),
        patch.object(
            packing_comparison, "token_losses", lambda *inputs, **keys: compiled(token_losses(*inputs, **keys))
        ),
    ):
        yield
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.usefixtures("single_rank")
def test_missing_compiler_is_an_error_and_not_a_reason_for_padding(
    save_base: SaveBase, dataset: PackedDataset, tmp_path: Path
) -> None:
    base_dir, check_file = save_base(CONFIGS["llama"]), tmp_path / "packing_check.json"
    hf_config = load_hf_config(base_dir)
    message = r"compiler.*; install a C and a C\+\+ compiler on every node"
    with no_compiler(), pytest.raises(PackingCheckError, match=message) as info:
        resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU)
    assert "\n" not in str(info.value)
    # Nothing is recorded, so the run trains on packs once the compiler is installed.
    assert not check_file.exists()
    assert resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU).is_packed


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
            "apt-get install -y gcc",
        ),
        (RuntimeError("fatal error: Python.h: No such file or directory"), "apt-get install -y python3-dev"),
        (OSError(28, "No space left on device"), "TRITON_CACHE_DIR"),
        (ValueError("NYI: this kernel\ndoes not exist"), "train.packed=false"),
    ],
)
def test_any_error_of_execution_stops_the_run_and_says_what_to_do(
    error: Exception, advice: str, save_base: SaveBase, dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    base_dir = save_base(CONFIGS["llama"])
    monkeypatch.setattr(packing_comparison, "token_losses", fail)
    with pytest.raises(PackingCheckError) as info:
        run_check(base_dir, dataset)
    assert advice in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.usefixtures("single_rank")
def test_padding_that_an_earlier_version_chose_after_an_error_is_not_kept(
    save_base: SaveBase, dataset: PackedDataset, tmp_path: Path
) -> None:
    base_dir, check_file = save_base(CONFIGS["llama"]), tmp_path / "packing_check.json"
    hf_config = load_hf_config(base_dir)
    packed = resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU)
    reason = "the packed forward pass fails: Failed to find C compiler"
    padded = packed.model_copy(update={"path": "padded", "reason": reason, "loss_difference": None})
    check_file.write_text(padded.model_dump_json())
    assert resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU).is_packed


def test_deep_model_is_checked_on_its_first_layers(save_base: SaveBase, dataset: PackedDataset) -> None:
    layer_types = [*["sliding_attention"] * 5, "full_attention", *["sliding_attention"] * 2]
    config = Gemma3TextConfig(**SIZES | {"num_hidden_layers": 8}, sliding_window=4, layer_types=layer_types)
    check = run_check(save_base(config), dataset)
    assert check.is_packed, check.reason
    # The sixth is the first one with full attention.
    assert check.num_layers == 6


@pytest.mark.usefixtures("single_rank")
def test_result_is_reused_for_the_same_library_versions(
    save_base: SaveBase, dataset: PackedDataset, tmp_path: Path
) -> None:
    base_dir, check_file = save_base(CONFIGS["llama"]), tmp_path / "packing_check.json"
    hf_config = load_hf_config(base_dir)
    first = resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU)
    assert first.is_packed
    earlier = first.model_copy(update={"seconds": 1234.0})
    check_file.write_text(earlier.model_dump_json())
    assert resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU) == earlier
    check_file.write_text(earlier.model_copy(update={"versions": {"torch": "1.0"}}).model_dump_json())
    assert resolve_packing_mode(base_dir, hf_config, dataset.path, None, check_file, CPU).seconds < 1234


@pytest.mark.usefixtures("single_rank")
def test_known_incompatibility_skips_the_check(save_base: SaveBase, dataset: PackedDataset, tmp_path: Path) -> None:
    base_dir, check_file = save_base(CONFIGS["llama"]), tmp_path / "packing_check.json"
    check = resolve_packing_mode(base_dir, load_hf_config(base_dir), dataset.path, "llama: a reason", check_file, CPU)
    assert (check.path, check.reason, check.attn_implementation) == ("padded", "llama: a reason", "sdpa")
    assert PackingCheck.model_validate_json(check_file.read_text()) == check


def test_padded_loss_adds_the_auxiliary_loss_like_transformers() -> None:
    config = MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.5
    )
    model = make_model(config)
    example = EXAMPLES[0]
    [pack] = pack_examples([example], PACK_TOKENS)
    tokens = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    labels = torch.where(torch.arange(tokens.shape[1]) < len(example.prompt_ids), -100, tokens)
    with torch.no_grad(), default_attention(model):
        loss = padded_loss(model, pack, CPU, 0.5)
        # transformers also reads the stop token, which packs leave out: its auxiliary loss is computed without it.
        output = model(input_ids=tokens, labels=labels)
        aux_loss = model(input_ids=tokens[:, :-1]).aux_loss
    expected = output.loss + 0.5 * (aux_loss - output.aux_loss)
    torch.testing.assert_close(loss / pack["num_trained"], expected)
