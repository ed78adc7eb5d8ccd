"""Why Ray Train gave up -> one message that says what to do where that is known."""

import torch
from ray.exceptions import OutOfMemoryError
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

OOM_HINT = (
    "a worker ran out of memory: lower data.pack_tokens (another run.name: packs are made anew), set "
    "train.activation_checkpointing=true, or raise train.zero_stage or train.num_workers"
)


def format_failure(error: TrainingFailedError) -> str:
    """What Ray says, behind what to do about it."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return f"{OOM_HINT}: {error}" if any(map(_is_memory, failures)) else str(error)


def _is_memory(failure: BaseException) -> bool:
    # Ray kills a worker whose node has no memory left, and says so in the error that it finds when it asks for health.
    inner = vars(failure).get("health_check_failure", failure)
    return isinstance(inner, MemoryError | torch.OutOfMemoryError | OutOfMemoryError)
