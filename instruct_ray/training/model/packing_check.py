"""worker, all ranks: checks before training that packing does not change what the base model computes.

The check compares a few examples of the run, packed and alone, in fp32: there the two may differ by rounding only,
while rounding in bf16 would hide a wrong mask. If they differ by more, or if the model's code does not take the mask of
a pack, the run trains in padded mode. Any other error, such as a missing compiler, is not evidence against packing: it
stops the run. Rank 0 runs the check before it loads the model to train; `doctor` runs it too.
"""

import gc
import logging
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import transformers
from pydantic import BaseModel, ConfigDict

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.errors import one_line
from instruct_ray.files import atomic_write_json
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.model.packing_comparison import (
    compare_packed_and_alone,
    find_mask_problem,
    load_first_layers,
    longest_example,
    sample_check_packs,
)
from instruct_ray.training.model.padded import unpack_branches
from instruct_ray.training.model.requirements import packed_attn_implementation
from instruct_ray.training.model.toolchain import explain_failure
from instruct_ray.training.model.tree_mask import MaskLayout

# Measured on SmolLM2-135M's first four layers: rounding gives 3e-7 (loss) and 7e-7 (gradient), hiding one key from one
# token 1e-2 and 1e-1. All 30 layers separate the two less well, 3e-6 and 8e-5 against 2e-1 and 2e-1, and take four
# times as long.
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-2

logger = logging.getLogger(__name__)


class PackingCheckError(RuntimeError):
    """The packing check could not be run on this machine. The message is one line: what is missing, and what to do."""


class PackingCheck(BaseModel):
    """What was measured and which mode follows; kept in the run's `packing_check.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Literal["packed", "padded"]
    """How the run trains."""
    reason: str
    attn_implementation: str
    """transformers' attention implementation that training uses."""
    versions: dict[str, str]
    """Of the libraries that compute the model; a result of other versions is not reused."""
    loss_difference: float | None = None
    """The largest difference in loss per target token of an example, over one plus that loss."""
    loss_tolerance: float = LOSS_TOLERANCE
    gradient_difference: float | None = None
    """L2 norm of the difference of the gradients of all parameters, over the norm of the gradient."""
    gradient_tolerance: float = GRADIENT_TOLERANCE
    num_examples: int = 0
    longest: int = 0
    """Tokens of the longest example that was compared."""
    window: int | None = None
    """The base model's sliding window, in tokens."""
    num_layers: int | None = None
    """How many of the base model's first layers were run: at least one of every type."""
    seconds: float = 0.0

    @property
    def is_packed(self) -> bool:
        """Whether the run trains on packs."""
        return self.path == "packed"


def resolve_packing_mode(
    base_dir: Path,
    hf_config: Any,
    packs_dir: Path,
    incompatibility: str | None,
    check_file: Path,
    device: torch.device,
) -> PackingCheck:
    """Return the packing check of a run, the same on every rank. Collective.

    `incompatibility` is the result of `find_packing_incompatibility`. An earlier result is reused if the versions of
    the libraries match, so that a resumed run keeps its mode.

    Raises:
        PackingCheckError: rank 0 could not run it; raised on all ranks alike.
    """
    result: PackingCheck | str | None = None
    if dist.get_rank() == 0:
        packs = PackedDataset.open(packs_dir)
        try:
            result = load_or_run_packing_check(base_dir, hf_config, packs, incompatibility, check_file, device)
        except PackingCheckError as error:
            result = str(error)
    result = broadcast_object(result, device)
    if not isinstance(result, PackingCheck):
        raise PackingCheckError(result)
    return result


def load_or_run_packing_check(
    base_dir: Path,
    hf_config: Any,
    packs: PackedDataset,
    incompatibility: str | None,
    check_file: Path,
    device: torch.device,
) -> PackingCheck:
    """Load the packing check of a run from its file, or run it and write the file; one process calls it.

    Raises:
        PackingCheckError: it could not be run; nothing is written.
    """
    can_pack = incompatibility is None
    attn_implementation = (
        packed_attn_implementation(hf_config, device) if can_pack else default_attn_implementation(hf_config)
    )
    if check_file.is_file():
        earlier = PackingCheck.model_validate_json(check_file.read_text())
        if earlier.is_packed:
            still_applies = can_pack and earlier.attn_implementation == attn_implementation
        else:
            # Without a measured difference an earlier version may have recorded any error, such as a missing compiler.
            still_applies = not can_pack or earlier.loss_difference is not None
        if still_applies and earlier.versions == _library_versions():
            return earlier
    if incompatibility is None:
        check = run_packing_check(base_dir, hf_config, packs, device)
    else:
        check = PackingCheck(
            path="padded",
            reason=incompatibility,
            attn_implementation=attn_implementation,
            versions=_library_versions(),
        )
    try:
        atomic_write_json(check_file, check.model_dump())
    except OSError as error:
        # Only the next start has to run it again.
        logger.warning("%s can't be written: %s", check_file, one_line(error))
    return check


def run_packing_check(base_dir: Path, hf_config: Any, dataset: PackedDataset, device: torch.device) -> PackingCheck:
    """Compare a few examples of a run, packed and alone, on its base model in fp32 without dropout.

    Raises:
        PackingCheckError: the examples could not be computed, for another reason than the model's own code.
        torch.OutOfMemoryError, torch.AcceleratorError: the GPU failed; another attempt may succeed.
    """
    started = time.perf_counter()
    packs = sample_check_packs(dataset)
    default, packed = default_attn_implementation(hf_config), packed_attn_implementation(hf_config, device)
    model = load_first_layers(base_dir, hf_config, default, device)
    layout = MaskLayout.from_hf_config(hf_config, packed, torch.float32)
    failure, loss, gradient = None, float("nan"), float("nan")
    try:
        differences = torch.tensor([compare_packed_and_alone(model, pack, layout, default, device) for pack in packs])
        # NaN if any of them is.
        loss, gradient = differences.amax(0).tolist()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    # Whatever a kernel, a compiler or one of hundreds of models raises.
    except Exception as error:
        failure = find_mask_problem(hf_config, default, packs[0])
        if failure is None:
            raise PackingCheckError(f"the packing check could not be run: {explain_failure(error)}") from error
    num_layers = model.config.get_text_config().num_hidden_layers
    # Its memory is needed for the model to train.
    del model
    gc.collect()
    torch.cuda.empty_cache()
    # Written so that NaN fails.
    is_exact = loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE
    return PackingCheck(
        path="packed" if is_exact else "padded",
        reason=failure or f"packed and alone differ by {loss:.1e} in loss and {gradient:.1e} in gradient",
        attn_implementation=packed if is_exact else default,
        versions=_library_versions(),
        loss_difference=None if failure else loss,
        gradient_difference=None if failure else gradient,
        num_examples=sum(len(unpack_branches(pack)) for pack in packs),
        longest=max(longest_example(pack) for pack in packs),
        window=layout.window,
        num_layers=num_layers,
        seconds=round(time.perf_counter() - started, 1),
    )


def _library_versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}
