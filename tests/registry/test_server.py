"""Registering over HTTP, with a real MLflow server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruct_ray import run
from instruct_ray.config import Config
from instruct_ray.data.rendering.templates import make_renderer
from instruct_ray.errors import InputError
from instruct_ray.registry.register import register
from instruct_ray.registry.versions import Registry
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
    folder = run.RunFolder.of(config)
    run.write_text(folder.metrics, json.dumps({"step": 1, "loss": 2.5, "lr": 1e-3, "time": 1.5e9}) + "\n")
    tracked = TrackedRun(config, say_nothing)
    tracked.start()
    assert tracked.finish("FINISHED")
    names = ("base", "base_digest", "packs_digest", "form")
    contract = make_renderer(base_folder, None).contract
    contract.save(folder.model / "contract.json")
    ids = {"mlflow_run_id": tracked.id, "contract_digest": contract.digest}
    run.write_json(folder.model / run.MODEL_RECORD, dict.fromkeys(names, "x") | ids)
    run.write_text(folder.model / "model.safetensors", "weights")
    run.write_json(folder.evidence, {"arms": {"tuned": {"accuracy": 0.9}}})

    version, already_done = register(config, say_nothing)
    assert (version.number, already_done) == ("1", False)
    registry = Registry(server)
    files = registry.download(registry.resolve("models:/tiny@champion"), tmp_path / "downloaded")
    assert (files / "model.safetensors").read_text() == "weights"
    assert (files / "evidence.json").is_file()
    metrics = registry.client.get_run(tracked.id).data.metrics
    assert metrics == {"loss": 2.5, "lr": 1e-3, "tuned.accuracy": 0.9}

    make_renderer(base_folder, "another system prompt").contract.save(folder.model / "contract.json")
    registry.client.log_model_artifact(
        registry.client.get_model_version("tiny", "1").source.removeprefix("models:/"),
        str(folder.model / "contract.json"),
    )
    with pytest.raises(InputError, match="files follow contract"):
        registry.download(registry.resolve("models:/tiny/1"), tmp_path / "swapped")
