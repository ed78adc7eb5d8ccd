"""worker, all ranks: reads an exported model back with plain transformers or peft, and compares tensors and logits.

Only `compute_logits` is called by all ranks.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor

from instruct_ray.base_model.causal_lm import default_attn_implementation, load_causal_lm
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.padded import unpack_branches

# T = tokens of the row, V = vocabulary

# Of the row that both models read: a large model reads it on the host's CPU.
MAX_ROW_TOKENS = 128
# The same kernels and weights give the same logits; a CPU and a GPU differ by rounding, and merging rounds each weight
# once more.
MIN_TOLERANCE = 1e-4
TOLERATED_ROUNDINGS = 8


class ReadBackResult(BaseModel):
    """The result of the comparison; the run's `export_check.json` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str | None = None
    """What differs; None if nothing does."""
    num_tensors: int = 0
    num_row_tokens: int = 0
    logit_difference: float = 0.0
    """L2 norm of the difference of the row's logits, over the norm of the logits in training."""
    logit_tolerance: float = 0.0


def first_pack_row(packs_dir: Path) -> list[int]:
    """The tokens of the first branch of the first pack, at most MAX_ROW_TOKENS."""
    [pack] = PackedDataset.open(packs_dir).take([0])
    return unpack_branches(pack)[0].input_ids[:MAX_ROW_TOKENS]


@torch.no_grad()
def compute_logits(engine: DeepSpeedEngine, row: list[int], hf_config: Any, attn_implementation: str) -> Tensor:
    """Compute the logits of a row by the model in training, shape (T, V) on the CPU. Collective.

    They are computed with the default attention implementation, as users of the exported model do; the model then
    returns to `attn_implementation`, which training uses.
    """
    module = engine.module
    engine.model.eval()
    module.set_attn_implementation(default_attn_implementation(hf_config))
    logits_TV = _compute_logits(engine.model, row, engine.device)
    module.set_attn_implementation(attn_implementation)
    engine.model.train()
    return logits_TV


@torch.no_grad()
def read_back(
    folder: Path,
    base_dir: Path,
    is_adapter: bool,
    written: dict[str, Tensor],
    row: list[int],
    expected_TV: Tensor | None,
) -> ReadBackResult:
    """Load a folder on the CPU and compare it with what was written.

    Compares the tensors with `written`, and the logits of `row` with `expected_TV` unless that is None. The base of an
    adapter is loaded in the precision of the adapter, as in training.
    """
    dtype = next(iter(written.values())).dtype
    if is_adapter:
        missing = _missing_in_adapter(folder, written)
        base, _ = _load(base_dir, dtype)
        model = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False, torch_device="cpu").eval()
    else:
        model, missing = _load(folder, "auto")
    state = model.state_dict()
    problem = missing or _compare_names(state, written, is_adapter) or _compare_tensors(state, written)
    if problem or expected_TV is None:
        return ReadBackResult(problem=problem, num_tensors=len(written))
    logits_TV = _compute_logits(model, row, torch.device("cpu"))
    difference, tolerance = _compare_logits(logits_TV, expected_TV)
    # Written so that NaN fails.
    if not difference <= tolerance:
        problem = f"its logits of a row differ by {difference:.1e} of their norm, rounding explains {tolerance:.1e}"
    return ReadBackResult(
        problem=problem,
        num_tensors=len(written),
        num_row_tokens=len(row),
        logit_difference=difference,
        logit_tolerance=tolerance,
    )


def _load(folder: Path, dtype: torch.dtype | str) -> tuple[Any, str | None]:
    """(model, which tensors its folder lacks): transformers would silently initialize them."""
    model, info = load_causal_lm(folder, dtype, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    return model.eval(), f"{missing[0]} is missing ({len(missing)} in total)" if missing else None


def _missing_in_adapter(folder: Path, written: dict[str, Tensor]) -> str | None:
    # A tied weight has two names.
    num_written = len({tensor.data_ptr() for tensor in written.values()})
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        num_tensors = len(file.keys())
    return None if num_tensors == num_written else f"the adapter has {num_tensors} tensors of {num_written}"


def _compare_names(state: dict[str, Tensor], written: dict[str, Tensor], is_adapter: bool) -> str | None:
    missing, unknown = sorted(written.keys() - state.keys()), sorted(state.keys() - written.keys())
    if missing:
        return f"{missing[0]} is missing ({len(missing)} in total)"
    if unknown and not is_adapter:
        return f"{unknown[0]} was not trained ({len(unknown)} in total)"
    return None


def _compare_tensors(state: dict[str, Tensor], written: dict[str, Tensor]) -> str | None:
    for name, expected in written.items():
        loaded = state[name]
        if loaded.shape != expected.shape:
            return f"{name} has the shape {tuple(loaded.shape)}, not {tuple(expected.shape)}"
        if loaded.dtype != expected.dtype:
            return f"{name} has the type {loaded.dtype}, not {expected.dtype}"
        if not _is_equal(loaded, expected.cpu()):
            largest = float((loaded.float() - expected.cpu().float()).abs().max())
            return f"{name} differs by up to {largest:.1e}"
    return None


def _is_equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are bitwise equal; NaN equals NaN."""
    is_nan = left.isnan()
    has_equal_numbers = torch.equal(left.masked_fill(is_nan, 0), right.masked_fill(right.isnan(), 0))
    return has_equal_numbers and torch.equal(is_nan, right.isnan())


def _compare_logits(logits_TV: Tensor, expected_TV: Tensor) -> tuple[float, float]:
    """(relative difference, tolerance)."""
    # Where both are non-finite they agree: a base model may have non-finite weights.
    is_compared_TV = expected_TV.isfinite() | logits_TV.isfinite()
    logits, expected = logits_TV[is_compared_TV].float(), expected_TV[is_compared_TV].float()
    difference = float((logits - expected).norm() / expected.norm()) if len(expected) else 0.0
    eps = max(torch.finfo(values_TV.dtype).eps for values_TV in (logits_TV, expected_TV))
    return difference, max(MIN_TOLERANCE, TOLERATED_ROUNDINGS * eps)


def _compute_logits(model: Any, row: list[int], device: torch.device) -> Tensor:
    """Shape (T, V), on the CPU."""
    logits_TV: Tensor = model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0]
    return logits_TV.cpu()
