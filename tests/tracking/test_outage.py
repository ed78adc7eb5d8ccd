"""A training run whose tracking server hangs: it is not slower, does not fail, and its metrics are uploaded later."""

import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking import tracked_run
from instruct_ray.tracking.tracked_run import load_tracking_record
from instruct_ray.training.driver.tune import tune
from tests.fakes import fail_if_ray_starts, ignore_status, ray_is_running
from tests.mlflow_server import MlflowServer

NUM_STEPS_BEFORE = 60


@pytest.mark.usefixtures("ray_4_cpus")
@pytest.mark.faults
def test_training_continues_while_the_server_hangs(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracked_run, "FINISH_SECONDS", 3.0)
    server = MlflowServer(tmp_path)
    server.start()
    train = {"epochs": 30, "examples_per_step": 12, "learning_rate": 1e-3, "num_workers": 1, "zero_stage": 1}
    config = make_config(registry={"uri": server.uri}, train=train)
    folder = RunFolder.from_config(config)
    prepare(config, ray_is_running)

    def pause_server_after_some_steps() -> None:
        while not folder.metrics_file.exists() or len(folder.metrics_file.read_text().splitlines()) < NUM_STEPS_BEFORE:
            time.sleep(0.01)
        server.pause()

    threading.Thread(target=pause_server_after_some_steps, daemon=True).start()
    statuses: list[str] = []
    tune(config, statuses.append, ray_is_running)
    assert "tracking is incomplete" in caplog.text
    assert (folder.model_dir / "model.safetensors").is_file()
    assert not load_tracking_record(config).is_uploaded
    assert any("target tokens/s)  data wait" in status for status in statuses)

    server.resume()
    # Tuning the finished run again uploads what is missing.
    assert tune(config, ignore_status, fail_if_ray_starts).already_done
    assert load_tracking_record(config).is_uploaded
    client, run_id = mlflow.MlflowClient(server.uri), load_tracking_record(config).run_id
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert len(seconds) >= 2 * NUM_STEPS_BEFORE
    # The first steps warm up. The limit is far below the time of a hanging request, and far above noise.
    median_before = statistics.median(seconds[10:NUM_STEPS_BEFORE])
    assert statistics.median(seconds[NUM_STEPS_BEFORE:]) <= 1.5 * median_before
    for key in ("loss", "lr", "seconds"):
        points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.step)
        assert [(point.step, point.value) for point in points] == [(line["step"], line[key]) for line in lines]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_metric_history(run_id, "system/node_0/system_memory_usage_percentage")
    server.kill()
