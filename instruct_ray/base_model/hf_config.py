"""The transformers configuration of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

# Under which names the configs of transformers give the maximum length.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length")
# For models without a maximum, such as recurrent ones: bounds what one request may cost.
UNLIMITED_CONTEXT = 32_768


def load_hf_config(model_dir: Path) -> Any:
    """Load a model folder's `PreTrainedConfig`; every call returns a new object, which the caller may change.

    No code from the folder is run.
    """
    return AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)


def context_length(hf_config: Any) -> int:
    """Maximum number of tokens of prompt and completion together."""
    settings = hf_config.get_text_config().to_dict()
    lengths = [settings[name] for name in CONTEXT_KEYS if settings.get(name)]
    return int(lengths[0]) if lengths else UNLIMITED_CONTEXT


def max_positions(hf_config: Any) -> int | None:
    """Return the most tokens that a model with a table of positions can read, such as GPT-2 or OPT.

    None for models that compute positions (RoPE, ALiBi): those can read more than they were trained on.
    """
    settings = hf_config.get_text_config(decoder=True)
    # A property of the class for some models, so not a key of `to_dict`.
    if not hasattr(settings, "max_position_embeddings") or hasattr(settings, "rope_parameters"):
        return None
    return int(settings.max_position_embeddings)
