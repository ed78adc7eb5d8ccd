"""What becomes of each checkpoint: tasks that are late, fail or are cut off, and a run that is killed in between.

The tasks are real Ray tasks; what they would load and answer is replaced by numbers.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from instruct_ray.config.train import TrainConfig, ValidationConfig
from instruct_ray.training.validation import best_model
from instruct_ray.training.validation import validator as validator_module
from instruct_ray.training.validation.best_model import clean_up, keep_if_best, load_best_result
from instruct_ray.training.validation.results import ValidationResult, read_pending, read_results
from instruct_ray.training.validation.task import EvalFn, ValidationSpec
from instruct_ray.training.validation.validator import Validator

# What the engine of a test is: the tests' loss does not look at it.
ENGINE: Any = None
WEIGHTS = "weights"


class FakeLoss:
    """Stands for the loss of the ranks: the next of some numbers."""

    def __init__(self, losses: dict[int, float]) -> None:
        self._losses = iter(losses.values())
        self.num_computed = 0

    def compute(self, engine: object) -> float:
        self.num_computed += 1
        return next(self._losses)


@pytest.fixture
def single_rank(ray_4_cpus: None) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def make_validator(single_rank: None, tmp_path: Path, events: list[str]) -> Callable[..., Validator]:
    """Makes the validator of one attempt to train; `answer` is what its tasks do once their model is written."""

    def make(losses: dict[int, float], answer: EvalFn | None = None, **settings: Any) -> Validator:
        spec = ValidationSpec(
            base_dir=tmp_path,
            adapter_dir=None,
            contract_file=tmp_path,
            rows_file=tmp_path,
            lora=None,
            train=TrainConfig(),
            validation=ValidationConfig.model_validate({"num_answers": 0 if answer is None else 1, **settings}),
            seed=0,
            validation_dir=tmp_path / "validation",
        )
        loss: Any = FakeLoss(losses)
        validator = Validator(spec, loss, answer, events.append, rank=0, device=torch.device("cpu"))

        def write_and_answer(checkpoint: Path, spec: Any, model_dir: Path, answer: EvalFn | None) -> float | None:
            model_dir.mkdir(parents=True)
            (model_dir / WEIGHTS).write_text(checkpoint.name)
            return None if answer is None else answer(checkpoint)

        validator._remote_validate = ray.remote(write_and_answer)
        return validator

    return make


def validate(validator: Validator, folder: Path, *steps: int) -> list[bool]:
    """Make checkpoints at these steps as training does; returns whether training should have stopped at each."""
    decisions = []
    for step in steps:
        decisions.append(validator.should_stop_early(step))
        (folder / str(step)).mkdir(exist_ok=True)
        validator.start(ENGINE, folder / str(step), step)
    return decisions


def read_best(folder: Path) -> tuple[int, str]:
    """The step of the best result, and of the weights that are kept."""
    best = load_best_result(folder / "validation")
    assert best is not None
    return best.step, (folder / "validation" / best_model.BEST_DIR / WEIGHTS).read_text()


def read_scores(folder: Path) -> dict[int, tuple[float, float | None]]:
    return {result.step: (result.loss, result.accuracy) for result in read_results(folder / "validation")}


def test_task_that_is_given_up_is_cancelled_and_changes_nothing_later(
    make_validator: Callable[..., Validator], tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint, by far the best, is answered only after the second one was chosen."""
    cancelled: list[object] = []
    validator = make_validator({1: 0.1, 2: 0.9}, lambda folder: 1.0, metric="accuracy", max_wait_seconds=0.2)
    late: Future[float | None] = Future()
    done: Future[float | None] = Future()
    done.set_result(0.5)
    tasks, candidates = iter((late, done)), []

    def start_task(checkpoint: Path, spec: Any, model_dir: Path, answer: EvalFn | None) -> Future[float | None]:
        candidates.append(model_dir)
        model_dir.mkdir(parents=True)
        (model_dir / WEIGHTS).write_text(checkpoint.name)
        return next(tasks)

    def cancel(task: object, *, force: bool) -> None:
        assert force, "a task that only gets an exception may go on for long"
        cancelled.append(task)

    fake_ray = SimpleNamespace(
        wait=lambda tasks, timeout: ([task for task in tasks if task.done()], time.sleep(min(timeout, 0.05))),
        get=lambda task: task.result(),
        cancel=cancel,
    )
    monkeypatch.setattr(validator_module, "ray", fake_ray)
    validator._remote_validate = SimpleNamespace(remote=start_task)
    validate(validator, tmp_path, 1, 2)
    assert cancelled == [late]
    assert read_scores(tmp_path) == {1: (0.1, None)}
    validator.finish()
    # The node of the task was cut off: it did not hear of the cancellation, and ends now.
    late.set_result(1.0)
    candidates[0].mkdir(exist_ok=True)
    validator.finish()
    assert read_scores(tmp_path) == {1: (0.1, None), 2: (0.9, 0.5)}
    assert read_best(tmp_path) == (2, "2")
    assert events == [
        "validation of step 1 took longer than train.validation.max_wait_seconds=0.2; training continues without its "
        "answers"
    ]
    clean_up(tmp_path / "validation")
    assert not list((tmp_path / "validation").glob(".*"))


def test_loss_decides_although_the_answers_fail(
    make_validator: Callable[..., Validator], tmp_path: Path, events: list[str]
) -> None:
    def answer(checkpoint: Path) -> float:
        raise ValueError("no answer on purpose")

    validator = make_validator({1: 0.5, 2: 0.3, 3: 0.4}, answer)
    validate(validator, tmp_path, 1, 2, 3)
    validator.finish()
    assert read_scores(tmp_path) == {1: (0.5, None), 2: (0.3, None), 3: (0.4, None)}
    assert read_best(tmp_path) == (2, "2")
    assert events[0] == (
        "validation of step 1 failed: ValueError: no answer on purpose; training continues without its answers"
    )


@pytest.mark.parametrize("killed_after", [None, 1, 2, 3])
def test_killed_run_decides_like_an_uninterrupted_one(
    make_validator: Callable[..., Validator], tmp_path: Path, killed_after: int | None
) -> None:
    """It is killed after the checkpoint of a step, while that is being validated; patience ends at step 4."""
    losses = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.2}
    validator = make_validator(losses, patience=1)
    if killed_after is None:
        assert validate(validator, tmp_path, 1, 2, 3, 4) == [False, False, False, True]
    else:
        assert not any(validate(validator, tmp_path, *range(1, killed_after + 1)))
        pending = read_pending(tmp_path / "validation")
        assert pending is not None
        assert (pending.step, pending.loss) == (killed_after, losses[killed_after])
        # The next attempt loads that checkpoint, whose loss is known.
        later = make_validator({step: losses[step] for step in range(killed_after + 1, 5)}, patience=1)
        checkpoint = tmp_path / str(killed_after)
        assert not later.resume(ENGINE, checkpoint, killed_after, is_due=True, is_end=False)
        steps = range(killed_after + 1, 5)
        assert validate(later, tmp_path, *steps) == [step == 4 for step in steps]
        later.finish()
    scores = read_scores(tmp_path)
    assert {step: scores[step] for step in (1, 2, 3)} == {step: (losses[step], None) for step in (1, 2, 3)}
    assert len((tmp_path / "validation" / "scores.jsonl").read_text().splitlines()) == len(scores)


def test_run_that_was_stopped_at_a_checkpoint_decides_there_when_it_resumes(
    make_validator: Callable[..., Validator], tmp_path: Path
) -> None:
    """A stop saves a checkpoint without waiting for the answers to the one before."""
    validator = make_validator({1: 0.3, 2: 0.4}, patience=1)
    validate(validator, tmp_path, 1, 2)
    (tmp_path / "3").mkdir()
    resumed = make_validator({}, patience=1)
    assert resumed.resume(ENGINE, tmp_path / "3", 3, is_due=True, is_end=False)
    assert read_best(tmp_path) == (1, "1")
    # At the end of the plan there is nothing to stop.
    at_end = make_validator({3: 0.1}, patience=1)
    assert not at_end.resume(ENGINE, tmp_path / "3", 3, is_due=True, is_end=True)
    at_end.finish()
    assert read_best(tmp_path) == (3, "3")


def test_results_of_steps_that_are_trained_again_are_not_computed_again(
    make_validator: Callable[..., Validator], tmp_path: Path
) -> None:
    """The run falls back to an older checkpoint; the model that was the best stays."""
    validator = make_validator({1: 0.5, 2: 0.3, 3: 0.4})
    validate(validator, tmp_path, 1, 2, 3)
    validator.finish()
    again = make_validator({4: 0.6})
    assert not again.resume(ENGINE, tmp_path / "1", 1, is_due=True, is_end=False)
    validate(again, tmp_path, 2, 3, 4)
    again.finish()
    assert list(read_scores(tmp_path)) == [1, 2, 3, 4]
    assert read_best(tmp_path) == (2, "2")


@pytest.mark.parametrize("losses", [(0.5, 0.3), (0.3, 0.5)])
def test_best_model_is_the_best_in_whatever_order_results_arrive(tmp_path: Path, losses: tuple[float, float]) -> None:
    for step, loss in enumerate(losses, start=1):
        candidate = tmp_path / f".candidate-{step}"
        candidate.mkdir()
        (candidate / WEIGHTS).write_text(str(step))
        result = ValidationResult(step=step, loss=loss, accuracy=None)
        assert keep_if_best(tmp_path, candidate, result, ValidationConfig())
    best = load_best_result(tmp_path)
    assert best is not None
    assert best.loss == 0.3
    assert (tmp_path / best_model.BEST_DIR / WEIGHTS).read_text() == str(best.step)
    assert len(list(tmp_path.iterdir())) == 1


def test_best_model_survives_a_kill_while_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".candidate-1").mkdir()
    keep_if_best(
        tmp_path, tmp_path / ".candidate-1", ValidationResult(step=1, loss=1.0, accuracy=None), ValidationConfig()
    )
    # As a kill between the two renames leaves it.
    (tmp_path / ".candidate-2").mkdir()
    (tmp_path / best_model.BEST_DIR).rename(tmp_path / best_model.FORMER_DIR)
    clean_up(tmp_path)
    best = load_best_result(tmp_path)
    assert best is not None
    assert best.step == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_model_that_is_missing_is_said_and_does_not_replace_the_best(tmp_path: Path) -> None:
    result = ValidationResult(step=1, loss=1.0, accuracy=None)
    assert not keep_if_best(tmp_path, tmp_path / ".candidate-1", result, ValidationConfig())
    assert load_best_result(tmp_path) is None
