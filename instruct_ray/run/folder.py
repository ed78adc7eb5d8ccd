"""RunConfig -> the folder of a run: where each arrow finds its input and leaves its output."""

from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import Config

# In a model folder: what it was made from.
MODEL_METADATA_FILE = "instruct_ray.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths under `{run.storage}/{run.name}`."""

    path: Path

    @classmethod
    def from_config(cls, config: Config) -> "RunFolder":
        return cls(config.run.storage / config.run.name)

    @property
    def packs_dir(self) -> Path:
        """Prepared packs, one folder per digest of what they were made from."""
        return self.path / "packs"

    @property
    def test_rows_file(self) -> Path:
        """The frozen held-out rows."""
        return self.path / "test.jsonl"

    @property
    def validation_rows_file(self) -> Path:
        """The rows held out to compare checkpoints."""
        return self.path / "validation.jsonl"

    @property
    def ray_train_dir(self) -> Path:
        """Ray Train's folder: checkpoints and its own state."""
        return self.path / "train"

    @property
    def metrics_file(self) -> Path:
        """One JSON line per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """One JSON line per event: what the run decided by itself, such as to resume or to skip a step."""
        return self.path / "events.jsonl"

    @property
    def validation_dir(self) -> Path:
        """What validation said of each checkpoint, and the best model."""
        return self.path / "validation"

    @property
    def validation_scores_file(self) -> Path:
        """One JSON line per validated checkpoint."""
        return self.validation_dir / "scores.jsonl"

    @property
    def model_dir(self) -> Path:
        """The tuned model or adapter as a Hugging Face folder."""
        return self.path / "model"

    @property
    def contract_file(self) -> Path:
        """How chats become tokens; equal from prepare to serve."""
        return self.path / "contract.json"

    @property
    def evidence_file(self) -> Path:
        """The comparison of the tuned model with its base."""
        return self.path / "evidence" / "evidence.json"

    @property
    def version_file(self) -> Path:
        """Which registry version this run became."""
        return self.path / "version.json"
