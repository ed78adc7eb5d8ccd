"""Loads model folders for inference: safetensors only, no code from the folder, adapters merged into their base."""

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.base_model.check import check_adapter_folder, check_model_folder
from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.base_model.digest import folder_digest
from instruct_ray.base_model.info import ADAPTER_CONFIG
from instruct_ray.errors import InputError
from instruct_ray.files import sha256_file
from instruct_ray.run.folder import CONTRACT_FILE, MODEL_METADATA_FILE

# Besides the weights, the files that decide what a model generates.
CONFIG_FILES = (CONTRACT_FILE, "config.json", "generation_config.json")


def load_for_inference(model_dir: Path) -> PreTrainedModel:
    """Load a model or a merged adapter onto the GPU if there is one, in the precision it was saved in.

    A bf16 model is computed in fp32 on a CPU that is slow in bf16. Its weights are the same numbers.

    Raises:
        InputError: the base model of the adapter was moved or changed since the adapter was trained.
    """
    is_adapter = (model_dir / ADAPTER_CONFIG).is_file()
    model: PreTrainedModel = load_merged(model_dir) if is_adapter else load_causal_lm(model_dir, "auto")
    if torch.cuda.is_available():
        return model.eval().to("cuda")
    if model.dtype == torch.bfloat16 and not is_bf16_fast():
        model = model.float()
    return model.eval()


def check_loadable(model_dir: Path) -> None:
    """Check, without reading weights, that a model or an adapter and its base model are complete.

    Raises:
        InputError: they are not. Says why.
    """
    base_dir = find_adapter_base(model_dir)
    if base_dir is None:
        check_model_folder(model_dir)
    else:
        check_adapter_folder(model_dir)
        check_model_folder(base_dir)


def load_merged(adapter_dir: Path) -> PreTrainedModel:
    """Load an adapter merged into its base model, on the CPU, in the precision of the base model.

    Raises:
        InputError: the folder holds no adapter, or its base model was moved or changed since the adapter was trained.
    """
    base_dir = find_adapter_base(adapter_dir)
    if base_dir is None:
        raise InputError(f"{adapter_dir} is not an adapter folder: it has no {ADAPTER_CONFIG}")
    check_base_unchanged(adapter_dir, base_dir)
    base = load_causal_lm(base_dir, "auto")
    merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter_dir), torch_device="cpu").merge_and_unload()
    return merged


def find_adapter_base(model_dir: Path) -> Path | None:
    """Return the base model folder of an adapter folder, or None for a full model.

    Raises:
        InputError: the base model is not where it was when the adapter was trained.
    """
    adapter_config = model_dir / ADAPTER_CONFIG
    if not adapter_config.is_file():
        return None
    base_dir = Path(json.loads(adapter_config.read_text())["base_model_name_or_path"])
    if not base_dir.is_dir():
        raise InputError(f"{model_dir}: the adapter's base model is expected in {base_dir}, which does not exist here")
    return base_dir


def model_digest(model_dir: Path) -> str:
    """Compute the sha256 of everything that decides what a model generates.

    This covers the weights, the contract and the configuration. For an adapter it also covers the digest of the base
    model, but not the path of the base model.

    Raises:
        InputError: the folder holds no safetensors, or the base model of the adapter is missing.
    """
    weights = sorted(model_dir.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{model_dir}: no model here (no safetensors)")
    files = [*weights, *(model_dir / name for name in CONFIG_FILES)]
    content: list[object] = [[file.name, sha256_file(file)] for file in files if file.is_file()]
    if find_adapter_base(model_dir) is not None:
        adapter_config = json.loads((model_dir / ADAPTER_CONFIG).read_text())
        adapter_config.pop("base_model_name_or_path")
        metadata = json.loads((model_dir / MODEL_METADATA_FILE).read_text())
        content += [adapter_config, metadata["base_digest"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_base_unchanged(adapter_dir: Path, base_dir: Path) -> None:
    """Check that the base model of an adapter is the one that the adapter was trained on.

    Raises:
        InputError: it was changed since.
    """
    metadata_file = adapter_dir / MODEL_METADATA_FILE
    # During an export the metadata is not written yet, and the base model has just been read.
    if not metadata_file.is_file():
        return
    expected = json.loads(metadata_file.read_text())["base_folder_digest"]
    actual = folder_digest(base_dir)
    if actual != expected:
        raise InputError(
            f"{adapter_dir}: the adapter was trained on {expected[:12]}, its base {base_dir} now holds {actual[:12]}"
        )
