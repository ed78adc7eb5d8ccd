"""Tokens that a base model was never trained on: their rows of the embedding or the output head say nothing.

Base models reserve rows for tokens that only a chat template uses, and leave them at zero, at one value, or all alike.
Only a few rows are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from instruct_ray.base_model.info import ADAPTER_CONFIG
from instruct_ray.base_model.weight_files import StoredTensor, read_stored_tensors

# Rows that are read to know what trained ones look like, spread evenly over the vocabulary.
NUM_SAMPLED_ROWS = 512
# A row whose values vary less than this fraction of what the sampled rows' values do was never trained. Rows that are
# left out of training only shrink, by weight decay, to far less than this.
MIN_RELATIVE_SPREAD = 1e-4

# N = token ids, R = sampled rows, D = hidden units


@dataclass(frozen=True)
class UntrainedRows:
    """The untrained rows of an embedding or an output head."""

    layer: str
    """Full name of the layer in the model."""
    token_ids: tuple[int, ...]
    mean_D: Tensor
    """Mean of the sampled trained rows."""
    std_D: Tensor
    """Their standard deviation, by hidden unit."""


def find_untrained_tokens(folder: Path, hf_config: Any, token_ids: Sequence[int]) -> tuple[int, ...]:
    """Find which of some tokens have an untrained row, in the embedding or in the output head, in ascending order.

    `folder` was checked (check.py); `hf_config` is its configuration.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, trust_remote_code=False)
    layers = find_untrained_rows(folder, vocabulary_layers(model), token_ids)
    return tuple(sorted({token_id for layer in layers for token_id in layer.token_ids}))


def vocabulary_layers(model: Any) -> dict[str, tuple[int, int]]:
    """(full name, shape of the weight) of the input embedding, and of the output head unless it is tied to it.

    Layers of other kinds than `Embedding` and `Linear` are left out. The weights may be sharded by ZeRO-3.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is None or head.weight is embedding.weight
    shapes = {}
    for name, module in model.named_modules():
        if module is embedding and isinstance(module, nn.Embedding):
            shapes[name] = (module.num_embeddings, module.embedding_dim)
        elif module is head and not is_tied and isinstance(module, nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
    return shapes


def find_untrained_rows(
    folder: Path, layers: Mapping[str, tuple[int, int]], token_ids: Sequence[int]
) -> list[UntrainedRows]:
    """Find which of some tokens have untrained rows, in each of the model's `vocabulary_layers`.

    Args:
        folder: a model folder that was checked (check.py).
        layers: `vocabulary_layers` of its model.
        token_ids: the tokens to look at, such as those of the chat template.

    Returns:
        One entry for each layer, also if it has no untrained rows. A layer is left out if its tensor can't be told from
        the names in the files.
    """
    stored = read_stored_tensors(folder)
    found = []
    for layer, shape in layers.items():
        tensor_name = _find_stored(stored, f"{layer}.weight", shape)
        if tensor_name is not None:
            found.append(_compare_rows(layer, tensor_name, stored[tensor_name], token_ids))
    return found


def read_adapter_token_ids(adapter_dir: Path) -> tuple[int, ...]:
    """The tokens whose rows an adapter holds, as peft writes them into its configuration; in ascending order."""
    indices = json.loads((adapter_dir / ADAPTER_CONFIG).read_text()).get("trainable_token_indices") or {}
    per_layer = indices.values() if isinstance(indices, dict) else [indices]
    return tuple(sorted({token_id for ids in per_layer for token_id in ids}))


def _find_stored(stored: dict[str, StoredTensor], name: str, shape: tuple[int, ...]) -> str | None:
    """The name of a weight in the files, where the parts before the last two may differ; None if it is not clear."""
    if name in stored:
        return name
    ending = name.split(".")[-2:]
    names = [key for key, tensor in stored.items() if key.split(".")[-2:] == ending and tensor.shape == shape]
    return names[0] if len(names) == 1 else None


def _compare_rows(layer: str, name: str, tensor: StoredTensor, token_ids: Sequence[int]) -> UntrainedRows:
    num_rows = tensor.shape[0]
    step = max(1, num_rows // NUM_SAMPLED_ROWS)
    sample_RD = _read_rows(tensor.file, name, [row for row in range(0, num_rows, step) if row not in token_ids])
    spreads_R = sample_RD.std(dim=1)
    min_spread = MIN_RELATIVE_SPREAD * float(spreads_R.median())
    rows_ND = _read_rows(tensor.file, name, token_ids)
    is_constant_N = rows_ND.std(dim=1) <= min_spread
    # Two different tokens never end up with the same row by training.
    is_equal_NN = (rows_ND[:, None] == rows_ND[None]).all(dim=2)
    is_untrained_N = is_constant_N | (is_equal_NN.sum(dim=1) > 1)
    untrained = tuple(token for token, flag in zip(token_ids, is_untrained_N.tolist(), strict=True) if flag)
    trained_RD = sample_RD[spreads_R > min_spread]
    return UntrainedRows(layer, untrained, trained_RD.mean(dim=0), trained_RD.std(dim=0))


def _read_rows(file: Path, name: str, rows: Sequence[int]) -> Tensor:
    """Some rows of a tensor in fp32, without reading the others; shape (rows, D)."""
    with safe_open(file, framework="pt") as content:
        part = content.get_slice(name)
        return torch.cat([part[row : row + 1] for row in rows]).float()
