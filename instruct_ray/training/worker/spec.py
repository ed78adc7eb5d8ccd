"""pure: what a training worker is told; made by the driver, read by all ranks."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.training.validation.task import ValidationSpec

# In the run's folder: whether packing was found to be exact for the base model, and how the run computes its packs.
PACKING_CHECK_FILE = "packing_check.json"
# The result of reading the exported weights back.
EXPORT_CHECK_FILE = "export_check.json"
STOP_FILE = ".stop"
# The trained weights, before the model folder is assembled.
WEIGHTS_DIR = ".weights"


class WorkerSpec(BaseModel):
    """A run as its workers see it; travels as the train loop's config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    adapter_dir: Path | None
    """The adapter that is trained further; None starts a new one."""
    packs_dir: Path
    packing_incompatibility: str | None
    """Why the base model can't be trained on packs; None if that is still to be checked."""
    packing_check_file: Path
    metrics_file: Path
    events_file: Path
    checkpoint_dir: Path
    validation: ValidationSpec | None
    """How checkpoints are validated, if they are."""
    stop_file: Path
    """Exists once the run should stop after its current step."""
    weights_dir: Path
    """Where rank 0 writes the trained weights."""
    export_check_file: Path
    plan: BatchPlan
    lora: LoraConfig | None
    train: TrainConfig

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is made after so many steps."""
        return step % self.train.checkpoint_every == 0 or step == self.plan.num_steps
