"""Counts the floating-point operations that training on packs needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

from instruct_ray.data.packs.tree import Pack


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a decoder that decide its floating-point operations."""

    block_parameters: int
    """Parameters of all layers, without embedding and output head."""
    head_parameters: int
    """Parameters of the output head, which is only applied at positions with a target token."""
    attention_width: int
    """Number of layers x number of heads x head size."""

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelSize":
        """Read the sizes from a Hugging Face folder."""
        model = AutoModelForCausalLM.from_pretrained(folder)
        hf_config = AutoConfig.from_pretrained(folder)
        head = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight.numel()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        total = sum(parameter.numel() for parameter in model.parameters())
        head_width = hf_config.to_dict().get("head_dim") or hf_config.hidden_size // hf_config.num_attention_heads
        width = hf_config.num_hidden_layers * hf_config.num_attention_heads * head_width
        return cls(total - embedding - (0 if tied else head), head, width)


def compute_useful_flops(size: ModelSize, packs: Sequence[Pack]) -> float:
    """Count the floating-point operations of the forward and backward passes of packs.

    Six per parameter and token (two forward, four backward): computed tokens in the layers, target tokens in the head.
    Twelve per attention width for every pair of query and key that the mask allows. Pairs that a dense mask computes
    and discards don't count, nor does the optimizer.
    """
    total = 0.0
    for pack in packs:
        num_computed = len(pack["input_ids"])
        ends, starts = np.asarray(pack["subtree_end"]), np.arange(num_computed)
        num_pairs = int((ends - starts).sum())
        total += 6 * size.block_parameters * num_computed + 6 * size.head_parameters * pack["num_trained"]
        total += 12 * size.attention_width * num_pairs
    return total
