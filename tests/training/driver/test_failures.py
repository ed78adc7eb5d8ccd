"""Messages about failed workers: advice after an out-of-memory error, and the worker that caused a failure."""

import os
import time
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

DEAD_WORKER = WorkerHealthCheckFailedError("Worker 1 is dead.", RayActorError(error_msg="The actor died:\n\tpid=7"))


@pytest.mark.parametrize(
    ("failure", "is_out_of_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (WorkerHealthCheckFailedError("Worker is dead.", OutOfMemoryError("killed")), True),
        (DEAD_WORKER, False),
        (RuntimeError("shape"), False),
    ],
)
def test_out_of_memory_adds_a_hint(failure: Exception, is_out_of_memory: bool) -> None:
    message = format_failure(WorkerGroupError("message of Ray", {0: RuntimeError("collective"), 1: failure}))
    assert "message of Ray" in message
    assert (message.splitlines()[-1] == OOM_HINT) == is_out_of_memory


def test_last_line_is_the_error_of_the_worker_that_failed_first() -> None:
    """The others fail in a collective, when it has left."""
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    failures = {0: torch.distributed.DistBackendError("NCCL"), 1: closed, 2: ValueError("row 3:\nbad"), 3: closed}
    message = format_failure(WorkerGroupError("tracebacks,\nthat of worker 3 last", failures))
    assert message.splitlines()[-1] == "worker 2 failed: row 3: bad"


def test_error_outside_the_workers_keeps_its_text() -> None:
    assert "no room" in format_failure(ControllerError(RuntimeError("no room")))


def test_event_names_the_worker_that_died_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Setting it first makes monkeypatch restore the variable at the end, whatever the callback does.
    monkeypatch.setenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "30")
    monkeypatch.delenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
    events_file = tmp_path / "events.jsonl"
    events = RunEvents(events_file)
    callback = WorkerFailureCallback(events_file, None)
    callback.after_exception(None, {0: RuntimeError("connection reset"), 1: DEAD_WORKER})
    callback.after_exception(None, {1: RuntimeError("x" * 1000), 0: RuntimeError("first")})
    # A thread of the controller writes them.
    messages: list[str] = []
    deadline = time.monotonic() + 10
    while len(messages) < 2 and time.monotonic() < deadline:
        messages += events.read_new()
        time.sleep(0.01)
    death, error = messages
    assert death.startswith("worker 1 failed: The actor died")
    assert "\n" not in death
    assert error == "worker 0 failed: first"
    # Ray reads the variable when it shuts down the other workers.
    assert os.environ[TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S] == "5"
