"""Trained shards -> a Hugging Face folder that plain transformers or peft loads; read back before hours are spent."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instruct_ray.config.schema import LoraConfig
from instruct_ray.files import atomic_write_json
from instruct_ray.training.distributed.collectives import broadcast_object
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.export.read_back import ReadBackResult, compute_logits, first_pack_row, read_back
from instruct_ray.training.export.weights import write_weights

logger = logging.getLogger(__name__)
ExportFormat = Literal["full", "adapter", "merged"]


def export_format(lora: LoraConfig | None) -> ExportFormat:
    """What a run leaves: all weights, an adapter, or its base with the adapter merged into it."""
    if lora is None:
        return "full"
    return "merged" if lora.merge else "adapter"


@dataclass(frozen=True)
class ExportResult:
    """What became of an export."""

    problem: str = ""
    """Why the written model is not the trained one; empty if it is."""


@dataclass(frozen=True)
class Exporter:
    """Writes the weights of a run. The first time they are read back: by the first checkpoint, hours may lie ahead."""

    base_dir: Path
    hf_config: Any
    """The transformers configuration of the base model."""
    packs_dir: Path
    weights_dir: Path
    """Where rank 0 writes them."""
    check_file: Path
    """Written once they were read back and found equal."""
    format: ExportFormat
    attn_implementation: str
    """The attention implementation that training uses."""
    is_quantized: bool
    """Whether the base is in 4 bits in training: whoever loads the folder with a plain one gets other answers."""
    rank: int

    def verify_export_once(self, engine: DeepSpeedEngine) -> ExportResult:
        """Write, read back and remove the weights, once in a run; all ranks call it."""
        if self._was_read_back(engine):
            return ExportResult()
        result = self._write_and_read_back(engine)
        if self.rank == 0:
            shutil.rmtree(self.weights_dir, ignore_errors=True)
        return result

    def export(self, engine: DeepSpeedEngine) -> ExportResult:
        """Write the weights, and read them back if that was never done; all ranks call it."""
        if not self._was_read_back(engine):
            return self._write_and_read_back(engine)
        state = engine.full_state_dict(only_trained=self.format != "full")
        if state is not None:
            write_weights(engine.module, state, self.weights_dir, self.format)
        return ExportResult()

    def _was_read_back(self, engine: DeepSpeedEngine) -> bool:
        return bool(broadcast_object(self.check_file.is_file(), engine.device))

    def _write_and_read_back(self, engine: DeepSpeedEngine) -> ExportResult:
        began = time.perf_counter()
        row = first_pack_row(self.packs_dir)
        expected_TV = (
            None if self.is_quantized else compute_logits(engine, row, self.hf_config, self.attn_implementation)
        )
        state = engine.full_state_dict(only_trained=self.format != "full")
        problem = ""
        if state is not None:
            try:
                written = write_weights(engine.module, state, self.weights_dir, self.format)
                found = read_back(self.weights_dir, self.base_dir, self.format == "adapter", written, row, expected_TV)
                problem = found.problem
                self._note(found, began)
            # Whatever it is: the other ranks wait for the answer, and another attempt would end the same way.
            except Exception as error:
                logger.exception("the export failed")
                problem = f"it can't be written and loaded: {' '.join(str(error).split())[:500]}"
        problem = broadcast_object(problem, engine.device)
        return ExportResult(f"the exported model ({self.format}) is not the trained one: {problem}" if problem else "")

    def _note(self, found: ReadBackResult, began: float) -> None:
        if not found.problem:
            seconds = round(time.perf_counter() - began, 1)
            atomic_write_json(
                self.check_file, {"form": self.format, **found.model_dump(exclude={"problem"}), "seconds": seconds}
            )
