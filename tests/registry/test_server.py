"""Registering a run over HTTP, on a real MLflow server."""

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
from tests.fakes import ignore_status
from tests.mlflow_server import MlflowServer


@pytest.fixture
def server_uri(tmp_path: Path) -> Iterator[str]:
    """An MLflow server that proxies artifacts; yields its URI."""
    server = MlflowServer(tmp_path)
    server.start()
    yield server.uri
    server.kill()


def test_run_is_registered_on_a_server(
    server_uri: str, make_config: Callable[..., Config], base_folder: Path, tmp_path: Path
) -> None:
    config = make_config(registry={"uri": server_uri})
    folder = RunFolder.from_config(config)
    atomic_write_text(folder.metrics_file, json.dumps({"step": 1, "loss": 2.5, "lr": 1e-3, "time": 1.5e9}) + "\n")
    tracked = TrackedRun(config, ignore_status)
    tracked.start()
    assert tracked.finish("FINISHED")
    contract = derive_renderer(base_folder, None).contract
    contract.save(folder.model_dir / "contract.json")
    metadata = dict.fromkeys(("base", "base_digest", "packs_digest", "form"), "x")
    metadata |= {"mlflow_run_id": tracked.id, "contract_digest": contract.digest}
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, metadata)
    atomic_write_text(folder.model_dir / "model.safetensors", "weights")
    atomic_write_json(folder.evidence_file, {"arms": {"tuned": {"accuracy": 0.9}}})

    registration = register(config, ignore_status)
    version = registration.version
    assert (version.number, registration.already_done) == ("1", False)
    registry = ModelRegistry(server_uri)
    model_dir = registry.download(registry.resolve("models:/tiny@champion"), tmp_path / "downloaded")
    assert (model_dir / "model.safetensors").read_text() == "weights"
    assert (model_dir / "evidence.json").is_file()
    metrics = registry.client.get_run(tracked.id).data.metrics
    assert metrics == {"loss": 2.5, "lr": 1e-3, "tuned.accuracy": 0.9}

    assert json.loads(registry.read_file(version, "lineage.json"))["mlflow_run_id"] == tracked.id
    assert [(one.kind, one.to_version) for one in registry.history("tiny").decisions] == [("gate", "1")]

    # Replace the contract of the registered version: its files no longer match its manifest.
    derive_renderer(base_folder, "another system prompt").contract.save(folder.model_dir / "contract.json")
    registry.client.log_model_artifact(
        registry.client.get_model_version("tiny", "1").source.removeprefix("models:/"),
        str(folder.model_dir / "contract.json"),
    )
    with pytest.raises(InputError, match=r"tiny/1: contract\.json was changed"):
        registry.download(registry.resolve("models:/tiny/1"), tmp_path / "swapped")
