"""worker, rank 0: compares a few examples packed with the same examples alone, on the base model's first layers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.tree import Pack
from instruct_ray.errors import one_line
from instruct_ray.training.model.loss import token_losses
from instruct_ray.training.model.output_head import compute_target_loss, find_unchunkable_head
from instruct_ray.training.model.padded import Branch, select_branches, unpack_branches
from instruct_ray.training.model.tree_mask import MaskLayout, PackTensors, build_masks

MIN_LAYERS = 4
# Packs to choose from, spread evenly over the data, and examples to compare per chosen pack.
NUM_CANDIDATES = 32
NUM_EXAMPLES = 3

# T = tokens of an example or a pack, N = target tokens, B = branches


def sample_check_packs(dataset: PackedDataset) -> list[Pack]:
    """A few branches each of two packs: the one with the longest example and the one that shares most tokens.

    The longest example exceeds a sliding window if any example does. Both packs come from an evenly spread sample.
    """
    packs = dataset.sample_evenly(NUM_CANDIDATES)
    longest = max(range(len(packs)), key=lambda number: longest_example(packs[number]))
    densest = max(range(len(packs)), key=lambda number: packs[number]["num_tokens"] / len(packs[number]["input_ids"]))
    return [_select_few_branches(packs[number]) for number in sorted({longest, densest})]


def _select_few_branches(pack: Pack) -> Pack:
    """Reduce a pack to its longest branch, a neighbor of it, and its last branch."""
    branches = unpack_branches(pack)
    longest = max(range(len(branches)), key=lambda number: len(branches[number].positions))
    neighbor = longest + 1 if longest + 1 < len(branches) else longest - 1
    chosen = dict.fromkeys(number % len(branches) for number in (longest, neighbor, -1, 0))
    return select_branches(pack, [branches[number] for number in list(chosen)[:NUM_EXAMPLES]])


def longest_example(pack: Pack) -> int:
    """Tokens of a pack's longest example."""
    return int(max(pack["position_ids"])) + 1


def load_first_layers(base_dir: Path, hf_config: Any, attn_implementation: str, device: torch.device) -> Any:
    """Load the base model's first layers in fp32, without dropout.

    What packing could change shows in one layer of each type. This takes a few GB besides the embeddings, whatever the
    size of the base model.
    """
    shortened = copy.deepcopy(hf_config)
    _keep_first_layers(shortened.get_text_config())
    model = load_causal_lm(base_dir, torch.float32, config=shortened, attn_implementation=attn_implementation)
    return model.to(device).eval()


def _keep_first_layers(text_config: Any) -> None:
    """Shorten a config to the first layers that include one of every type, at least MIN_LAYERS."""
    num_layers = text_config.num_hidden_layers
    per_layer = {key: value for key, value in text_config.to_dict().items() if _is_per_layer(value, num_layers)}
    layer_types = list(zip(*per_layer.values(), strict=True)) or [()] * num_layers
    needed = max(layer_types.index(layer_type) for layer_type in set(layer_types)) + 1
    text_config.num_hidden_layers = min(num_layers, max(MIN_LAYERS, needed))
    for key, value in per_layer.items():
        setattr(text_config, key, value[: text_config.num_hidden_layers])


def _is_per_layer(value: Any, num_layers: int) -> bool:
    return isinstance(value, list) and len(value) == num_layers


def compare_packed_and_alone(
    model: Any, pack: Pack, layout: MaskLayout, default: str, device: torch.device
) -> tuple[float, float]:
    """(loss difference, gradient difference) of one pack, as `PackingCheck` defines them.

    `model` is a transformers model in fp32, `default` its attention implementation for single examples. Whatever the
    model, a kernel or a compiler raises passes through.
    """
    branches = unpack_branches(pack)
    in_chunks = find_unchunkable_head(model.config, model) is None
    model.zero_grad()
    model.set_attn_implementation(default)
    alone_B = torch.stack([_backpropagate_alone(model, branch, device, in_chunks=in_chunks) for branch in branches])
    norm = _gradient_norm(model)
    model.set_attn_implementation(layout.attn_implementation)
    losses_N = token_losses(model, pack, device, layout, in_chunks=in_chunks)
    # Subtracts the packed gradient from the accumulated one: the difference needs no second copy of the gradients.
    torch.autograd.backward(-losses_N.sum())
    packed_B, counts_B = _sum_by_branch(losses_N.detach(), pack, branches)
    loss_B = (packed_B - alone_B).abs() / (alone_B + counts_B)
    return float(loss_B.max()), _gradient_norm(model) / max(norm, 1e-30)


def find_mask_problem(hf_config: Any, attn_implementation: str, pack: Pack) -> str | None:
    """Why the code of a model can't run with the mask of a pack; None if it can, or if it can't run at all.

    Runs on the meta device, where only the model's own code can fail: no kernel, compiler or memory takes part.
    """
    shortened = copy.deepcopy(hf_config)
    _keep_first_layers(shortened.get_text_config())
    layout = MaskLayout.from_hf_config(hf_config, attn_implementation, torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shortened, dtype=torch.float32, attn_implementation=attn_implementation, trust_remote_code=False
        ).eval()
    tensors = PackTensors.from_pack(pack, layout, torch.device("meta"))
    inputs = {"input_ids": tensors.input_ids_T[None], "use_cache": False}
    packed = {"position_ids": tensors.position_ids_T[None], "attention_mask": build_masks(tensors, layout)}
    # Any error: it is raised by the code of one of hundreds of models.
    try:
        model(**inputs)
    except Exception:
        return None
    try:
        model(**inputs, **packed)
    except Exception as error:
        return f"{hf_config.model_type} does not take the mask of a pack: {one_line(error, 300)}"
    return None


def _backpropagate_alone(model: Any, branch: Branch, device: torch.device, *, in_chunks: bool) -> Tensor:
    """The loss of one example as plain transformers computes its hidden states; its gradient is accumulated."""
    labels_T = torch.tensor(branch.labels, device=device)
    positions_N = (labels_T != IGNORE_INDEX).nonzero()[:, 0]
    input_ids_1T = torch.tensor([branch.input_ids], device=device)
    loss, _ = compute_target_loss(
        model,
        labels_T[positions_N],
        lambda: model(input_ids=input_ids_1T, use_cache=False, logits_to_keep=positions_N),
        in_chunks=in_chunks,
    )
    torch.autograd.backward(loss)
    return loss.detach()


def _sum_by_branch(losses_N: Tensor, pack: Pack, branches: list[Branch]) -> tuple[Tensor, Tensor]:
    """(sum of the token losses, number of target tokens) of each branch."""
    branch_T = np.full(len(pack["input_ids"]), -1)
    for number, branch in enumerate(branches):
        labels = zip(branch.positions, branch.labels, strict=True)
        branch_T[[position for position, label in labels if label != IGNORE_INDEX]] = number
    branch_N = torch.tensor(branch_T[branch_T >= 0], device=losses_N.device)
    zeros_B = losses_N.new_zeros(len(branches))
    return zeros_B.index_add(0, branch_N, losses_N), zeros_B.index_add(0, branch_N, torch.ones_like(losses_N))


def _gradient_norm(model: Any) -> float:
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm())
