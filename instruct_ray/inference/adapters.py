"""LoRA adapters that share the weights of one base model: each row of a batch is computed with the adapter it asks for.

    output = layer(x) + x[rows] A^T B^T             for the rows of each adapter, in every layer that it adapts

Nothing is merged, so an adapter comes and goes without a change of the base model's weights, and a batch may hold rows
of several adapters and of the base model itself.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from instruct_ray.base_model.info import ADAPTER_CONFIG
from instruct_ray.inference.engine import UnsupportedAdapterError

# Shape suffixes: B = rows of the batch, I = inputs of a layer, O = its outputs, R = rank of the adapter

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<matrix>[AB])\.weight")
# Settings of peft that the matrices and their scale show. Any other one changes what an adapter computes.
PLAIN_SETTINGS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "lora_alpha",
        "lora_dropout", "peft_version", "r", "revision", "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip


@dataclass(frozen=True)
class LowRankUpdate:
    """What an adapter adds to the output of a layer."""

    a_RI: Tensor
    b_OR: Tensor
    """With the scale of the adapter."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute it; (..., I) -> (..., O)."""
        return linear(linear(inputs, self.a_RI), self.b_OR)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter."""

    updates: Mapping[str, LowRankUpdate]
    """By the name of the layer."""


@dataclass
class AdapterSwitch:
    """Tells the adapted layers which adapter each row of a forward pass has."""

    groups: list[tuple[Adapter, Tensor | None]] = field(default_factory=list)
    """The adapters of the rows, each with the indices of its rows; None if all rows have it."""

    @contextmanager
    def use(self, adapters: Sequence[Adapter | None], device: torch.device) -> Iterator[None]:
        """Set the adapter of each row inside the block; None is the base model."""
        distinct = dict.fromkeys(adapters)
        if len(distinct) == 1:
            self.groups = [(adapter, None) for adapter in distinct if adapter is not None]
        else:
            self.groups = [
                (adapter, torch.tensor([row for row, one in enumerate(adapters) if one is adapter], device=device))
                for adapter in distinct
                if adapter is not None
            ]
        try:
            yield
        finally:
            self.groups = []


class AdaptedLayer(nn.Module):
    """A linear layer to whose output adapters add their updates."""

    def __init__(self, layer: nn.Module, name: str, switch: AdapterSwitch) -> None:
        super().__init__()
        self.layer, self._name, self._switch = layer, name, switch

    @property
    def weight(self) -> Tensor:
        """The weight of the layer, whose type and device some models look at."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer; rows of the batch are the first dimension, as `find_row_layers` checks."""
        outputs: Tensor = self.layer(inputs)
        for adapter, rows_B in self._switch.groups:
            update = adapter.updates.get(self._name)
            if update is None:
                continue
            if rows_B is None:
                outputs = outputs + update(inputs)
            else:
                outputs = outputs.index_add(0, rows_B, update(inputs[rows_B]))
        return outputs


@torch.inference_mode()
def find_row_layers(model: Any) -> frozenset[str]:
    """The linear layers whose inputs are the rows of the batch, in their order.

    Experts are not among them: they get some of the tokens of all rows.
    """
    shapes: dict[str, list[int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            seen = shapes.setdefault(name, [])
            handles.append(module.register_forward_pre_hook(lambda _, args, seen=seen: seen.extend(args[0].shape[:-1])))
    model(torch.zeros((2, 1), dtype=torch.long, device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return frozenset(name for name, seen in shapes.items() if seen == [2, 1])


def check_plain(adapter_dir: Path) -> None:
    """Check that an adapter adds low-rank updates to layers and does nothing else.

    Raises:
        UnsupportedAdapterError: it does something else, such as DoRA, or trained rows of the embedding; names it.
    """
    values = json.loads((adapter_dir / ADAPTER_CONFIG).read_text())
    if values["peft_type"] != "LORA":
        raise UnsupportedAdapterError(f"peft_type is {values['peft_type']}")
    config, default = vars(LoraConfig.from_pretrained(str(adapter_dir))), vars(LoraConfig())
    for name, value in config.items():
        # Random matrices or zeros to begin with. Other ways change the weights of the base model.
        is_plain = isinstance(value, bool) if name == "init_lora_weights" else name in PLAIN_SETTINGS
        # A setting can be unset in several ways.
        if not is_plain and (value or None) != (default[name] or None):
            raise UnsupportedAdapterError(f"{name} is {value}")


def load_adapter(adapter_dir: Path, model: Any, switch: AdapterSwitch, row_layers: frozenset[str]) -> Adapter:
    """Load an adapter, and prepare the layers of the model that it adapts.

    Raises:
        UnsupportedAdapterError: it can't be computed beside other adapters.
    """
    check_plain(adapter_dir)
    config: Any = LoraConfig.from_pretrained(str(adapter_dir))
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    matrices: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(adapter_dir / ADAPTER_WEIGHTS).items():
        match = TENSOR_NAME.fullmatch(name)
        if match is None or match["layer"] not in row_layers:
            raise UnsupportedAdapterError(f"{name} is not of a layer that is computed row by row")
        matrices.setdefault(match["layer"], {})[match["matrix"]] = tensor
    updates = {}
    for layer, matrix in matrices.items():
        weight = _prepare(model, layer, switch).weight
        scaled_OR = matrix["B"].float() * scale
        updates[layer] = LowRankUpdate(
            matrix["A"].to(weight.device, weight.dtype), scaled_OR.to(weight.device, weight.dtype)
        )
    return Adapter(updates)


def _prepare(model: Any, name: str, switch: AdapterSwitch) -> AdaptedLayer:
    """The adapted layer of this name, in the place of the plain one."""
    module = model.get_submodule(name)
    if isinstance(module, AdaptedLayer):
        return module
    parent, _, attribute = name.rpartition(".")
    adapted = AdaptedLayer(module, name, switch)
    # A forward pass that runs at this moment computes the same with either.
    setattr(model.get_submodule(parent), attribute, adapted)
    return adapted
