"""Connects to a Ray cluster, or starts one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from instruct_ray.config.train import TrainConfig
from instruct_ray.errors import InputError, RunFailedError, exit_on_sigterm
from instruct_ray.run.log_records import RUN_VARIABLE, WORKER_HOOK, name_run

# With fewer CPUs than training workers and data tasks need together, Ray Data would never get one.
MIN_LOCAL_CPUS = 4
# CPUs for Ray Data and validation, in addition to those of the training workers.
EXTRA_CPUS = 2
# Ray's name for a new cluster on this machine.
LOCAL = "local"
# Ray's variable for structured logs: JSON or TEXT.
LOG_VARIABLE, LOG_ENCODINGS = "RAY_LOGGING_CONFIG_ENCODING", ("JSON", "TEXT")
# From the message of the error that Ray raises then.
NODE_TIMED_OUT = "node timed out during startup"


def silence_libraries() -> None:
    """Turn off messages that are known to be harmless. Call it before the libraries are imported."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # The bars of transformers, which in a job's log are lines of control characters. Commands have a status line.
    os.environ["TQDM_DISABLE"] = "1"
    # A filter, since DeepSpeed sets the level of its logger. It warns where there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def names_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster that `init_ray` connects to."""
    return os.environ.get("RAY_ADDRESS", LOCAL) not in ("", LOCAL)


def init_ray(min_cpus: int = MIN_LOCAL_CPUS) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one with at least `min_cpus` logical CPUs.

    Does nothing if already connected. A stage calls it once its input is known to be valid.
    """
    import ray.data  # noqa: PLC0415  (takes seconds, and a bad config is refused before)

    # After the import, since each of them sets its level when it is imported.
    for name in ("ray", "ray.data", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR, **_log_options()}
    if names_cluster():
        # For the Train tab of the cluster's dashboard. A local cluster is started without a dashboard.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        ray.init(**options)
    else:
        # The only node is never preempted, so that process is not needed.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        with _one_line_if_slow():
            # Named, since Ray would join a cluster that was started on this machine.
            ray.init(LOCAL, num_cpus=max(min_cpus, os.cpu_count() or 1), include_dashboard=False, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    exit_on_sigterm()


def _log_options() -> dict[str, Any]:
    """Options of `ray.init` for the log records of the driver and all workers; none without Ray's LOG_VARIABLE."""
    import ray  # noqa: PLC0415  (see init_ray)

    encoding = os.environ.get(LOG_VARIABLE)
    if not encoding:
        return {}
    if encoding not in LOG_ENCODINGS:
        raise InputError(f"{LOG_VARIABLE} is {encoding}; use one of {', '.join(LOG_ENCODINGS)}")
    # By its variable alone Ray would also log all that libraries say about their work.
    config = ray.LoggingConfig(encoding, log_level="WARNING", additional_log_standard_attrs=["name"])
    if RUN_VARIABLE not in os.environ:
        return {"logging_config": config}
    name_run()
    variables = {RUN_VARIABLE: os.environ[RUN_VARIABLE]}
    return {
        "logging_config": config,
        "runtime_env": {"env_vars": variables, "worker_process_setup_hook": WORKER_HOOK},
    }


@contextmanager
def _one_line_if_slow() -> Iterator[None]:
    """Raise what happens on an overloaded machine in one line: Ray gives a local node 30 seconds to start.

    Raises:
        RunFailedError: the node did not start in time.
    """
    try:
        yield
    except Exception as error:  # Ray raises no type of its own
        if NODE_TIMED_OUT not in str(error):
            raise
        raise RunFailedError(
            "Ray did not start in time, which happens on a busy machine; run the command again"
        ) from None


def init_ray_for_training(train: TrainConfig) -> None:
    """`init_ray` with CPUs for all training workers. On a machine with fewer cores the workers share them."""
    init_ray(min_cpus=max(MIN_LOCAL_CPUS, train.max_workers * train.cpus_per_worker + EXTRA_CPUS))


def init_ray_for_tasks() -> None:
    """`init_ray` for a stage that only runs tasks: with more tasks at a time than cores it would be slower."""
    init_ray(min_cpus=1)


def shut_down_ray() -> None:
    """Disconnect from the cluster, or stop the one that `init_ray` started."""
    import ray  # noqa: PLC0415  (see init_ray)

    ray.shutdown()
