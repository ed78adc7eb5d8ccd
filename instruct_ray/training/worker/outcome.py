"""pure: what every rank decides after a step, and how the training ended, which the driver acts on."""

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What happens after a step."""

    CONTINUE = "continue"
    FINISH = "finish"
    """Training is complete, at the end of the plan or by early stopping: export the model."""
    INTERRUPT = "interrupt"
    """Stop as requested, after a checkpoint."""
    FAIL = "fail"
    """Stop for a reason that another attempt would only meet again."""


@dataclass(frozen=True)
class Decision:
    """An action, the same on every rank, and its reason."""

    action: Action
    reason: str = ""
    """Why it failed."""


class Ending(Enum):
    """How a training ended."""

    FINISHED = "finished"
    """The weights are exported."""
    INTERRUPTED = "interrupted"
    """A checkpoint is committed; the same command resumes."""
    FAILED = "failed"


@dataclass(frozen=True)
class TrainOutcome:
    """What `train_loop_per_worker` returns."""

    ending: Ending
    reason: str = ""
    """Why it failed."""
