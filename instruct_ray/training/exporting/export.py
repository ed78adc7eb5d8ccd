"""Trained shards -> a Hugging Face folder that plain transformers or peft loads; read back before hours are spent."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instruct_ray.config import LoraConfig
from instruct_ray.data.rendering.contract import Contract
from instruct_ray.inference.loading import load_merged
from instruct_ray.run import write_json
from instruct_ray.training.exporting.round_trip import ReadBack, logits_of, read_back, sample_row
from instruct_ray.training.ranks import from_rank_0
from instruct_ray.training.zero import ZeroEngine

logger = logging.getLogger(__name__)
Form = Literal["full", "adapter", "merged"]


def form_of(lora: LoraConfig | None) -> Form:
    """What a run leaves: all weights, an adapter, or its base with the adapter merged into it."""
    if lora is None:
        return "full"
    return "merged" if lora.merge else "adapter"


@dataclass(frozen=True)
class Exporter:
    """Writes the weights of a run. The first time they are read back: by the first checkpoint, hours may lie ahead."""

    base: Path
    packs: Path
    weights: Path
    """Where rank 0 leaves them."""
    record: Path
    """Exists once they were read back as they should be."""
    form: Form
    implementation: str
    """The attention implementation that training uses."""
    is_quantized: bool
    """Whether the base is in 4 bits in training: whoever loads the folder with a plain one gets other answers."""
    rank: int

    def rehearse(self, engine: ZeroEngine) -> str:
        """Write, read back and remove the weights, once in a run; all ranks call it. Returns what is wrong, or
        nothing."""
        if self._was_read_back(engine):
            return ""
        problem = self._write_and_read_back(engine)
        if self.rank == 0:
            shutil.rmtree(self.weights, ignore_errors=True)
        return problem

    def export(self, engine: ZeroEngine) -> str:
        """Write the weights, and read them back if that was never done; all ranks call it. Returns what is wrong, or
        nothing."""
        if not self._was_read_back(engine):
            return self._write_and_read_back(engine)
        state = engine.full_state_dict(only_trained=self.form != "full")
        if state is not None:
            write_weights(engine.engine.module, state, self.weights, self.form)
        return ""

    def _was_read_back(self, engine: ZeroEngine) -> bool:
        return bool(from_rank_0(self.record.is_file(), engine.device))

    def _write_and_read_back(self, engine: ZeroEngine) -> str:
        began = time.perf_counter()
        row = sample_row(self.packs)
        expected_TV = None if self.is_quantized else logits_of(engine, row, self.base, self.implementation)
        state = engine.full_state_dict(only_trained=self.form != "full")
        problem = ""
        if state is not None:
            try:
                written = write_weights(engine.engine.module, state, self.weights, self.form)
                found = read_back(self.weights, self.base, self.form == "adapter", written, row, expected_TV)
                problem = found.problem
                self._note(found, began)
            # Whatever it is: the other ranks wait for the answer, and another attempt would end the same way.
            except Exception as error:
                logger.exception("the export failed")
                problem = f"it can't be written and loaded: {' '.join(str(error).split())[:500]}"
        problem = from_rank_0(problem, engine.device)
        return f"the exported model ({self.form}) is not the trained one: {problem}" if problem else ""

    def _note(self, found: ReadBack, began: float) -> None:
        if not found.problem:
            seconds = round(time.perf_counter() - began, 1)
            write_json(self.record, {"form": self.form, **found.model_dump(exclude={"problem"}), "seconds": seconds})


def write_weights(model: Any, state: dict[str, Tensor], folder: Path, form: Form) -> dict[str, Tensor]:
    """Write gathered weights as safetensors with their config; returns what whoever loads the folder must find.

    Raises:
        RuntimeError: a tensor came out of the gathering empty.
    """
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise RuntimeError(f"{len(empty)} weights were not gathered, {empty[0]} among them; the model is not exported")
    shutil.rmtree(folder, ignore_errors=True)
    if form == "full":
        model.save_pretrained(folder, state_dict=dict(state))
        return state
    # Embeddings are never trained, and looking at them would not do in a sharded model.
    model.save_pretrained(folder, state_dict=dict(state), save_embedding_layers=False)
    # A form of peft's in which nothing is filled in.
    (folder / "README.md").unlink(missing_ok=True)
    return _merge(folder) if form == "merged" else state


@torch.no_grad()
def _merge(folder: Path) -> dict[str, Tensor]:
    """Replace an adapter by its base with the adapter merged into it; returns the weights."""
    model = load_merged(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    state: dict[str, Tensor] = model.state_dict()
    return state


def complete_model(folder: Path, base: Path, contract_file: Path) -> None:
    """Put beside the weights what a model needs to answer: the base's tokenizer, and the contract."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
        for file in base.glob(pattern):
            shutil.copy(file, folder)
    contract = Contract.load(contract_file)
    contract.save(folder / "contract.json")
    # For whoever loads the model without the contract; a base may come without a template.
    (folder / "chat_template.jinja").write_text(contract.standalone_template)
