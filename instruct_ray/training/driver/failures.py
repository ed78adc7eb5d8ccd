"""pure: Ray Train's exceptions -> messages, with advice where the cause is known."""

from collections.abc import Mapping

import torch
from ray.exceptions import OutOfMemoryError
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from instruct_ray.errors import one_line

MAX_CHARACTERS = 300
# In the messages of Gloo, which name its source files.
GLOO_SOURCE = "gloo/transport"
OOM_HINT = (
    "a worker ran out of memory: lower data.pack_tokens (under another run.name, since the packs are prepared again), "
    "set train.activation_checkpointing=true, or raise train.zero_stage or train.num_workers"
)


def format_failure(error: TrainingFailedError) -> str:
    """The text of Ray Train's exception, which has tracebacks; its last line is the reason."""
    if not isinstance(error, WorkerGroupError):
        return str(error)
    failures = error.worker_failures
    reason = OOM_HINT if any(map(_is_out_of_memory, failures.values())) else describe_cause(failures)
    return f"{error}\n{reason}"


def describe_cause(failures: Mapping[int, Exception]) -> str:
    """Which worker failed first, and why, in one line. `failures` are by rank.

    A worker that died is taken as the cause, or one whose error is not that of a collective: the others failed because
    it left one.
    """
    rank, error = min(failures.items(), key=lambda item: (not _has_died(item[1]), _is_of_collective(item[1]), item[0]))
    return f"worker {rank} failed: {one_line(_find_cause(error), MAX_CHARACTERS)}"


def _find_cause(error: Exception) -> Exception:
    """When a node runs out of memory, Ray kills a worker. The failed health check of that worker holds the cause."""
    cause: Exception = vars(error).get("health_check_failure", error)
    return cause


def _has_died(error: Exception) -> bool:
    return "health_check_failure" in vars(error)


def _is_of_collective(error: Exception) -> bool:
    # Gloo has no type of its own.
    return isinstance(error, torch.distributed.DistError) or GLOO_SOURCE in str(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(_find_cause(error), MemoryError | torch.OutOfMemoryError | OutOfMemoryError)
