"""Base and packs -> the shapes that memory depends on; no weights are loaded."""

from typing import Any

import numpy as np
import torch

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.training.capacity.activations import PackShape, countable_attention, peak_activation_bytes
from instruct_ray.training.capacity.memory import ModelSize
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, KeyChunks
from instruct_ray.training.model.load import DTYPES, build_meta_model
from instruct_ray.training.model.padded import unpack_branches
from instruct_ray.training.model.requirements import default_attn_implementation, packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, tree_mask

# Packs that are looked at, spread over the data set.
NUM_SAMPLES = 32


class ModelSizer:
    """Counts a run's shapes, for any way to train it."""

    def __init__(self, architecture: Any, implementation: str, pack: PackShape) -> None:
        """`architecture` is transformers' configuration of the base, `pack` the largest one of the run."""
        self._architecture, self._implementation, self._pack = architecture, implementation, pack
        self._counted: dict[tuple[object, ...], ModelSize] = {}

    @classmethod
    def from_packs(
        cls, architecture: Any, obstacle: str | None, dataset: PackedDataset, train: TrainConfig
    ) -> "ModelSizer":
        """For prepared packs; `obstacle` is why the base is trained padded, None if it is not."""
        if obstacle is not None:
            return cls(architecture, default_attn_implementation(architecture), _largest_padded(dataset))
        implementation = packed_attn_implementation(architecture, torch.device("cuda" if train.use_gpu else "cpu"))
        return cls(architecture, implementation, _largest_pack(architecture, implementation, dataset))

    @classmethod
    def upper_bound(cls, architecture: Any, pack_tokens: int, train: TrainConfig) -> "ModelSizer":
        """Before the packs are there: one of this length, in which every token is trained and sees all before it."""
        implementation = packed_attn_implementation(architecture, torch.device("cuda" if train.use_gpu else "cpu"))
        return cls(architecture, implementation, PackShape(1, pack_tokens, pack_tokens, pack_tokens))

    def size_of(self, lora: LoraConfig | None, train: TrainConfig) -> ModelSize:
        """The shapes of one way."""
        key = (lora, train.precision, train.activation_checkpointing)
        if key not in self._counted:
            self._counted[key] = self._count(lora, train)
        return self._counted[key]

    def _count(self, lora: LoraConfig | None, train: TrainConfig) -> ModelSize:
        attention = countable_attention(self._implementation)
        model = build_meta_model(self._architecture, lora, train, DTYPES[train.precision], attention)
        sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
        trained = sum(size for size, requires_grad in sizes if requires_grad)
        quantized = frozen_linear(model) if lora is not None and lora.quantize else 0
        return ModelSize(sum(size for size, _ in sizes), trained, peak_activation_bytes(model, self._pack), quantized)


def frozen_linear(model: Any) -> int:
    """Parameters of what bitsandbytes would quantize: the frozen linear layers, but for the output head."""
    head = model.get_output_embeddings()
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    return sum(each.weight.numel() for each in layers if not each.weight.requires_grad)


def _samples(dataset: PackedDataset) -> list[Any]:
    spread = np.linspace(0, dataset.num_packs - 1, min(NUM_SAMPLES, dataset.num_packs)).astype(int)
    return dataset.take(spread.tolist())


def _largest_pack(architecture: Any, implementation: str, dataset: PackedDataset) -> PackShape:
    packs = _samples(dataset)
    length = max(len(pack["input_ids"]) for pack in packs)
    num_keys = length
    if implementation == TREE_CHUNKS:
        layout = MaskLayout.from_hf_config(architecture, implementation, torch.float32)
        num_keys = max(_num_keys(PackTensors.from_pack(pack, layout, torch.device("cpu"))) for pack in packs)
    return PackShape(1, length, max(1, int(dataset.num_target_tokens.max())), num_keys)


def _num_keys(tensors: PackTensors) -> int:
    """Most keys that a chunk of queries sees; a window only takes some away."""
    mask_TT = tree_mask(tensors.subtree_end_T, tensors.position_ids_T)[0, 0]
    return int(KeyChunks.from_mask(mask_TT).keys_NK.shape[1])


def _largest_padded(dataset: PackedDataset) -> PackShape:
    unpacked = [unpack_branches(pack) for pack in _samples(dataset)]
    sizes = [(len(branches), max(len(branch.input_ids) for branch in branches)) for branches in unpacked]
    num_rows, num_tokens = max(sizes, key=lambda size: size[0] * size[1])
    return PackShape(num_rows, num_tokens, max(num_rows, int(dataset.num_target_tokens.max())), num_tokens)
