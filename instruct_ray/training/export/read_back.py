"""A written model, read back by plain transformers or peft: the same tensors, and the same answer to a row."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.model.padded import unpack_branches
from instruct_ray.training.model.requirements import default_attn_implementation

# T = tokens of the row, V = vocabulary

# Of the row that both models read: a large one runs on the host's CPU.
MAX_ROW_TOKENS = 128
# Same kernels and weights differ by nothing, a CPU from a GPU by rounding, and merging rounds each weight once more.
MIN_TOLERANCE = 1e-4
TOLERATED_ROUNDINGS = 8


class ReadBackResult(BaseModel):
    """What was found: `export_check.json` of a run holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str = ""
    """What differs; empty if nothing does."""
    num_tensors: int = 0
    num_row_tokens: int = 0
    logit_difference: float = 0.0
    """L2 norm of the difference of the row's logits, over their norm in training."""
    logit_tolerance: float = 0.0


def first_pack_row(packs: Path) -> list[int]:
    """The tokens of the first row of a data set's first pack, or the first of them."""
    [pack] = PackedDataset.open(packs).take([0])
    return unpack_branches(pack)[0].input_ids[:MAX_ROW_TOKENS]


@torch.no_grad()
def compute_logits(engine: DeepSpeedEngine, row: list[int], hf_config: Any, implementation: str) -> Tensor:
    """The logits of a row by the model in training, shape (T, V) on the CPU; all ranks call it. `implementation` is the
    attention that training uses: here it is the plain one, as whoever loads the folder has."""
    module = engine.module
    engine.model.eval()
    module.set_attn_implementation(default_attn_implementation(hf_config))
    logits_TV = _logits(engine.model, row, engine.device)
    module.set_attn_implementation(implementation)
    engine.model.train()
    return logits_TV


@torch.no_grad()
def read_back(
    folder: Path, base: Path, is_adapter: bool, written: dict[str, Tensor], row: list[int], expected_TV: Tensor | None
) -> ReadBackResult:
    """Load a folder on the CPU and compare its tensors with those `written`, and its logits of a row with the expected
    ones, if there are any. An adapter's base is loaded in the precision of the adapter, as in training."""
    dtype = next(iter(written.values())).dtype
    if is_adapter:
        missing = _missing_in_adapter(folder, len(written))
        plain, _ = _load(base, dtype)
        model = PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False, torch_device="cpu").eval()
    else:
        model, missing = _load(folder, "auto")
    state = model.state_dict()
    problem = missing or _different_names(state, written, is_adapter) or _different_tensor(state, written)
    if problem or expected_TV is None:
        return ReadBackResult(problem=problem, num_tensors=len(written))
    logits_TV = _logits(model, row, torch.device("cpu"))
    # A base may have weights that are no numbers, and a row meet them: in training and here alike.
    is_finite_TV = expected_TV.isfinite() | logits_TV.isfinite()
    expected, found = expected_TV[is_finite_TV].float(), logits_TV[is_finite_TV].float()
    difference = float((found - expected).norm() / expected.norm()) if len(expected) else 0.0
    eps = max(torch.finfo(logits.dtype).eps for logits in (logits_TV, expected_TV))
    tolerance = max(MIN_TOLERANCE, TOLERATED_ROUNDINGS * eps)
    # Not "greater than": NaN fails.
    if not difference <= tolerance:
        problem = f"its logits of a row differ by {difference:.1e} of their norm, {tolerance:.1e} is rounding"
    return ReadBackResult(
        problem=problem,
        num_tensors=len(written),
        num_row_tokens=len(row),
        logit_difference=difference,
        logit_tolerance=tolerance,
    )


def _load(folder: Path, dtype: torch.dtype | str) -> tuple[Any, str]:
    """A model, and what its folder lacks: transformers fills that up by itself."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation=default_attn_implementation(load_hf_config(folder)),
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    return model.eval(), f"{missing[0]} is missing ({len(missing)} in all)" if missing else ""


def _missing_in_adapter(folder: Path, num_written: int) -> str:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        num_found = len(file.keys())
    return "" if num_found == num_written else f"the adapter has {num_found} tensors of {num_written}"


def _different_names(state: dict[str, Tensor], written: dict[str, Tensor], is_adapter: bool) -> str:
    missing, unknown = sorted(written.keys() - state.keys()), sorted(state.keys() - written.keys())
    if missing:
        return f"{missing[0]} is missing ({len(missing)} in all)"
    if unknown and not is_adapter:
        return f"{unknown[0]} was not trained ({len(unknown)} in all)"
    return ""


def _different_tensor(state: dict[str, Tensor], written: dict[str, Tensor]) -> str:
    for name, expected in written.items():
        found = state[name]
        if found.shape != expected.shape:
            return f"{name} has the shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        if found.dtype != expected.dtype:
            return f"{name} is of {found.dtype}, not {expected.dtype}"
        if not _is_same(found, expected.cpu()):
            largest = float((found.float() - expected.cpu().float()).abs().max())
            return f"{name} differs, by {largest:.1e} at most"
    return ""


def _is_same(one: Tensor, other: Tensor) -> bool:
    """To the bit; what is no number in both is the same."""
    is_none = one.isnan()
    equal = torch.equal(one.masked_fill(is_none, 0), other.masked_fill(other.isnan(), 0))
    return equal and torch.equal(is_none, other.isnan())


def _logits(model: Any, row: list[int], device: torch.device) -> Tensor:
    """Shape (T, V), on the CPU."""
    logits_TV: Tensor = model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0]
    return logits_TV.cpu()
