"""driver: runs the train loop on Ray Train's workers, and returns their outcome."""

from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from instruct_ray.config.train import TrainConfig
from instruct_ray.run.folder import RunFolder
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.training.capacity.placement import worker_resources
from instruct_ray.training.driver.failures import format_failure
from instruct_ray.training.driver.ray_train_env import ray_train_timeouts
from instruct_ray.training.driver.worker_failures import WorkerFailureCallback
from instruct_ray.training.validation.task import EvalFn
from instruct_ray.training.worker.loop import train_loop_per_worker
from instruct_ray.training.worker.outcome import TrainOutcome
from instruct_ray.training.worker.spec import WorkerSpec

# The function that Ray Train runs on every worker. Its argument holds `worker_spec` and `eval_fn`.
TrainLoop = Callable[[dict[str, Any]], TrainOutcome]


def run_ray_train(
    train: TrainConfig,
    folder: RunFolder,
    spec: WorkerSpec,
    eval_fn: EvalFn | None = None,
    loop: TrainLoop = train_loop_per_worker,
) -> TrainOutcome:
    """Run `loop` on the workers of a run until it returns on all of them. All are restarted when one fails.

    Raises:
        RuntimeError: workers failed more than `train.max_failures` times.
    """
    trainer = TorchTrainer(
        loop,
        train_loop_config={"worker_spec": spec.model_dump(mode="json"), "eval_fn": eval_fn},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=worker_resources(train),
            label_selector=train.label_selector or None,
        ),
        run_config=ray.train.RunConfig(
            # Ray Train gets a folder for its own files. It is not told of checkpoints: the workers write and load them.
            name=folder.ray_train_dir.name,
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[WorkerFailureCallback(spec.events_file, spec.lock)],
            worker_runtime_env=worker_runtime_env(use_gpu=train.use_gpu),
        ),
    )
    try:
        with ray_train_timeouts(train):
            outcome: TrainOutcome = trainer.fit().return_value
    except TrainingFailedError as error:
        # Its text has the tracebacks of the workers; the driver's own says nothing.
        raise RuntimeError(f"training failed: {format_failure(error)}") from None
    return outcome
