"""worker, all ranks: exports the trained weights as a Hugging Face folder that transformers or peft can load."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from instruct_ray.errors import one_line
from instruct_ray.files import atomic_write_json
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.formats import ExportFormat
from instruct_ray.training.export.read_back import ReadBackResult, compute_logits, first_pack_row, read_back
from instruct_ray.training.export.weights import write_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    problem: str | None = None
    """Why the exported model is not the trained one; None if it is."""
    postponed: str | None = None
    """Why the export could not be verified now: the storage failed. A later one may succeed."""


@dataclass(frozen=True)
class Exporter:
    """Writes the weights of a run.

    The first export of a run is read back. That happens at its first checkpoint, not after hours of training.
    """

    base_dir: Path
    hf_config: Any
    """The transformers config of the base model."""
    packs_dir: Path
    weights_dir: Path
    """Where rank 0 writes the weights."""
    check_file: Path
    """Written once an export was read back and found equal to the trained model."""
    format: ExportFormat
    attn_implementation: str
    """The attention implementation that training uses."""
    is_quantized: bool
    """Whether training has the base in 4 bits. Users load it unquantized, so the logits are not compared."""
    rank: int

    def verify_export_once(self, engine: DeepSpeedEngine) -> ExportResult:
        """Write the weights, read them back, and remove them, once in a run. Collective."""
        if self._is_verified(engine):
            return ExportResult()
        result = self._write_and_read_back(engine)
        if self.rank == 0:
            shutil.rmtree(self.weights_dir, ignore_errors=True)
        return result

    def export(self, engine: DeepSpeedEngine) -> ExportResult:
        """Write the weights, and read them back unless an earlier export was verified. Collective."""
        if not self._is_verified(engine):
            result = self._write_and_read_back(engine)
            return ExportResult(result.postponed) if result.postponed else result
        state = engine.full_state_dict(only_trained=self.format != "full")
        failure = None
        if state is not None:
            try:
                write_weights(engine.module, state, self.weights_dir, self.format)
            except (OSError, SafetensorError) as error:
                failure = self._storage_failure(error)
        failure = broadcast_object(failure, engine.device)
        return ExportResult(failure)

    def _is_verified(self, engine: DeepSpeedEngine) -> bool:
        is_verified = None
        if self.rank == 0:
            try:
                is_verified = self.check_file.is_file()
            except OSError:
                is_verified = False
        return bool(broadcast_object(is_verified, engine.device))

    def _storage_failure(self, error: Exception) -> str:
        # safetensors raises an error of its own for a full disk.
        return (
            f"the model can't be written to {self.weights_dir}: {one_line(error, 500)}; free some space or mend the "
            "storage, and run the same command again: it resumes from the newest checkpoint"
        )

    def _write_and_read_back(self, engine: DeepSpeedEngine) -> ExportResult:
        started = time.perf_counter()
        row = first_pack_row(self.packs_dir)
        expected_TV = (
            None if self.is_quantized else compute_logits(engine, row, self.hf_config, self.attn_implementation)
        )
        state = engine.full_state_dict(only_trained=self.format != "full")
        problem = failure = None
        if state is not None:
            try:
                written = write_weights(engine.module, state, self.weights_dir, self.format)
                result = read_back(self.weights_dir, self.base_dir, self.format == "adapter", written, row, expected_TV)
                problem = result.problem
                self._save_if_equal(result, time.perf_counter() - started)
            except (OSError, SafetensorError) as error:
                failure = self._storage_failure(error)
            # Any error: the other ranks wait for the result, and another attempt would fail the same way.
            except Exception as error:
                logger.exception("the export failed")
                problem = f"it can't be written and loaded: {one_line(error, 500)}"
        problem, failure = broadcast_object((problem, failure), engine.device)
        if problem is None:
            return ExportResult(postponed=failure)
        return ExportResult(f"the exported model ({self.format}) is not the trained one: {problem}")

    def _save_if_equal(self, result: ReadBackResult, seconds: float) -> None:
        if result.problem is None:
            measurements = result.model_dump(exclude={"problem"})
            atomic_write_json(self.check_file, {"form": self.format, **measurements, "seconds": round(seconds, 1)})
