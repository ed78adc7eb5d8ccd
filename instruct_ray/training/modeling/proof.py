"""Before a run: are packs of its own data computed as its own base's layers compute each example alone? If not, the run
goes padded, and says so.

The proof is in fp32, where what packing must not change differs by rounding only: in bf16 rounding would hide a wrong
mask. Rank 0 does it, before it loads the model to train.
"""

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
from transformers import AutoConfig, AutoModelForCausalLM

from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.packing import IGNORE_INDEX, Pack
from instruct_ray.run import write_json
from instruct_ray.training.modeling.attention import MaskLayout
from instruct_ray.training.modeling.loss import token_losses
from instruct_ray.training.modeling.model import packed_implementation, plain_implementation
from instruct_ray.training.modeling.padded import Branch, prune, unpack

# Measured on SmolLM2-135M's first four layers: rounding 3e-7 and 7e-7; one key hidden from one token 1e-2 and 1e-1. All
# 30 layers tell less apart, 3e-6 and 8e-5 from 2e-1 and 2e-1, and take four times as long.
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-2
MIN_LAYERS = 4
# Packs to choose from, spread over the data set, and examples to look at in a pack.
NUM_CANDIDATES = 32
NUM_EXAMPLES = 3


class PackingProof(BaseModel):
    """What was measured, and the way that follows: the record `packing_proof.json` of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Literal["packed", "padded"]
    reason: str
    implementation: str
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


def agree(base: Path, packs: Path, obstacle: str | None, record: Path, device: torch.device) -> PackingProof:
    """The proof of a run, the same on every rank; all ranks call it, on the process group that Ray made.

    `obstacle` is what `packing_obstacle` said. A record of the same software is kept: a continued run goes the way it
    began.
    """
    found: list[dict[str, Any] | str] = [""]
    if dist.get_rank() == 0:
        found = [decide(base, PackedDataset.open(packs), obstacle, record, device).model_dump()]
    dist.broadcast_object_list(found, src=0, device=device)
    return PackingProof.model_validate(found[0])


def decide(
    base: Path, dataset: PackedDataset, obstacle: str | None, record: Path, device: torch.device
) -> PackingProof:
    """The way of a run, from its record or proved now; one process calls it."""
    config = AutoConfig.from_pretrained(base)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    wanted = packed_implementation(config, device) if obstacle is None else plain_implementation(config)
    if record.is_file():
        known = PackingProof.model_validate_json(record.read_text())
        still_fits = obstacle is None and known.implementation == wanted
        if known.versions == versions and (still_fits or not known.is_packed):
            return known
    if obstacle is not None:
        proof = PackingProof(path="padded", reason=obstacle, implementation=wanted, versions=versions)
    else:
        proof = prove(base, dataset, device)
    write_json(record, proof.model_dump())
    return proof


def prove(base: Path, dataset: PackedDataset, device: torch.device) -> PackingProof:
    """Compare a few of a run's examples, packed and alone, on its own base in fp32 with dropout off."""
    began = time.perf_counter()
    packs = few_examples(dataset)
    config = AutoConfig.from_pretrained(base)
    plain, implementation = plain_implementation(config), packed_implementation(config, device)
    model = _load(base, config, plain, device)
    layout = MaskLayout.of(config, implementation, torch.float32)
    failure, loss, gradient = "", float("nan"), float("nan")
    try:
        found = torch.tensor([differences(model, pack, layout, plain, device) for pack in packs])
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
    return PackingProof(
        path="packed" if is_exact else "padded",
        reason=failure or f"packed and alone differ by {loss:.1e} in loss and {gradient:.1e} in gradient",
        implementation=implementation if is_exact else plain,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        loss_difference=None if failure else loss,
        gradient_difference=None if failure else gradient,
        num_examples=sum(len(unpack(pack)) for pack in packs),
        longest=max(_longest(pack) for pack in packs),
        window=layout.window,
        num_layers=num_layers,
        seconds=round(time.perf_counter() - began, 1),
    )


class PackedForwardError(RuntimeError):
    """The model does not take the masks of a pack."""


def differences(model: Any, pack: Pack, layout: MaskLayout, plain: str, device: torch.device) -> tuple[float, float]:
    """(largest difference in loss of an example, difference of the gradients), as `PackingProof` defines them.

    `model` is a transformers model in fp32, `plain` its attention implementation for the examples alone.

    Raises:
        PackedForwardError: the model fails on the pack, though not on the examples alone.
    """
    branches = unpack(pack)
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


def few_examples(dataset: PackedDataset) -> list[Pack]:
    """Small packs out of a data set's: a few examples of the pack with the longest one, so that what a sliding window
    must not see is there if the data has it, and of the pack that shares most. Of a sample of its packs."""
    spread = np.linspace(0, dataset.num_packs - 1, min(NUM_CANDIDATES, dataset.num_packs)).astype(int)
    packs = dataset.take(spread.tolist())
    longest = max(range(len(packs)), key=lambda number: _longest(packs[number]))
    densest = max(range(len(packs)), key=lambda number: packs[number]["num_tokens"] / len(packs[number]["input_ids"]))
    return [_few_branches(packs[number]) for number in sorted({longest, densest})]


def _few_branches(pack: Pack) -> Pack:
    """The pack with only its longest branch, the one beside it and its last."""
    branches = unpack(pack)
    longest = max(range(len(branches)), key=lambda number: len(branches[number].positions))
    beside = longest + 1 if longest + 1 < len(branches) else longest - 1
    chosen = dict.fromkeys(number % len(branches) for number in (longest, beside, -1, 0))
    return prune(pack, [branches[number] for number in list(chosen)[:NUM_EXAMPLES]])


def _longest(pack: Pack) -> int:
    """Tokens of a pack's longest example."""
    return int(max(pack["position_ids"])) + 1


def _load(base: Path, config: Any, plain: str, device: torch.device) -> Any:
    """The base's first layers in fp32 with dropout off: what packing could change, a layer of each kind shows, in a few
    GB beside embeddings whatever the base's size."""
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
