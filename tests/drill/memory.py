"""A worker that runs out of memory in every attempt."""

from instruct_ray.run.folder import RunFolder
from tests.drill.harness import CaseResult, DrillHarness


def run_out_of_memory(harness: DrillHarness) -> CaseResult:
    """The run is retried `train.max_failures` times, and then fails with advice."""
    config = harness.prepare_run("memory", max_failures=1)
    harness.arm_faults("out_of_memory")
    message = ""
    with harness.monitor(config) as monitor:
        try:
            harness.train(config)
        except RuntimeError as error:
            message = str(error)
    harness.disarm_fault("out_of_memory")
    assert "a worker ran out of memory: lower data.pack_tokens" in message, message
    assert not RunFolder.from_config(config).model_dir.exists()
    result = harness.measure(config, monitor)
    # Two attempts, each up to its first checkpoint.
    assert 16 <= result.num_executed <= 2 * result.num_planned, result.num_executed
    return CaseResult(note=f"2 attempts, then: {message.split(':')[1].strip()}")
