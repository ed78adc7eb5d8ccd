"""worker, rank 0: gathered weights -> a Hugging Face folder on disk."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.loading import load_merged
from instruct_ray.training.export.exporter import ExportFormat


def write_weights(model: Any, state: dict[str, Tensor], folder: Path, form: ExportFormat) -> dict[str, Tensor]:
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


def add_tokenizer_and_contract(folder: Path, base: Path, contract_file: Path) -> None:
    """Put beside the weights what a model needs to answer: the base's tokenizer, and the contract."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
        for file in base.glob(pattern):
            shutil.copy(file, folder)
    contract = PromptContract.load(contract_file)
    contract.save(folder / "contract.json")
    # For whoever loads the model without the contract; a base may come without a template.
    (folder / "chat_template.jinja").write_text(contract.standalone_template)
