"""Loads causal language models from folders, and chooses their attention implementation, for training and inference.

Only packs are computed with another one (training/model/requirements.py).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.errors import InputError


def causal_lm_class(hf_config: Any) -> Any:
    """Return the class of transformers that implements a model.

    Raises:
        InputError: it is not a causal language model.
    """
    if type(hf_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model.base: {hf_config.model_type} is not a causal language model of transformers")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)]


def default_attn_implementation(hf_config: Any) -> str:
    """The attention implementation of a model, except for packs: sdpa if its architecture declares it, else eager.

    SDPA has no softcapping (Gemma 2) and no attention sinks (GPT-OSS), and some older architectures have attention of
    their own only (GPT-J, Bloom).
    """
    return "sdpa" if causal_lm_class(hf_config)._supports_sdpa else "eager"


def takes_registered_attention(hf_config: Any) -> bool:
    """Whether a model takes the attention that is registered with transformers under a name.

    Some architectures don't declare it and do (StableLM); some have a list of their own (Falcon).
    """
    model_class = causal_lm_class(hf_config)
    module = sys.modules[model_class.__module__]
    return bool(model_class._supports_attention_backend) or "ALL_ATTENTION_FUNCTIONS" in vars(module)


def load_causal_lm(model_dir: Path, dtype: torch.dtype | str, **options: Any) -> Any:
    """Load a model folder: safetensors only, no code from the folder.

    Args:
        model_dir: a Hugging Face folder.
        dtype: precision of the weights; "auto" is the one they were saved in.
        options: further arguments of `from_pretrained`, such as a changed `config` or an `attn_implementation`; without
            one it is `default_attn_implementation`.

    Returns:
        The `PreTrainedModel`; with `output_loading_info` a tuple, as `from_pretrained` does.

    Raises:
        InputError: it is not a causal language model.
    """
    config = options.pop("config", None) or load_hf_config(model_dir)
    attn_implementation = options.pop("attn_implementation", None) or default_attn_implementation(config)
    return AutoModelForCausalLM.from_pretrained(
        model_dir,
        config=config,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        attn_implementation=attn_implementation,
        **options,
    )
