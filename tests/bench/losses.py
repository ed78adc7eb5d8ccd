"""SmolLM2 with two losses: on tree packs, as training computes it, and on padded batches, for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from instruct_ray.config.train import TrainConfig
from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.load import load_model
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout

CPU = torch.device("cpu")


@dataclass(frozen=True)
class BenchModel:
    """A model and the layout of its masks for packs."""

    module: nn.Module
    layout: MaskLayout

    @classmethod
    def load(cls, base: Path, dtype: torch.dtype) -> "BenchModel":
        """Load the base model as training does."""
        hf_config = AutoConfig.from_pretrained(base)
        attn_implementation = packed_attn_implementation(hf_config, CPU)
        layout = MaskLayout.from_hf_config(hf_config, attn_implementation, dtype)
        return cls(load_model(base, None, TrainConfig(), dtype, 0, attn_implementation), layout)

    def packed_loss(self, packs: Sequence[Pack]) -> Tensor:
        """Compute the summed loss of the packs' target tokens."""
        self.module.set_attn_implementation(self.layout.attn_implementation)  # type: ignore[operator]
        return torch.stack([pack_loss(self.module, pack, CPU, self.layout) for pack in packs]).sum()

    def padded_loss(self, examples: Sequence[Example]) -> Tensor:
        """Compute the summed loss of the examples' completion tokens in one right-padded batch."""
        logits_NV, labels_N, _ = self._logits(examples)
        return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")

    @torch.no_grad()
    def score_held_out(self, examples: Sequence[Example]) -> tuple[float, int, int]:
        """Compute (summed loss, number of completion tokens, number of completions that greedy decoding reproduces).

        Greedy decoding reproduces a completion exactly if each of its tokens is the most probable one after the tokens
        before it, so no text needs to be generated.
        """
        logits_NV, labels_N, rows_N = self._logits(examples)
        loss = float(F.cross_entropy(logits_NV.float(), labels_N, reduction="sum"))
        is_wrong = torch.zeros(len(examples), dtype=torch.bool)
        is_wrong[rows_N[logits_NV.argmax(-1) != labels_N]] = True
        return loss, len(labels_N), int((~is_wrong).sum())

    def _logits(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute (logits, labels, row) of the positions with a label in a right-padded batch."""
        pairs = [example.inputs_and_labels() for example in examples]
        longest = max(len(inputs) for inputs, _ in pairs)
        inputs_BL = torch.zeros(len(pairs), longest, dtype=torch.long)
        labels_BL = torch.full((len(pairs), longest), IGNORE_INDEX)
        mask_BL = torch.zeros(len(pairs), longest, dtype=torch.long)
        for row, (inputs, labels) in enumerate(pairs):
            inputs_BL[row, : len(inputs)] = torch.from_numpy(inputs)
            labels_BL[row, : len(labels)] = torch.from_numpy(labels)
            mask_BL[row, : len(inputs)] = 1
        # As transformers does by default.
        self.module.set_attn_implementation("sdpa")  # type: ignore[operator]
        decoder: nn.Module = self.module.get_decoder()  # type: ignore[operator]
        hidden_BLD = decoder(input_ids=inputs_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        rows_N, positions_N = (labels_BL != IGNORE_INDEX).nonzero(as_tuple=True)
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        return head(hidden_BLD[rows_N, positions_N]), labels_BL[rows_N, positions_N], rows_N
