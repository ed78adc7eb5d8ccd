"""What a run's metrics say, from the lines of its files, also when it is resumed and trains steps again."""

from typing import Any

from instruct_ray.training.driver.run_metrics import COUNTERS, GAUGES, RunFigures


def make_step(step: int, time: float, **values: Any) -> dict[str, Any]:
    return {
        "step": step, "time": time, "loss": 0.5, "lr": 1e-3, "grad_norm": 2.0, "was_applied": True, "num_tokens": 100,
        "num_trained": 10, "num_computed_tokens": 60, "seconds": 0.4, "wait_seconds": 0.1,
    } | values  # fmt: skip


def make_figures() -> RunFigures:
    return RunFigures(num_steps=10, checkpoint_every=2, started_at=1000.0)


def test_ages_count_from_the_start_before_there_is_anything() -> None:
    values = make_figures().values
    assert values["last_step_timestamp_seconds"] == values["checkpoint_timestamp_seconds"] == 1000.0
    assert values["step"] == values["checkpoint_step"] == values["steps_done_again"] == values["skipped_steps"] == 0


def test_steps_add_up_and_the_last_one_is_shown() -> None:
    figures = make_figures()
    figures.add_step(make_step(1, 1001.0))
    figures.add_step(make_step(2, 1002.0, loss=None, grad_norm=None, was_applied=False, mfu=0.4))
    expected = {
        "steps": 2, "tokens": 200, "target_tokens": 20, "computed_tokens": 120, "step_seconds": 0.8,
        "data_wait_seconds": 0.2,
    }  # fmt: skip
    assert figures.totals == expected and figures.totals.keys() == COUNTERS.keys()
    values = figures.values
    assert (values["step"], values["last_step_timestamp_seconds"], values["skipped_steps"]) == (2, 1002.0, 1)
    # A step without a loss leaves that of the one before.
    assert (values["loss"], values["grad_norm"], values["mfu"]) == (0.5, 2.0, 0.4)
    assert values.keys() <= GAUGES.keys()


def test_restart_reads_lines_again_and_counts_only_new_steps() -> None:
    figures = make_figures()
    lines = [make_step(step, 1000.0 + step) for step in (1, 2, 3, 4)]
    # Workers die after step 4 and resume from step 2: the file is cut, and read from its start.
    resumed = [*lines[:2], *(make_step(step, 1020.0 + step) for step in (3, 4, 5))]
    for line in [*lines, *resumed]:
        figures.add_step(line)
    assert figures.totals["steps"] == 7
    assert (figures.values["step"], figures.values["steps_done_again"]) == (5, 2)


def test_command_that_resumes_counts_nothing_of_the_one_before() -> None:
    figures = make_figures()
    figures.add_checkpoint({"step": 2, "time": 902.0, "save_seconds": 1.0, "commit_seconds": 2.0})
    for line in (make_step(1, 901.0), make_step(2, 902.0), make_step(3, 903.0)):
        figures.add_step(line)
    assert figures.totals["steps"] == 0
    # What it ends with is shown, but it is no sign of life.
    assert (figures.values["step"], figures.values["checkpoint_step"]) == (3, 2)
    assert figures.values["last_step_timestamp_seconds"] == figures.values["checkpoint_timestamp_seconds"] == 1000.0
    figures.add_step(make_step(3, 1010.0))
    figures.add_checkpoint({"step": 4, "time": 1012.0, "save_seconds": 1.5, "commit_seconds": 3.0})
    assert figures.totals["steps"] == figures.values["steps_done_again"] == 1
    assert figures.values.items() >= {
        "checkpoint_step": 4, "checkpoint_timestamp_seconds": 1012.0, "checkpoint_save_seconds": 1.5,
        "checkpoint_commit_seconds": 3.0,
    }.items()  # fmt: skip
