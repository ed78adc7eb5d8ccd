"""driver: writes into an exported folder what other programs read, which don't know the contract.

transformers, vLLM and others stop at the `eos_token_id` of `generation_config.json`, or else of `config.json`, and take
the tokenizer's `eos_token` for the end of an answer. A base model's own is often another token than the one that its
chat template ends answers with, which is what the model was tuned to stop at.
"""

import json
from pathlib import Path
from typing import Any

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.rendering.contract import PromptContract, compute_tokenizer_digest
from instruct_ray.files import atomic_write_json

CONFIG_FILE, GENERATION_CONFIG_FILE = "config.json", "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def remove_code_references(folder: Path) -> None:
    """Remove `auto_map`, with which a base model names its own Python code for programs without its architecture.

    The code is not exported, and the registry refuses a folder that asks for it.
    """
    for file in (folder / CONFIG_FILE, folder / TOKENIZER_CONFIG_FILE):
        values = _read(file) if file.is_file() else {}
        if "auto_map" in values:
            atomic_write_json(file, {key: value for key, value in values.items() if key != "auto_map"})


def write_stop_token(folder: Path, contract: PromptContract) -> str | None:
    """Make the contract's stop token the end of an answer for all readers of a folder.

    Returns:
        The eos token that the tokenizer had, if that changed; the chat template may write it.
    """
    stop = contract.stop_token_id
    config_file = folder / CONFIG_FILE
    if config_file.is_file():
        config = _read(config_file)
        for values in (config, config.get("text_config")):
            if isinstance(values, dict):
                values["eos_token_id"] = stop
        atomic_write_json(config_file, config)
    generation_file = folder / GENERATION_CONFIG_FILE
    generation_config = _read(generation_file) if generation_file.is_file() else {}
    generation_config.setdefault("pad_token_id", contract.pad_token_id)
    atomic_write_json(generation_file, generation_config | {"eos_token_id": stop})
    return _write_tokenizer_eos(folder, contract)


def _write_tokenizer_eos(folder: Path, contract: PromptContract) -> str | None:
    """Change the tokenizer's eos token, unless that would change which tokens a text becomes."""
    tokenizer = load_tokenizer(folder)
    before, stop_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(contract.stop_token_id)
    config_file = folder / TOKENIZER_CONFIG_FILE
    if before == stop_token or not config_file.is_file():
        return None
    files = {file: _read(file) for file in (config_file, folder / "special_tokens_map.json") if file.is_file()}
    for file, values in files.items():
        atomic_write_json(file, values | {"eos_token": stop_token})
    if compute_tokenizer_digest(load_tokenizer(folder)) != contract.tokenizer_digest:
        for file, values in files.items():
            atomic_write_json(file, values)
        return None
    return str(before) if before is not None else None


def write_older_keys(folder: Path) -> None:
    """Add to `config.json` the keys that transformers 4 and programs built on it read, if it has newer ones.

    transformers 5 writes `rope_parameters` and `dtype` only; without `rope_theta` and `rope_scaling` other readers
    silently compute positions with a base of 10,000. transformers 5 must read the same as before.
    """
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        return
    original, before = _read(config_file), load_hf_config(folder).to_dict()
    config = json.loads(json.dumps(original))
    for values in (config, config.get("text_config")):
        if isinstance(values, dict):
            for key, value in _older_keys(values).items():
                values.setdefault(key, value)
    atomic_write_json(config_file, config)
    if not _says_the_same(load_hf_config(folder).to_dict(), before):
        atomic_write_json(config_file, original)


def _older_keys(config: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    rope = config.get("rope_parameters") or {}
    # Models with windows in some layers have one set of parameters for each type of layer.
    if isinstance(local := rope.get("sliding_attention"), dict) and "rope_theta" in local:
        keys["rope_local_base_freq"] = local["rope_theta"]
    main = rope["full_attention"] if isinstance(rope.get("full_attention"), dict) else rope
    if "rope_theta" not in main:
        return keys
    keys["rope_theta"] = main["rope_theta"]
    if "partial_rotary_factor" in main:
        keys["partial_rotary_factor"] = main["partial_rotary_factor"]
    if main.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in main.items() if key != "rope_theta"}
    return keys


def _says_the_same(config: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a config has all values of another one; further keys are those that its reader does not know."""
    return all(
        _says_the_same(config[key], value)
        if isinstance(value, dict) and isinstance(config.get(key), dict)
        else config.get(key) == value
        for key, value in before.items()
    )


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text())
    return values
