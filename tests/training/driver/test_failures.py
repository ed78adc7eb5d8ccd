"""What Ray Train gave up on is told with what can be done about it, and so is a worker that failed on the way."""

import os
from pathlib import Path

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from instruct_ray.run.events import RunEvents
from instruct_ray.training.driver.failures import OOM_HINT, format_failure
from instruct_ray.training.driver.worker_failures import WorkerFailureCallback

DEAD = WorkerHealthCheckFailedError("Worker 1 is dead.", RayActorError(error_msg="The actor died:\n\tpid=7"))


@pytest.mark.parametrize(
    ("failure", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (WorkerHealthCheckFailedError("Worker is dead.", OutOfMemoryError("killed")), True),
        (DEAD, False),
        (RuntimeError("shape"), False),
    ],
)
def test_out_of_memory_comes_with_a_hint(failure: Exception, is_memory: bool) -> None:
    text = format_failure(WorkerGroupError("what Ray says", {0: RuntimeError("collective"), 1: failure}))
    assert "what Ray says" in text
    assert text.startswith(OOM_HINT) == is_memory


def test_what_did_not_fail_in_a_worker_is_told_as_it_is() -> None:
    assert "no room" in format_failure(ControllerError(RuntimeError("no room")))


def test_the_worker_that_died_is_named_and_not_those_that_missed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is put back, then that it is not set.
    monkeypatch.setenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "30")
    monkeypatch.delenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
    notices = RunEvents(tmp_path / "notices.jsonl")
    tell = WorkerFailureCallback(tmp_path / "notices.jsonl")
    tell.after_exception(None, {0: RuntimeError("connection reset"), 1: DEAD})
    tell.after_exception(None, {1: RuntimeError("x" * 1000), 0: RuntimeError("first")})
    dead, first = notices.read_new()
    assert dead.startswith("worker 1 failed: The actor died")
    assert "\n" not in dead
    assert first == "worker 0 failed: first"
    # Ray reads it when it ends the others.
    assert os.environ[TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S] == "5"
