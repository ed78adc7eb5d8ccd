"""Before a run: are packs of its own data computed as its own base's layers compute each example alone? If not, the run
goes padded, and says so.

The proof is in fp32, where what packing must not change differs by rounding only: in bf16 rounding would hide a wrong
mask. Rank 0 does it, before it loads the model to train.
"""

import copy
import gc
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import transformers
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.tree import Pack
from instruct_ray.files import atomic_write_json
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.model.loss import token_losses
from instruct_ray.training.model.padded import Branch, select_branches, unpack_branches
from instruct_ray.training.model.requirements import default_attn_implementation, packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout

# Measured on SmolLM2-135M's first four layers: rounding 3e-7 and 7e-7; one key hidden from one token 1e-2 and 1e-1. All
# 30 layers tell less apart, 3e-6 and 8e-5 from 2e-1 and 2e-1, and take four times as long.
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-2
MIN_LAYERS = 4
# Packs to choose from, spread over the data set, and examples to look at in a pack.
NUM_CANDIDATES = 32
NUM_EXAMPLES = 3


class PackingCheck(BaseModel):
    """What was measured, and the way that follows: the record `packing_check.json` of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Literal["packed", "padded"]
    reason: str
    attn_implementation: str
    """transformers' attention implementation that training uses."""
    versions: dict[str, str]
    loss_difference: float | None = None
    """Largest of the examples' differences in loss per trained token, over one plus that loss."""
    loss_tolerance: float = LOSS_TOLERANCE
    gradient_difference: float | None = None
    """L2 norm of the difference of the gradients of all parameters, over the norm of the gradient."""
    gradient_tolerance: float = GRADIENT_TOLERANCE
    num_examples: int = 0
    longest: int = 0
    """Tokens of the longest example looked at."""
    window: int | None = None
    """Tokens of the base's sliding window."""
    num_layers: int | None = None
    """The first layers of the base that were run: some, and one of every kind that it has."""
    seconds: float = 0.0

    @property
    def is_packed(self) -> bool:
        return self.path == "packed"


def resolve_packing_mode(
    base_dir: Path,
    hf_config: Any,
    packs_dir: Path,
    incompatibility: str | None,
    check_file: Path,
    device: torch.device,
) -> PackingCheck:
    """The proof of a run, the same on every rank; all ranks call it, on the process group that Ray made.

    `obstacle` is what `packing_obstacle` said. A record of the same software is kept: a continued run goes the way it
    began.
    """
    check = None
    if dist.get_rank() == 0:
        packs = PackedDataset.open(packs_dir)
        check = load_or_run_packing_check(base_dir, hf_config, packs, incompatibility, check_file, device)
    result: PackingCheck = broadcast_object(check, device)
    return result


def load_or_run_packing_check(
    base_dir: Path,
    hf_config: Any,
    packs: PackedDataset,
    incompatibility: str | None,
    check_file: Path,
    device: torch.device,
) -> PackingCheck:
    """The way of a run, from its record or proved now; one process calls it."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    is_candidate = incompatibility is None
    implementation = (
        packed_attn_implementation(hf_config, device) if is_candidate else default_attn_implementation(hf_config)
    )
    if check_file.is_file():
        earlier = PackingCheck.model_validate_json(check_file.read_text())
        still_applies = is_candidate and earlier.attn_implementation == implementation
        if earlier.versions == versions and (still_applies or not earlier.is_packed):
            return earlier
    if incompatibility is not None:
        check = PackingCheck(
            path="padded", reason=incompatibility, attn_implementation=implementation, versions=versions
        )
    else:
        check = run_packing_check(base_dir, hf_config, packs, device)
    atomic_write_json(check_file, check.model_dump())
    return check


def run_packing_check(base_dir: Path, hf_config: Any, dataset: PackedDataset, device: torch.device) -> PackingCheck:
    """Compare a few of a run's examples, packed and alone, on its own base in fp32 with dropout off."""
    began = time.perf_counter()
    packs = sample_check_packs(dataset)
    plain, implementation = default_attn_implementation(hf_config), packed_attn_implementation(hf_config, device)
    model = _load(base_dir, hf_config, plain, device)
    layout = MaskLayout.from_hf_config(hf_config, implementation, torch.float32)
    failure, loss, gradient = "", float("nan"), float("nan")
    try:
        found = torch.tensor([compare_packed_and_alone(model, pack, layout, plain, device) for pack in packs])
        # NaN where one is.
        loss, gradient = found.amax(0).tolist()
    except PackedForwardError as error:
        failure = str(error)
    num_layers = model.config.get_text_config().num_hidden_layers
    # The model to train takes its place.
    del model
    gc.collect()
    torch.cuda.empty_cache()
    # Not "greater than": NaN fails.
    is_exact = loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE
    return PackingCheck(
        path="packed" if is_exact else "padded",
        reason=failure or f"packed and alone differ by {loss:.1e} in loss and {gradient:.1e} in gradient",
        attn_implementation=implementation if is_exact else plain,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        loss_difference=None if failure else loss,
        gradient_difference=None if failure else gradient,
        num_examples=sum(len(unpack_branches(pack)) for pack in packs),
        longest=max(_longest(pack) for pack in packs),
        window=layout.window,
        num_layers=num_layers,
        seconds=round(time.perf_counter() - began, 1),
    )


class PackedForwardError(RuntimeError):
    """The model does not take the masks of a pack."""


def compare_packed_and_alone(
    model: Any, pack: Pack, layout: MaskLayout, plain: str, device: torch.device
) -> tuple[float, float]:
    """(largest difference in loss of an example, difference of the gradients), as `PackingProof` defines them.

    `model` is a transformers model in fp32, `plain` its attention implementation for the examples alone.

    Raises:
        PackedForwardError: the model fails on the pack, though not on the examples alone.
    """
    branches = unpack_branches(pack)
    model.zero_grad()
    model.set_attn_implementation(plain)
    alone_B = torch.stack([_alone(model, branch, device) for branch in branches])
    norm = _gradient_norm(model)
    model.set_attn_implementation(layout.implementation)
    try:
        losses_N = token_losses(model, pack, device, layout)
        # The gradients of both meet with opposite signs: what is left is the difference, in no more memory than one.
        torch.autograd.backward(-losses_N.sum())
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise PackedForwardError(f"the packed forward pass fails: {' '.join(str(error).split())[:300]}") from error
    sums_B, counts_B = _by_branch(losses_N.detach(), pack, branches)
    loss_B = (sums_B - alone_B).abs() / (alone_B + counts_B)
    return float(loss_B.max()), _gradient_norm(model) / max(norm, 1e-30)


def _alone(model: Any, branch: Branch, device: torch.device) -> Tensor:
    """The loss of one example as plain transformers computes it; its gradient is added up."""
    labels_T = torch.tensor(branch.labels, device=device)
    trained_N = (labels_T != IGNORE_INDEX).nonzero()[:, 0]
    input_ids_1T = torch.tensor([branch.input_ids], device=device)
    logits_NV = model(input_ids=input_ids_1T, use_cache=False, logits_to_keep=trained_N).logits[0]
    loss = F.cross_entropy(logits_NV, labels_T[trained_N], reduction="sum")
    torch.autograd.backward(loss)
    return loss.detach()


def _by_branch(losses_N: Tensor, pack: Pack, branches: list[Branch]) -> tuple[Tensor, Tensor]:
    """Sum and number of the token losses that each branch trains."""
    owner_T = np.full(len(pack["input_ids"]), -1)
    for number, branch in enumerate(branches):
        owner_T[[p for p, label in zip(branch.positions, branch.labels, strict=True) if label != IGNORE_INDEX]] = number
    owner_N = torch.tensor(owner_T[owner_T >= 0], device=losses_N.device)
    zeros_B = losses_N.new_zeros(len(branches))
    return zeros_B.index_add(0, owner_N, losses_N), zeros_B.index_add(0, owner_N, torch.ones_like(losses_N))


def _gradient_norm(model: Any) -> float:
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm())


def sample_check_packs(dataset: PackedDataset) -> list[Pack]:
    """Small packs out of a data set's: a few examples of the pack with the longest one, so that what a sliding window
    must not see is there if the data has it, and of the pack that shares most. Of a sample of its packs."""
    spread = np.linspace(0, dataset.num_packs - 1, min(NUM_CANDIDATES, dataset.num_packs)).astype(int)
    packs = dataset.take(spread.tolist())
    longest = max(range(len(packs)), key=lambda number: _longest(packs[number]))
    densest = max(range(len(packs)), key=lambda number: packs[number]["num_tokens"] / len(packs[number]["input_ids"]))
    return [_few_branches(packs[number]) for number in sorted({longest, densest})]


def _few_branches(pack: Pack) -> Pack:
    """The pack with only its longest branch, the one beside it and its last."""
    branches = unpack_branches(pack)
    longest = max(range(len(branches)), key=lambda number: len(branches[number].positions))
    beside = longest + 1 if longest + 1 < len(branches) else longest - 1
    chosen = dict.fromkeys(number % len(branches) for number in (longest, beside, -1, 0))
    return select_branches(pack, [branches[number] for number in list(chosen)[:NUM_EXAMPLES]])


def _longest(pack: Pack) -> int:
    """Tokens of a pack's longest example."""
    return int(max(pack["position_ids"])) + 1


def _load(base: Path, hf_config: Any, plain: str, device: torch.device) -> Any:
    """The base's first layers in fp32 with dropout off: what packing could change, a layer of each kind shows, in a few
    GB beside embeddings whatever the base's size."""
    config = copy.deepcopy(hf_config)
    _keep_first_layers(config.get_text_config())
    model = AutoModelForCausalLM.from_pretrained(
        base, config=config, dtype=torch.float32, attn_implementation=plain, device_map=None
    )
    return model.to(device).eval()


def _keep_first_layers(config: Any) -> None:
    """Cut a configuration to the first layers that hold one of every kind, at least MIN_LAYERS."""
    num_layers = config.num_hidden_layers
    by_layer = {key: value for key, value in config.to_dict().items() if _is_by_layer(value, num_layers)}
    kinds = list(zip(*by_layer.values(), strict=True)) or [()] * num_layers
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    config.num_hidden_layers = min(num_layers, max(MIN_LAYERS, needed))
    for key, value in by_layer.items():
        setattr(config, key, value[: config.num_hidden_layers])


def _is_by_layer(value: Any, num_layers: int) -> bool:
    return isinstance(value, list) and len(value) == num_layers
