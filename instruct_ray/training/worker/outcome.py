"""pure: what all ranks decide after a step, and how training ended, which the driver acts on."""

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What happens after a step."""

    CONTINUE = "continue"
    FINISH = "finish"
    """Training is complete, at the end of the plan or by early stopping: export the model."""
    INTERRUPT = "interrupt"
    """Stop as requested, after saving a checkpoint if the storage has room."""
    FAIL = "fail"
    """Stop because of a problem that would recur after a restart."""


@dataclass(frozen=True)
class Decision:
    """What happens after a step, the same on all ranks."""

    action: Action
    reason: str = ""
    """For FAIL: what is wrong, and what to do."""


class Ending(Enum):
    """How training ended."""

    FINISHED = "finished"
    """The weights are exported."""
    INTERRUPTED = "interrupted"
    """Stopped as requested; rerunning the same command resumes from the newest checkpoint."""
    FAILED = "failed"


@dataclass(frozen=True)
class TrainOutcome:
    """The result of `train_loop_per_worker`, the same on all ranks."""

    ending: Ending
    reason: str = ""
    """For FAILED: what is wrong, and what to do."""
    unwritten: tuple[str, ...] = ()
    """Which lines of the run's files could not be written."""
