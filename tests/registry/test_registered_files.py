"""The files of a version: what may be in it, and what is refused when it is read."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import sha256_file
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.run.folder import RunFolder
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, make_benchmark, make_evidence, make_run, write_benchmarks


def test_changed_file_is_refused_wherever_a_version_is_read(
    config: Config, registry: ModelRegistry, storage: Path, tmp_path: Path
) -> None:
    version = register(config, ignore_status).version
    [weights] = (storage / "mlartifacts").rglob("model.safetensors")
    weights.write_text("other weights")
    (tmp_path / "copy").mkdir()
    for read in (registry.download, registry.copy, registry.fetch):
        with pytest.raises(InputError, match=r"tiny/1: model\.safetensors was changed"):
            read(version, tmp_path / "copy")
    (weights.parent / "evidence.json").write_text("{}")
    with pytest.raises(InputError, match=r"tiny/1: evidence\.json was changed"):
        registry.read_file(version, "evidence.json")


def test_changed_byte_in_the_cache_is_refused(config: Config, registry: ModelRegistry, tmp_path: Path) -> None:
    version = register(config, ignore_status).version
    folder = registry.fetch(version, tmp_path)
    assert registry.fetch(version, tmp_path) == folder
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError, match=r"tiny-1: tiny/1: model\.safetensors was changed: .*; remove this folder"):
        registry.fetch(version, tmp_path)
    weights.write_bytes(content)
    (folder / "extra.json").write_text("{}")
    with pytest.raises(InputError, match=r"extra\.json is not in the manifest"):
        registry.fetch(version, tmp_path)
    shutil.rmtree(folder)
    registry.fetch(version, tmp_path)


def test_pickle_is_refused_before_anything_is_uploaded(config: Config, registry: ModelRegistry) -> None:
    (RunFolder.from_config(config).model_dir / "optimizer.pt").write_text("x")
    with pytest.raises(InputError, match=r"optimizer\.pt is refused"):
        register(config, ignore_status)
    assert registry.versions(NAME) == []
    experiment = registry.client.get_experiment_by_name(NAME)
    assert experiment is not None
    assert list(registry.client.search_logged_models([experiment.experiment_id])) == []


def test_version_without_manifest_is_read_with_a_warning(
    config: Config, registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, storage: Path
) -> None:
    register(config, ignore_status)
    registry.client.delete_model_version_tag(NAME, "1", "manifest_digest")
    [manifest] = (storage / "mlartifacts").rglob("manifest.json")
    old = registry.get(NAME, "1")
    (tmp_path / "copy").mkdir()
    with pytest.raises(InputError, match="it was removed"):
        registry.download(old, tmp_path / "copy")
    manifest.unlink()
    for path in (tmp_path / "copy").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):
        registry.download(old, tmp_path / "copy")
    assert "models:/tiny/1 was registered without a manifest" in caplog.text


def test_run_without_packs_is_registered_without_rows(storage: Path, registry: ModelRegistry) -> None:
    config = make_run(storage, evidence=make_evidence(comparisons=None))
    [manifest] = RunFolder.from_config(config).packs_dir.glob("*/manifest.json")
    manifest.unlink()
    version = register(config, ignore_status).version
    assert json.loads(registry.read_file(version, "lineage.json"))["packs"] is None
    with pytest.raises(InputError, match=r"tiny/1: it has no rows\.parquet"):
        registry.read_file(version, "rows.parquet")


def test_version_holds_the_benchmarks_and_the_card_shows_them(config: Config, registry: ModelRegistry) -> None:
    path = write_benchmarks(config, mmlu_dev=make_benchmark(-0.01, problem="hard"))
    version = register(config, ignore_status).version
    assert registry.read_file(version, "benchmarks.json") == path.read_bytes()
    assert version.tags["benchmarks_digest"] == sha256_file(path)
    card = registry.read_file(version, "README.md").decode()
    assert "| mmlu_dev | 0.310 | 0.300 | -0.010 [-0.030, +0.010] | 280 |" in card and "* mmlu_dev: hard." in card
    assert "general skill was not measured" not in card
