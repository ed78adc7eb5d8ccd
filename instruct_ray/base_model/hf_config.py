"""The transformers configuration of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig


def load_hf_config(model_dir: Path) -> Any:
    """A model folder's `PreTrainedConfig`, which may be changed: every call reads it anew."""
    return AutoConfig.from_pretrained(model_dir, local_files_only=True)
