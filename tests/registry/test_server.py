"""Registering over HTTP, with a real MLflow server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.tracking.tracked_run import TrackedRun
from tests.fakes import say_nothing
from tests.mlflow_server import MlflowServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server that proxies artifacts; yields its URI."""
    server = MlflowServer(tmp_path)
    server.start()
    yield server.uri
    server.kill()


def test_a_run_becomes_a_version_on_a_server(
    server: str, make_config: Callable[..., Config], base_folder: Path, tmp_path: Path
) -> None:
    config = make_config(registry={"uri": server})
    folder = RunFolder.from_config(config)
    atomic_write_text(folder.metrics_file, json.dumps({"step": 1, "loss": 2.5, "lr": 1e-3, "time": 1.5e9}) + "\n")
    tracked = TrackedRun(config, say_nothing)
    tracked.start()
    assert tracked.finish("FINISHED")
    names = ("base", "base_digest", "packs_digest", "form")
    contract = derive_renderer(base_folder, None).contract
    contract.save(folder.model_dir / "contract.json")
    ids = {"mlflow_run_id": tracked.id, "contract_digest": contract.digest}
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, dict.fromkeys(names, "x") | ids)
    atomic_write_text(folder.model_dir / "model.safetensors", "weights")
    atomic_write_json(folder.evidence_file, {"arms": {"tuned": {"accuracy": 0.9}}})

    version, already_done = register(config, say_nothing)
    assert (version.number, already_done) == ("1", False)
    registry = ModelRegistry(server)
    files = registry.download(registry.resolve("models:/tiny@champion"), tmp_path / "downloaded")
    assert (files / "model.safetensors").read_text() == "weights"
    assert (files / "evidence.json").is_file()
    metrics = registry.client.get_run(tracked.id).data.metrics
    assert metrics == {"loss": 2.5, "lr": 1e-3, "tuned.accuracy": 0.9}

    derive_renderer(base_folder, "another system prompt").contract.save(folder.model_dir / "contract.json")
    registry.client.log_model_artifact(
        registry.client.get_model_version("tiny", "1").source.removeprefix("models:/"),
        str(folder.model_dir / "contract.json"),
    )
    with pytest.raises(InputError, match="files follow contract"):
        registry.download(registry.resolve("models:/tiny/1"), tmp_path / "swapped")
