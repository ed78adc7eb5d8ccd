"""The proof on a base of its own: what passes, what does not, and what is said about it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import BloomConfig, Gemma3TextConfig, GPTNeoConfig, MixtralConfig, PreTrainedConfig

from instruct_ray.data.packs.dataset import MANIFEST, PackedDataset, shard_file, write_packs
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.training.model.packing_check import (
    NUM_EXAMPLES,
    PackingCheck,
    resolve_packing_mode,
    run_packing_check,
    sample_check_packs,
)
from instruct_ray.training.model.padded import padded_loss, unpack_branches
from tests.training.tiny_models import CONFIGS, CPU, EXAMPLES, SIZES, default_attention, make_model

PACK_TOKENS = 64


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    folder = tmp_path / "packs"
    folder.mkdir()
    packs = list(pack_examples(EXAMPLES, PACK_TOKENS))
    write_packs(folder / shard_file(0), packs, PACK_TOKENS)
    manifest = {"num_packs": len(packs), "pack_tokens": PACK_TOKENS, "files": {shard_file(0): len(packs)}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return PackedDataset.open(folder)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[PreTrainedConfig], Path]:
    def save(config: PreTrainedConfig) -> Path:
        make_model(config).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_of_the_exactness_tests_is_proved(
    name: str, save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset
) -> None:
    found = run_packing_check(save(CONFIGS[name]), dataset, CPU)
    assert found.is_packed, found.reason
    assert found.loss_difference is not None
    assert found.gradient_difference is not None
    assert found.loss_difference < 1e-6
    assert found.gradient_difference < 1e-4
    assert found.longest > (found.window or 0)
    assert found.num_layers == 3


def test_the_examples_looked_at_are_long_and_share(dataset: PackedDataset) -> None:
    few = sample_check_packs(dataset)
    branches = [unpack_branches(one) for one in few]
    assert max(len(b.input_ids) for one in branches for b in one) == max(example.num_inputs for example in EXAMPLES)
    assert all(1 <= len(one) <= NUM_EXAMPLES for one in branches)
    # They share a prompt, or the proof would show nothing.
    assert any(len(one["input_ids"]) < one["num_tokens"] for one in few)


def test_attention_by_place_in_the_input_is_found_out(
    save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset
) -> None:
    config = GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=128,
    )
    found = run_packing_check(save(config), dataset, CPU)
    assert not found.is_packed
    assert found.loss_difference is not None
    assert found.loss_difference > 10 * found.loss_tolerance
    assert "packed and alone differ by" in found.reason


def test_what_is_not_a_number_is_no_proof(dataset: PackedDataset, tmp_path: Path) -> None:
    model = make_model(CONFIGS["llama"])
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    model.save_pretrained(tmp_path / "base")
    assert not run_packing_check(tmp_path / "base", dataset, CPU).is_packed


def test_a_model_that_does_not_take_the_masks_is_found_out(
    save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset
) -> None:
    found = run_packing_check(save(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)), dataset, CPU)
    assert not found.is_packed
    assert "the packed forward pass fails" in found.reason


def test_a_deep_base_is_proved_by_its_first_layers(
    save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset
) -> None:
    kinds = [*["sliding_attention"] * 5, "full_attention", *["sliding_attention"] * 2]
    config = Gemma3TextConfig(**SIZES | {"num_hidden_layers": 8}, sliding_window=4, layer_types=kinds)
    found = run_packing_check(save(config), dataset, CPU)
    assert found.is_packed, found.reason
    # The sixth is the first with full attention.
    assert found.num_layers == 6


def test_a_record_of_the_same_software_is_kept(
    save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset, tmp_path: Path, group: None
) -> None:
    base, record = save(CONFIGS["llama"]), tmp_path / "packing_check.json"
    first = resolve_packing_mode(base, dataset.path, None, record, CPU)
    assert first.is_packed
    kept = first.model_copy(update={"seconds": 1234.0})
    record.write_text(kept.model_dump_json())
    assert resolve_packing_mode(base, dataset.path, None, record, CPU) == kept
    record.write_text(kept.model_copy(update={"versions": {"torch": "1.0"}}).model_dump_json())
    assert resolve_packing_mode(base, dataset.path, None, record, CPU).seconds < 1234


def test_an_obstacle_goes_padded_without_a_proof(
    save: Callable[[PreTrainedConfig], Path], dataset: PackedDataset, tmp_path: Path, group: None
) -> None:
    record = tmp_path / "packing_check.json"
    found = resolve_packing_mode(save(CONFIGS["llama"]), dataset.path, "llama: a reason", record, CPU)
    assert (found.path, found.reason, found.implementation) == ("padded", "llama: a reason", "sdpa")
    assert PackingCheck.model_validate_json(record.read_text()) == found


def test_the_padded_loss_holds_the_auxiliary_loss_as_transformers_adds_it() -> None:
    config = MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.5
    )
    model = make_model(config)
    [packed] = pack_examples(EXAMPLES[:1], PACK_TOKENS)
    tokens = torch.tensor([[*EXAMPLES[0].prompt_ids, *EXAMPLES[0].completion_ids]])
    labels = torch.where(torch.arange(tokens.shape[1]) < len(EXAMPLES[0].prompt_ids), -100, tokens)
    with torch.no_grad(), default_attention(model):
        found = padded_loss(model, packed, CPU, 0.5)
        # transformers reads the stop token as well: its auxiliary loss is taken without it.
        output = model(input_ids=tokens, labels=labels)
        aux_loss = model(input_ids=tokens[:, :-1]).aux_loss
    expected = output.loss + 0.5 * (aux_loss - output.aux_loss)
    torch.testing.assert_close(found / packed["num_trained"], expected)
