"""worker, all ranks: forward, backward and update on a step's packs, with its metrics summed over all ranks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.distributed.collectives import gather_objects
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.loss import pack_loss
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.model.padded import num_padded_tokens, padded_loss
from instruct_ray.training.model.requirements import aux_loss_coef
from instruct_ray.training.model.tree_mask import MaskLayout

# P = packs of this rank in the step

# (model, pack, device) -> (summed loss of the pack, number of tokens computed).
PackLossFn = Callable[[nn.Module, Pack, torch.device], tuple[Tensor, int]]
# Rows that a message about a step names.
MAX_NAMED_ROWS = 20


@dataclass(frozen=True)
class LocalStep:
    """This rank's share of a step."""

    packs: list[Pack]
    losses_P: Tensor
    """Summed loss of each pack in nats, float64."""
    num_computed_tokens: int

    def sums(self) -> dict[str, float | Tensor]:
        """Return the numbers that are summed over all ranks."""
        return {
            "loss": self.losses_P.sum(),
            "num_tokens": sum(pack["num_tokens"] for pack in self.packs),
            "num_computed_tokens": self.num_computed_tokens,
            "num_examples": sum(len(pack["row_ids"]) for pack in self.packs),
        }


@dataclass(frozen=True)
class StepResult:
    """The result of a step over all ranks."""

    loss: float
    """Mean over the step's target tokens, in nats."""
    grad_norm: float
    """Over all parameters, before clipping."""
    num_tokens: int
    num_computed_tokens: int
    num_examples: int
    was_applied: bool
    """False if loss or gradient is non-finite: the step was skipped, weights and optimizer are unchanged."""
    nonfinite_row_ids: tuple[str, ...]
    """The first rows of the packs that caused it."""

    def skip_message(self, step: int) -> str:
        """Explain why the step was skipped."""
        return (
            f"step {step} skipped: loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, rows "
            f"{', '.join(self.nonfinite_row_ids)}; check these rows, or lower train.learning_rate"
        )

    def record(self) -> dict[str, float | bool | None]:
        """Return the values for `metrics.jsonl`. A non-finite number becomes None: JSON has no NaN."""
        return {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
            "num_tokens": self.num_tokens,
            "num_computed_tokens": self.num_computed_tokens,
            "examples": self.num_examples,
            "was_applied": self.was_applied,
        }


def make_loss_fn(
    hf_config: Any, check: PackingCheck, dtype: torch.dtype, *, in_chunks: bool, with_aux_loss: bool = True
) -> PackLossFn:
    """Make the function that computes the loss of a pack, packed or padded as the packing check decided.

    `in_chunks` if the output head allows it (`find_unchunkable_head`).
    """
    if check.is_packed:
        layout = MaskLayout.from_hf_config(hf_config, check.attn_implementation, dtype)
        return lambda model, pack, device: (
            pack_loss(model, pack, device, layout, in_chunks=in_chunks),
            len(pack["input_ids"]),
        )
    coef = aux_loss_coef(hf_config) if with_aux_loss else 0.0
    return lambda model, pack, device: (
        padded_loss(model, pack, device, coef, in_chunks=in_chunks),
        num_padded_tokens(pack),
    )


def train_step(
    engine: DeepSpeedEngine, loss_fn: PackLossFn, packs: list[Pack], num_target_tokens: int, learning_rate: float
) -> LocalStep:
    """Run the forward and backward passes of this rank's packs, and update the weights.

    The loss is summed over the step's target tokens on all ranks and divided by their number, `num_target_tokens`.
    """
    losses: list[Tensor] = []
    num_computed_tokens = 0
    for pack in packs:
        loss_sum, num_computed = loss_fn(engine.model, pack, engine.device)
        engine.backward(loss_sum / num_target_tokens)
        engine.step(learning_rate)
        # Read after the last pack, so that the host doesn't wait for the GPU in between.
        losses.append(loss_sum.detach())
        num_computed_tokens += num_computed
    return LocalStep(packs, torch.stack(losses).double(), num_computed_tokens)


def summarize_step(
    engine: DeepSpeedEngine, local: LocalStep, totals: Mapping[str, float], num_target_tokens: int
) -> StepResult:
    """Build the result of a step from the sums over all ranks."""
    row_ids = () if engine.was_applied else _gather_nonfinite_row_ids(local, totals["loss"])
    return StepResult(
        loss=totals["loss"] / num_target_tokens,
        grad_norm=engine.grad_norm,
        num_tokens=int(totals["num_tokens"]),
        num_computed_tokens=int(totals["num_computed_tokens"]),
        num_examples=int(totals["num_examples"]),
        was_applied=engine.was_applied,
        nonfinite_row_ids=row_ids,
    )


def _gather_nonfinite_row_ids(local: LocalStep, total_loss: float) -> tuple[str, ...]:
    """Gather the first rows of the packs with a non-finite loss; of all packs if only a gradient is non-finite."""
    packs = local.packs
    if not math.isfinite(total_loss):
        losses = local.losses_P.tolist()
        packs = [pack for pack, loss in zip(local.packs, losses, strict=True) if not math.isfinite(loss)]
    row_ids = [row_id for pack in packs for row_id in pack["row_ids"]][:MAX_NAMED_ROWS]
    all_row_ids = sorted({row_id for rank_row_ids in gather_objects(row_ids) for row_id in rank_row_ids})
    return tuple(all_row_ids[:MAX_NAMED_ROWS])
