"""One look at a model folder before anything starts: whether it can be loaded, and whether its parts fit together.

Weights are not read. Their names and shapes are compared with the configuration by transformers itself, which loads the
model onto the meta device.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from instruct_ray.base_model.causal_lm import causal_lm_class
from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.base_model.weight_files import StoredTensor, check_no_lfs_pointer, read_header, read_stored_tensors
from instruct_ray.errors import InputError, one_line

CONFIG = "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The types of weights that are not quantized, as safetensors names them.
FLOAT_TYPES = {"BF16", "F16", "F32", "F64"}
MAX_ERROR_CHARACTERS = 300


def check_model_folder(folder: Path) -> None:
    """Check configuration, weights and tokenizer of a full model, not of an adapter.

    Raises:
        InputError: the model can't be loaded, or not completely. Says why, and what to do.
    """
    hf_config = check_config(folder)
    stored = read_stored_tensors(folder)
    _check_not_quantized(folder, stored)
    num_rows = _check_weights(folder, hf_config, stored)
    _check_vocabulary(folder, load_tokenizer(folder), num_rows)


def check_adapter_folder(folder: Path) -> None:
    """Check the weights of an adapter and the tokenizer beside them; its base model is checked like any other.

    Raises:
        InputError: a file is missing or can't be loaded.
    """
    read_header(folder / ADAPTER_WEIGHTS)
    load_tokenizer(folder)


def check_config(folder: Path) -> Any:
    """Check a model's configuration; returns it as transformers' `PreTrainedConfig`.

    Raises:
        InputError: it can't be used: another architecture, code of its own, quantized weights, or wrong values.
    """
    file = folder / CONFIG
    values = _read_config(file)
    _check_architecture(file, values)
    for section in (values, values.get("text_config")):
        if isinstance(section, dict) and (quantization := section.get("quantization_config")):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise InputError(
                f"{file}: the weights are quantized ({method}), and quantized weights can't be trained; give the model "
                "with its original weights, and set model.lora.quantize to train it in 4 bits"
            )
    try:
        with _no_messages():
            hf_config = load_hf_config(folder)
    # The classes of transformers raise what they like on wrong values.
    except Exception as error:
        raise InputError(f"{file} can't be used: {one_line(error, MAX_ERROR_CHARACTERS)}") from None
    causal_lm_class(hf_config)
    _check_pad_id(file, hf_config)
    return hf_config


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file.parent} has no {CONFIG}; give a Hugging Face model folder")
    check_no_lfs_pointer(file)
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is not the configuration of a model: no JSON object")
    return values


def _check_architecture(file: Path, values: dict[str, Any]) -> None:
    model_type = values.get("model_type")
    # A model that came with code of its own before transformers had it keeps its auto_map.
    if model_type in CONFIG_MAPPING:
        return
    if values.get("auto_map"):
        raise InputError(
            f"{file}: the model needs Python code of its own (auto_map), which is never run; use a model that "
            "transformers implements"
        )
    known = f"transformers {transformers.__version__}"
    raise InputError(
        f"{file}: {known} has no architecture {model_type!r}; use another model, or a version that knows it"
        if model_type
        else f"{file} names no model_type; give the folder of a Hugging Face model"
    )


def _check_pad_id(file: Path, hf_config: Any) -> None:
    """The embedding layer can't be built with a padding row that it doesn't have."""
    for config in (hf_config, hf_config.get_text_config()):
        values = config.to_dict()
        pad_id, num_tokens = values.get("pad_token_id"), values.get("vocab_size")
        if pad_id is not None and num_tokens is not None and not -num_tokens <= pad_id < num_tokens:
            raise InputError(
                f"{file}: pad_token_id {pad_id} is not in the vocabulary of {num_tokens} tokens (vocab_size); set it "
                "to the id of a token that there is, or to null"
            )


def _check_not_quantized(folder: Path, stored: dict[str, StoredTensor]) -> None:
    for name, tensor in stored.items():
        if name.endswith(".weight") and len(tensor.shape) > 1 and tensor.dtype not in FLOAT_TYPES:
            raise InputError(
                f"{tensor.file}: {name} is quantized ({tensor.dtype}), and quantized weights can't be trained; give "
                "the model with its original weights"
            )


def _check_weights(folder: Path, hf_config: Any, stored: dict[str, StoredTensor]) -> int:
    """Check that the files hold all weights of the model, in its shapes; returns the rows of the input embedding."""
    try:
        with _no_messages():
            model, info = causal_lm_class(hf_config).from_pretrained(
                None,
                config=hf_config,
                state_dict={name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()},
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    # Building any architecture from any values.
    except Exception as error:
        raise InputError(
            f"{folder}: {hf_config.model_type} can't be built from {CONFIG}: {one_line(error, MAX_ERROR_CHARACTERS)}"
        ) from None
    if mismatched := sorted(info["mismatched_keys"]):
        name, in_file, in_config = mismatched[0]
        raise InputError(
            f"{folder}: the weights don't fit {CONFIG}: {name} has the shape {list(in_file)} in the files, "
            f"{list(in_config)} by {CONFIG} ({len(mismatched)} such weights); use files that belong together"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{folder}: the files lack {missing[0]} ({len(missing)} missing weights in total), which {CONFIG} asks "
            "for; transformers would fill in random numbers. Use files that belong together"
        )
    return int(model.get_input_embeddings().weight.shape[0])


def _check_vocabulary(folder: Path, tokenizer: Any, num_rows: int) -> None:
    """Check that each token that a text, the template or padding can contain has a row in the embedding.

    Special tokens that are never used may lie past its end (Gemma 3's image token).
    """
    outside = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id >= num_rows}
    is_special = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    templates = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    needed = [token for token in outside if not is_special.get(token) or token in used or token in templates]
    if needed:
        raise InputError(
            f"{folder}: the tokenizer has more tokens than the model: {needed[0]!r} is {outside[needed[0]]}, the "
            f"embedding has {num_rows} rows ({len(needed)} such tokens); use the model's own tokenizer, or add the "
            "rows with resize_token_embeddings"
        )


@contextmanager
def _no_messages() -> Iterator[None]:
    """Silence transformers' progress bar and its report about weights, inside the block."""
    verbosity, had_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
