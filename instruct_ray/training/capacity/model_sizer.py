"""driver: computes the sizes that memory depends on, from the base model's config and the packs, without weights."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.errors import one_line
from instruct_ray.training.capacity.activations import (
    PackShape,
    countable_attention,
    peak_activation_bytes,
    rough_activation_bytes,
)
from instruct_ray.training.capacity.memory import ModelSize
from instruct_ray.training.model.chunked_attention import TREE_CHUNKS, KeyChunks
from instruct_ray.training.model.load import DTYPES, build_meta_model
from instruct_ray.training.model.output_head import GPU_CHUNK_ROWS, find_unchunkable_head
from instruct_ray.training.model.padded import unpack_branches
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, tree_mask

logger = logging.getLogger(__name__)
# Packs whose shapes are read, spread evenly over the data.
NUM_SAMPLES = 32


class ModelSizer:
    """Computes the sizes of a base model, for any way to train it on the packs of a run."""

    def __init__(
        self, hf_config: Any, attn_implementation: str, largest_pack: PackShape, token_ids: Sequence[int] = ()
    ) -> None:
        self._hf_config, self._attn_implementation = hf_config, attn_implementation
        self._largest_pack, self._token_ids = largest_pack, token_ids
        self._sizes: dict[tuple[object, ...], ModelSize] = {}

    @classmethod
    def from_packs(
        cls,
        hf_config: Any,
        incompatibility: str | None,
        dataset: PackedDataset,
        train: TrainConfig,
        token_ids: Sequence[int],
    ) -> "ModelSizer":
        """For prepared packs.

        `incompatibility` is why training will be padded, None if it will be packed; `token_ids` as in `WorkerSpec`.
        """
        if incompatibility is not None:
            return cls(hf_config, default_attn_implementation(hf_config), _largest_padded_batch(dataset), token_ids)
        attn_implementation = _packed_attn_implementation(hf_config, train)
        return cls(hf_config, attn_implementation, _largest_pack(hf_config, attn_implementation, dataset), token_ids)

    @classmethod
    def upper_bound(
        cls,
        hf_config: Any,
        incompatibility: str | None,
        pack_tokens: int,
        train: TrainConfig,
        token_ids: Sequence[int],
    ) -> "ModelSizer":
        """For packs that are not prepared yet: all tokens are target tokens, and each sees all tokens before it.

        `incompatibility` as in `from_packs`; padding repeats shared tokens, which is not known before the packs are.
        """
        is_padded = incompatibility is not None
        pack = PackShape(1, pack_tokens, pack_tokens, pack_tokens, is_padded)
        if is_padded:
            return cls(hf_config, default_attn_implementation(hf_config), pack, token_ids)
        return cls(hf_config, _packed_attn_implementation(hf_config, train), pack, token_ids)

    def compute_size(self, lora: LoraConfig | None, train: TrainConfig) -> ModelSize:
        """Compute the sizes for training with this config; of `train`, precision and checkpointing matter."""
        key = (lora, train.precision, train.activation_checkpointing)
        if key not in self._sizes:
            self._sizes[key] = self._compute(lora, train)
        return self._sizes[key]

    def _compute(self, lora: LoraConfig | None, train: TrainConfig) -> ModelSize:
        attention = countable_attention(self._hf_config, self._attn_implementation)
        dtype = DTYPES[train.precision]
        model = build_meta_model(self._hf_config, lora, train, dtype, attention, self._token_ids if lora else ())
        parameters = list(model.parameters())
        return ModelSize(
            num_parameters=sum(parameter.numel() for parameter in parameters),
            num_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            activation_bytes=_activation_bytes(self._hf_config, model, self._largest_pack, use_gpu=train.use_gpu),
            num_quantized=count_quantizable(model) if lora is not None and lora.quantize else 0,
        )


def _activation_bytes(hf_config: Any, model: Any, shape: PackShape, *, use_gpu: bool) -> int:
    """The peak of one pack; a rough estimate, said in the log, if the model can't be run without data."""
    in_chunks = find_unchunkable_head(hf_config, model) is None
    if in_chunks and use_gpu:
        # As if only the logits of a chunk existed: a GPU computes its gradients in the backward pass.
        shape = replace(shape, num_output_positions=min(shape.num_output_positions, GPU_CHUNK_ROWS))
    try:
        return peak_activation_bytes(model, shape, in_chunks=in_chunks and not use_gpu)
    # What a model raises that looks at values, or uses an operator that has no implementation for shapes only.
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = one_line(error, 200)
        logger.warning("memory of a step: a rough estimate, %s can't be measured: %s", model.config.model_type, reason)
        return rough_activation_bytes(model, shape)


def count_quantizable(model: Any) -> int:
    """Parameters that bitsandbytes would quantize: those of frozen linear layers, except the output head."""
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


def _packed_attn_implementation(hf_config: Any, train: TrainConfig) -> str:
    return packed_attn_implementation(hf_config, torch.device("cuda" if train.use_gpu else "cpu"))


def _largest_pack(hf_config: Any, attn_implementation: str, dataset: PackedDataset) -> PackShape:
    packs = dataset.sample_evenly(NUM_SAMPLES)
    length = max(len(pack["input_ids"]) for pack in packs)
    num_keys = length
    if attn_implementation == TREE_CHUNKS:
        layout = MaskLayout.from_hf_config(hf_config, attn_implementation, torch.float32)
        num_keys = max(_num_keys(PackTensors.from_pack(pack, layout, torch.device("cpu"))) for pack in packs)
    return PackShape(1, length, max(1, int(dataset.num_target_tokens.max())), num_keys)


def _num_keys(tensors: PackTensors) -> int:
    """The largest number of keys that a chunk of queries sees; a sliding window could only make it smaller."""
    mask_TT = tree_mask(tensors.subtree_end_T, tensors.position_ids_T)[0, 0]
    return int(KeyChunks.from_mask(mask_TT).keys_NK.shape[1])


def _largest_padded_batch(dataset: PackedDataset) -> PackShape:
    unpacked = [unpack_branches(pack) for pack in dataset.sample_evenly(NUM_SAMPLES)]
    sizes = [(len(branches), max(len(branch.input_ids) for branch in branches)) for branches in unpacked]
    num_rows, num_tokens = max(sizes, key=lambda size: size[0] * size[1])
    num_targets = max(num_rows, int(dataset.num_target_tokens.max()))
    return PackShape(num_rows, num_tokens, num_targets, num_tokens, is_padded=True)
