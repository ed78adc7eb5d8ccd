"""The transformers configuration of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig


def load_hf_config(model_dir: Path) -> Any:
    """Load a model folder's `PreTrainedConfig`; every call returns a new object, which the caller may change."""
    return AutoConfig.from_pretrained(model_dir, local_files_only=True)
