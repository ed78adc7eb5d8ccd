"""Model folder -> a loaded model: safetensors only, no code from the folder, adapters merged into their base."""

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from instruct_ray.base_model.digest import folder_digest
from instruct_ray.base_model.resolve import ADAPTER_CONFIG
from instruct_ray.errors import InputError
from instruct_ray.run.folder import MODEL_METADATA_FILE

CONTRACT = "contract.json"


def load_for_inference(folder: Path) -> PreTrainedModel:
    """Load a model folder, or an adapter folder with its base, in the precision it was saved in.

    Raises:
        InputError: the base that the adapter belongs to is not where it was when the adapter was trained, or not what
            it was.
    """
    model = load_merged(folder) if (folder / ADAPTER_CONFIG).is_file() else _load(folder)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_merged(folder: Path) -> PreTrainedModel:
    """Load an adapter folder's base with the adapter merged into it, on the CPU, in the precision of the base.

    Raises:
        InputError: the base is not where it was when the adapter was trained, or not what it was.
    """
    base = adapter_base(folder)
    if base is None:
        raise InputError(f"{folder} is no adapter folder: it has no {ADAPTER_CONFIG}")
    _check_unchanged(folder, base)
    return PeftModel.from_pretrained(_load(base), str(folder), torch_device="cpu").merge_and_unload()


def adapter_base(folder: Path) -> Path | None:
    """The base model's folder of an adapter folder; None where it is no adapter.

    Raises:
        InputError: the base is not where it was when the adapter was trained.
    """
    adapter = folder / ADAPTER_CONFIG
    if not adapter.is_file():
        return None
    base = Path(json.loads(adapter.read_text())["base_model_name_or_path"])
    if not base.is_dir():
        raise InputError(f"{folder}: the adapter's base model is expected in {base}, which does not exist here")
    return base


def model_digest(folder: Path) -> str:
    """sha256 over all that decides a model folder's answers: weights, contract, configuration; of an adapter also its
    base's digest, but not where that lies.

    Raises:
        InputError: it holds no safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: no model here (no safetensors)")
    parts: list[object] = []
    for file in [*weights, *(folder / name for name in (CONTRACT, "config.json", "generation_config.json"))]:
        if file.is_file():
            with file.open("rb") as stream:
                parts.append([file.name, hashlib.file_digest(stream, "sha256").hexdigest()])
    if adapter_base(folder) is not None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        config.pop("base_model_name_or_path")
        parts += [config, json.loads((folder / MODEL_METADATA_FILE).read_text())["base_digest"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_unchanged(adapter: Path, base: Path) -> None:
    # What is still being exported has no record yet; its base was read a moment ago.
    record = adapter / MODEL_METADATA_FILE
    if not record.is_file():
        return
    expected, found = json.loads(record.read_text())["base_folder_digest"], folder_digest(base)
    if found != expected:
        raise InputError(
            f"{adapter}: the adapter was trained on {expected[:12]}, its base {base} now holds {found[:12]}"
        )


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype="auto", attn_implementation="sdpa"
    )
