"""SmolLM2 with the loss on tree packs, as training computes it, and with a plain loss on padded batches to compare."""

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
class Tuned:
    """A model being trained, and how it reads packs."""

    model: nn.Module
    layout: MaskLayout

    @classmethod
    def load(cls, base: Path, dtype: torch.dtype) -> "Tuned":
        """The base, as training loads it."""
        config = AutoConfig.from_pretrained(base)
        implementation = packed_attn_implementation(config, CPU)
        layout = MaskLayout.from_hf_config(config, implementation, dtype)
        return cls(load_model(base, None, TrainConfig(), dtype, 0, implementation), layout)

    def packed(self, packs: Sequence[Pack]) -> Tensor:
        """Summed loss of the packs' trained tokens."""
        self.model.set_attn_implementation(self.layout.attn_implementation)  # type: ignore[operator]
        return torch.stack([pack_loss(self.model, pack, CPU, self.layout) for pack in packs]).sum()

    def padded(self, examples: Sequence[Example]) -> Tensor:
        """Summed loss of the examples' completion tokens, each example alone in a row of one right-padded batch."""
        logits_NV, labels_N, _ = self._logits(examples)
        return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")

    @torch.no_grad()
    def held_out(self, examples: Sequence[Example]) -> tuple[float, int, int]:
        """(summed loss, completion tokens, examples whose whole completion greedy decoding would produce).

        Given the right tokens so far, greedy decoding produces the completion exactly if each of its tokens is the
        most probable one: so no text needs to be generated.
        """
        logits_NV, labels_N, rows_N = self._logits(examples)
        loss = float(F.cross_entropy(logits_NV.float(), labels_N, reduction="sum"))
        wrong = torch.zeros(len(examples), dtype=torch.bool)
        wrong[rows_N[logits_NV.argmax(-1) != labels_N]] = True
        return loss, len(labels_N), int((~wrong).sum())

    def _logits(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, labels, row) of the trained positions of a right-padded batch."""
        pairs = [example.inputs_and_labels() for example in examples]
        longest = max(len(inputs) for inputs, _ in pairs)
        inputs_BL = torch.zeros(len(pairs), longest, dtype=torch.long)
        labels_BL = torch.full((len(pairs), longest), IGNORE_INDEX)
        mask_BL = torch.zeros(len(pairs), longest, dtype=torch.long)
        for row, (inputs, labels) in enumerate(pairs):
            inputs_BL[row, : len(inputs)] = torch.from_numpy(inputs)
            labels_BL[row, : len(labels)] = torch.from_numpy(labels)
            mask_BL[row, : len(inputs)] = 1
        # As plain transformers would.
        self.model.set_attn_implementation("sdpa")  # type: ignore[operator]
        decoder: nn.Module = self.model.get_decoder()  # type: ignore[operator]
        hidden_BLD = decoder(input_ids=inputs_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        rows_N, positions_N = (labels_BL != IGNORE_INDEX).nonzero(as_tuple=True)
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        return head(hidden_BLD[rows_N, positions_N]), labels_BL[rows_N, positions_N], rows_N
