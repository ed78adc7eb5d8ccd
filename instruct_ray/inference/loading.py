"""Model folder -> a loaded model: safetensors only, no code from the folder, adapters merged into their base."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from instruct_ray.errors import InputError


def load_for_inference(folder: Path) -> PreTrainedModel:
    """Load a model folder, or an adapter folder with its base, in the precision it was saved in.

    Raises:
        InputError: the base that the adapter belongs to is not where it was when the adapter was trained.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = Path(json.loads(adapter.read_text())["base_model_name_or_path"])
        if not base.is_dir():
            raise InputError(f"{folder}: the adapter's base model is expected in {base}, which does not exist here")
        model = PeftModel.from_pretrained(_load(base), str(folder)).merge_and_unload()
    else:
        model = _load(folder)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype="auto", attn_implementation="sdpa"
    )
