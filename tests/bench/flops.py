"""How much arithmetic a run needs: the floating-point operations behind its share of the machine's peak."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

from instruct_ray.data.packs.tree import Pack


@dataclass(frozen=True)
class ModelSize:
    """What decides the arithmetic of a decoder."""

    block_parameters: int
    """Weights of all layers, without embedding and output head."""
    head_parameters: int
    """Weights of the output head, which runs on trained positions only."""
    attention_width: int
    """Layers times heads times the width of a head."""

    @classmethod
    def of(cls, folder: Path) -> "ModelSize":
        """Of a Hugging Face folder."""
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        head = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight.numel()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        total = sum(parameter.numel() for parameter in model.parameters())
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.num_hidden_layers * config.num_attention_heads * head_width
        return cls(total - embedding - (0 if tied else head), head, width)


def useful_flops(size: ModelSize, packs: Sequence[Pack]) -> float:
    """Operations of forward and backward that the packs need.

    Six per weight and token (two forward, four backward) in the layers for every computed token and in the head for
    every trained one; twelve per width of attention for every pair of query and key that the mask lets see each other.
    Pairs that are computed and thrown away by a dense mask do not count, nor does the optimizer.
    """
    total = 0.0
    for pack in packs:
        num_computed = len(pack["input_ids"])
        ends, starts = np.asarray(pack["subtree_end"]), np.arange(num_computed)
        num_pairs = int((ends - starts).sum())
        total += 6 * size.block_parameters * num_computed + 6 * size.head_parameters * pack["num_trained"]
        total += 12 * size.attention_width * num_pairs
    return total
