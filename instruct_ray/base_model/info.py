"""A resolved base model: where its files are, and the digests that identify it."""

from dataclasses import dataclass
from pathlib import Path

# In the folder of an adapter.
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model on disk."""

    name: str
    """The reference in `model.base`; for a registered version with its number instead of an alias."""
    folder: Path
    """Hugging Face folder with safetensors, configuration and tokenizer."""
    digest: str
    """sha256 over weights, configuration and tokenizer, and over the adapter if there is one."""
    folder_digest: str
    """sha256 of `folder` alone."""
    adapter: Path | None = None
    """Folder of an adapter from an earlier run that training starts from."""

    @property
    def initial_model_dir(self) -> Path:
        """The model before training: the adapter's folder if there is one, else `folder`."""
        return self.adapter or self.folder
