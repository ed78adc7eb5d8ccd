"""pure: the input of a training worker, built by the driver and the same for all ranks."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.run.lock import LockTicket
from instruct_ray.training.validation.task import ValidationSpec

# Files and folders in the run folder.
# Whether packing is exact for the base model, and whether the run trains packed or padded.
PACKING_CHECK_FILE = "packing_check.json"
# The result of reading the exported weights back.
EXPORT_CHECK_FILE = "export_check.json"
STOP_FILE = ".stop"
# The trained weights, until the model folder is assembled.
WEIGHTS_DIR = ".weights"


class WorkerSpec(BaseModel):
    """All that a worker needs to know about a run; sent to it as part of the train loop's config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    adapter_dir: Path | None
    """The adapter that is trained further; None if there is none."""
    packs_dir: Path
    packing_incompatibility: str | None
    """Why the base model can't be trained on packs; None if the packing check decides."""
    packing_check_file: Path
    metrics_file: Path
    events_file: Path
    checkpoints_file: Path
    checkpoint_dir: Path
    validation: ValidationSpec | None
    """How checkpoints are validated; None if they are not."""
    stop_file: Path
    """The driver creates it to stop the run after its current step."""
    weights_dir: Path
    """Where rank 0 writes the trained weights."""
    export_check_file: Path
    plan: BatchPlan
    lora: LoraConfig | None
    token_ids: tuple[int, ...]
    """Tokens whose rows of the embedding and the head are trained besides the adapter."""
    train: TrainConfig
    lock: LockTicket | None = None
    """The lock of the run, checked before files of the run are written; None in a trial run, which has none."""

    def check_lock(self) -> None:
        """Check that no other process has taken over the run.

        Raises:
            RunLockLostError: one has.
        """
        if self.lock is not None:
            self.lock.check()

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is made after `step`, counted from 1."""
        return step % self.train.checkpoint_every == 0 or step == self.plan.num_steps
