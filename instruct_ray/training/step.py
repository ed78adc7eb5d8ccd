"""Some packs -> one optimizer step, in the way that the packing proof left open."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instruct_ray.data.packing import Pack
from instruct_ray.training.modeling.attention import MaskLayout
from instruct_ray.training.modeling.loss import pack_loss
from instruct_ray.training.modeling.model import aux_loss_coef
from instruct_ray.training.modeling.padded import num_computed_tokens, padded_loss
from instruct_ray.training.modeling.proof import PackingProof
from instruct_ray.training.zero import ZeroEngine

# (summed loss, tokens computed) of a pack.
Compute = Callable[[nn.Module, Pack, torch.device], tuple[Tensor, int]]
# Of a step that is left out.
MAX_NAMED_ROWS = 20


@dataclass(frozen=True)
class Step:
    """What one step did, over all ranks."""

    loss: float
    """Mean over its trained tokens, in nats."""
    grad_norm: float
    """Over all parameters, before clipping."""
    num_tokens: int
    num_computed_tokens: int
    num_examples: int
    was_applied: bool
    """False where loss or gradient is no number: weights and optimizer are as before."""
    suspects: tuple[str, ...]
    """The first rows of the packs that made it so."""
    is_last: bool
    """Whether a rank was asked to stop behind it."""
    is_lookout: bool
    """Whether a rank wants all to look out behind it."""

    def left_out(self, step: int) -> str:
        """In words: why it was left out."""
        return (
            f"step {step} left out: loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, rows "
            f"{', '.join(self.suspects)}; look at them, or lower train.learning_rate"
        )

    def record(self) -> dict[str, float | bool | None]:
        """For `metrics.jsonl`; JSON has no NaN."""
        return {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
            "num_tokens": self.num_tokens,
            "num_computed_tokens": self.num_computed_tokens,
            "examples": self.num_examples,
            "was_applied": self.was_applied,
        }


def make_compute(config: Any, proof: PackingProof, dtype: torch.dtype) -> Compute:
    """The loss of a pack, packed or each example padded."""
    if proof.is_packed:
        layout = MaskLayout.of(config, proof.implementation, dtype)
        return lambda model, pack, device: (pack_loss(model, pack, device, layout), len(pack["input_ids"]))
    coef = aux_loss_coef(config)
    return lambda model, pack, device: (padded_loss(model, pack, device, coef), num_computed_tokens(pack))


def train_step(
    engine: ZeroEngine,
    compute: Compute,
    packs: list[Pack],
    num_trained: int,
    learning_rate: float,
    *,
    wants_stop: bool,
    wants_lookout: bool,
) -> Step:
    """One optimizer step on this rank's packs; all ranks call it. The loss is the sum over the step's `num_trained`
    trained tokens, on all ranks, over their number. What one rank wants (`wants_…`), all learn."""
    losses: list[Tensor] = []
    counts = [0, 0, 0, int(wants_stop), int(wants_lookout)]
    for pack in packs:
        loss_sum, num_computed = compute(engine.model, pack, engine.device)
        engine.backward(loss_sum / num_trained)
        engine.step(learning_rate)
        # Read behind the last pack: until then nothing waits for the device.
        losses.append(loss_sum.detach())
        for place, count in enumerate((pack["num_tokens"], num_computed, len(pack["row_ids"]))):
            counts[place] += count
    losses_P = torch.stack(losses).double()
    totals = torch.cat((losses_P.sum()[None], torch.tensor(counts, dtype=torch.float64, device=engine.device)))
    dist.all_reduce(totals)
    loss_sum_all, num_tokens, num_computed_all, num_examples, num_stops, num_lookouts = totals.tolist()
    suspects = [] if engine.was_applied else _suspects(packs, losses_P.tolist(), loss_sum_all)
    return Step(
        loss=loss_sum_all / num_trained,
        grad_norm=engine.grad_norm,
        num_tokens=int(num_tokens),
        num_computed_tokens=int(num_computed_all),
        num_examples=int(num_examples),
        was_applied=engine.was_applied,
        suspects=tuple(suspects[:MAX_NAMED_ROWS]),
        is_last=num_stops > 0,
        is_lookout=num_lookouts > 0,
    )


def _suspects(packs: list[Pack], losses: list[float], loss_sum_all: float) -> list[str]:
    """Rows of the packs whose loss is no number, of all if only a gradient is none; all ranks call it."""
    is_loss = not math.isfinite(loss_sum_all)
    bad = [pack for pack, loss in zip(packs, losses, strict=True) if not (is_loss and math.isfinite(loss))]
    return _of_all_ranks([row_id for pack in bad for row_id in pack["row_ids"]])


def _of_all_ranks(row_ids: list[str]) -> list[str]:
    found: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, row_ids[:MAX_NAMED_ROWS])
    return sorted({row_id for each in found for row_id in each})
