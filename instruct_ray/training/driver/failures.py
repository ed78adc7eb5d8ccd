"""pure: Ray Train's final exception -> a message, with advice where the cause is known."""

import torch
from ray.exceptions import OutOfMemoryError
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

OOM_HINT = (
    "a worker ran out of memory: lower data.pack_tokens (under another run.name, since the packs are prepared again), "
    "set train.activation_checkpointing=true, or raise train.zero_stage or train.num_workers"
)


def format_failure(error: TrainingFailedError) -> str:
    """The text of Ray Train's exception, after advice if a worker ran out of memory."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return f"{OOM_HINT}: {error}" if any(map(_is_out_of_memory, failures)) else str(error)


def _is_out_of_memory(failure: BaseException) -> bool:
    # When a node runs out of memory, Ray kills a worker. The failed health check of that worker holds the cause.
    cause = vars(failure).get("health_check_failure", failure)
    return isinstance(cause, MemoryError | torch.OutOfMemoryError | OutOfMemoryError)
