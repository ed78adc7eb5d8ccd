"""Paths of the files in a run folder, through which the stages pass their results on."""

from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import Config

# A file in a model folder: base model, packs, contract and MLflow run that the model was made from.
MODEL_METADATA_FILE = "instruct_ray.json"
# In the folder of a run and of a model.
CONTRACT_FILE = "contract.json"
# In a run's validation folder: one line per validated checkpoint.
VALIDATION_SCORES_FILE = "scores.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """Paths under `{run.storage}/{run.name}`."""

    path: Path

    @classmethod
    def from_config(cls, config: Config) -> "RunFolder":
        """The folder of the run that a config names."""
        return cls(config.run.storage / config.run.name)

    @property
    def packs_dir(self) -> Path:
        """Prepared packs: one folder per digest of the inputs."""
        return self.path / "packs"

    @property
    def test_rows_file(self) -> Path:
        """The rows held out for the test, as JSON lines."""
        return self.path / "test.jsonl"

    @property
    def validation_rows_file(self) -> Path:
        """The rows held out to validate checkpoints, as JSON lines."""
        return self.path / "validation.jsonl"

    @property
    def few_shot_file(self) -> Path:
        """Training rows that few-shot examples are chosen from, as JSON lines; earlier versions did not write it."""
        return self.path / "few_shot.jsonl"

    @property
    def ray_train_dir(self) -> Path:
        """The folder of Ray Train: its checkpoints and its own state."""
        return self.path / "train"

    @property
    def metrics_file(self) -> Path:
        """Training metrics: one JSON line per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """Events: one JSON line each, for example that the run resumed or skipped a step."""
        return self.path / "events.jsonl"

    @property
    def checkpoints_file(self) -> Path:
        """Committed checkpoints: one JSON line each, with how long it took."""
        return self.path / "checkpoints.jsonl"

    @property
    def validation_dir(self) -> Path:
        """Validation results of the checkpoints, and the best model."""
        return self.path / "validation"

    @property
    def validation_scores_file(self) -> Path:
        """Validation results: one JSON line per checkpoint."""
        return self.validation_dir / VALIDATION_SCORES_FILE

    @property
    def model_dir(self) -> Path:
        """The tuned model or adapter, as a Hugging Face folder."""
        return self.path / "model"

    @property
    def contract_file(self) -> Path:
        """How chats become tokens; the same from prepare to serve."""
        return self.path / CONTRACT_FILE

    @property
    def evidence_file(self) -> Path:
        """The comparison of the tuned model with its base model."""
        return self.path / "evidence" / "evidence.json"

    @property
    def report_file(self) -> Path:
        """The evidence as a page."""
        return self.path / "evidence" / "report.html"

    @property
    def version_file(self) -> Path:
        """The registry version that this run was registered as."""
        return self.path / "version.json"
