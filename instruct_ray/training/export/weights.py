"""worker, rank 0: writes gathered weights to a Hugging Face folder.

The validation task and the driver write model folders with it too.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.rendering.contract import PromptContract, compute_tokenizer_digest
from instruct_ray.inference.loading import load_merged
from instruct_ray.run.folder import CONTRACT_FILE
from instruct_ray.training.export.formats import ExportFormat
from instruct_ray.training.export.other_readers import remove_code_references, write_older_keys, write_stop_token


def write_weights(model: Any, state: dict[str, Tensor], folder: Path, format: ExportFormat) -> dict[str, Tensor]:
    """Write gathered weights as safetensors, with their config; returns the weights that the folder then holds.

    Raises:
        RuntimeError: a gathered tensor is empty.
    """
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise RuntimeError(f"{len(empty)} weights were not gathered, such as {empty[0]}; the model is not exported")
    shutil.rmtree(folder, ignore_errors=True)
    if format == "full":
        model.save_pretrained(folder, state_dict=dict(state))
        return state
    # Of embeddings at most single rows are trained, which are written either way. peft can't check for
    # other changes in them when the model is sharded.
    model.save_pretrained(folder, state_dict=dict(state), save_embedding_layers=False)
    # peft's template of a model card, not filled in.
    (folder / "README.md").unlink(missing_ok=True)
    return _merge(folder) if format == "merged" else state


@torch.no_grad()
def _merge(folder: Path) -> dict[str, Tensor]:
    """Replace an adapter by its base model with the adapter merged into it; returns the merged weights."""
    model = load_merged(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    state: dict[str, Tensor] = model.state_dict()
    return state


def add_tokenizer_and_contract(folder: Path, base_dir: Path, contract_file: Path) -> None:
    """Add to a folder of weights what else inference needs: the base model's tokenizer, and the contract.

    Programs that don't know the contract find its stop token where they look for one.
    """
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json"):
        for file in base_dir.glob(pattern):
            shutil.copy(file, folder)
    remove_code_references(folder)
    contract = PromptContract.load(contract_file)
    if compute_tokenizer_digest(load_tokenizer(folder)) != contract.tokenizer_digest:
        # Beside a config.json transformers chooses the tokenizer's class by the architecture; an adapter has none.
        load_tokenizer(base_dir).save_pretrained(folder)
    earlier_eos = write_stop_token(folder, contract)
    if earlier_eos is not None:
        contract = replace(contract, template_eos_token=contract.template_eos_token or earlier_eos)
    contract.save(folder / CONTRACT_FILE)
    write_older_keys(folder)
    # For other libraries, which don't read the contract; a base model may have no template.
    (folder / "chat_template.jinja").write_text(contract.standalone_template)
