"""Tokens whose rows of the embedding or the output head were never trained are found, however the base is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.untrained_tokens import find_untrained_rows, find_untrained_tokens, vocabulary_layers

# The tokens that are asked about.
TOKEN_IDS = (1, 2, 3, 40)


def zero(weight: torch.Tensor) -> None:
    weight[2] = 0


def fill(weight: torch.Tensor) -> None:
    weight[2] = 0.3


def shrink(weight: torch.Tensor) -> None:
    """As weight decay does with rows that get no gradient."""
    weight[2] *= 1e-8


def repeat(weight: torch.Tensor) -> None:
    """As a tool that adds tokens with one row for all of them; 50 isn't asked about."""
    weight[[2, 3, 50]] = weight.mean(dim=0)


def save(base_folder: Path, folder: Path, *, change: Callable[[torch.Tensor], None] | None, layers: str) -> Any:
    model: Any = LlamaForCausalLM.from_pretrained(base_folder)
    if "untied" in layers:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(1).clone())
    layer = model.get_output_embeddings() if "head" in layers else model.get_input_embeddings()
    with torch.no_grad():
        if change is not None:
            change(layer.weight)
    model.bfloat16().save_pretrained(folder, max_shard_size="20KB")
    return load_hf_config(folder)


@pytest.mark.parametrize("layers", ["tied", "untied embedding", "untied head"])
@pytest.mark.parametrize(
    ("change", "expected"), [(zero, (2,)), (fill, (2,)), (shrink, (2,)), (repeat, (2, 3)), (None, ())]
)
def test_untrained_tokens_are_found(
    base_folder: Path, tmp_path: Path, layers: str, change: Callable[[torch.Tensor], None] | None, expected: Any
) -> None:
    hf_config = save(base_folder, tmp_path, change=change, layers=layers)
    assert find_untrained_tokens(tmp_path, hf_config, TOKEN_IDS) == expected


def test_each_layer_has_its_own_rows_and_mean(base_folder: Path, tmp_path: Path) -> None:
    save(base_folder, tmp_path, change=zero, layers="untied head")
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    embedding, head = find_untrained_rows(tmp_path, vocabulary_layers(model), TOKEN_IDS)
    assert (embedding.layer, embedding.token_ids) == ("model.embed_tokens", ())
    assert (head.layer, head.token_ids) == ("lm_head", (2,))
    others = [row for row in range(len(model.lm_head.weight)) if row not in TOKEN_IDS]
    torch.testing.assert_close(head.mean_D, model.lm_head.weight[others].mean(dim=0))
    torch.testing.assert_close(head.std_D, model.lm_head.weight[others].std(dim=0))


def test_weights_saved_without_the_head_s_prefix_are_found(base_folder: Path, tmp_path: Path) -> None:
    """Some files name tensors as the model without its head does: `embed_tokens.weight`."""
    model = LlamaForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        zero(model.get_input_embeddings().weight)
    model.model.save_pretrained(tmp_path)
    assert find_untrained_tokens(tmp_path, load_hf_config(base_folder), TOKEN_IDS) == (2,)
