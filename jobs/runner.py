"""What every job does around its one library call: read the config, join Ray, end with the right exit code."""

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

from instruct_ray.config import Config, TrainConfig
from instruct_ray.config_file import load
from instruct_ray.errors import exit_codes, unwind_on_sigterm

# Fewer cores than training workers plus data tasks would leave Ray Data waiting for a CPU for ever.
MIN_LOCAL_CPUS = 4
# Beside training workers, for data and for what is evaluated meanwhile.
SPARE_CPUS = 2


def run(job: Callable[[Config], None], description: str | None) -> None:
    """Run a job from the command line: `--config FILE [section.key=value …]`."""
    run_parsed(parser(description).parse_args(), job)


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every job's command line has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see jobs/configs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser


def run_parsed(arguments: argparse.Namespace, job: Callable[[Config], None]) -> None:
    """Run a job with the config that its command line names."""
    quiet()
    with exit_codes():
        config = load(arguments.config, arguments.overrides)
        try:
            job(config)
        finally:
            disconnect()


def quiet() -> None:
    """Silence what is known to be harmless in this process, at its source; before the libraries are imported."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # It sets its own level, and warns where there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def connect(min_cpus: int = MIN_LOCAL_CPUS) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; does nothing when connected.

    Called by a job once its input is known to be good.
    """
    import ray.data  # noqa: PLC0415  (seconds: a bad config is answered before)

    # Each sets its own level when it is imported, which is now behind us.
    for name in ("ray", "ray.data", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        # The Train tab of the cluster's dashboard; the one that is started here has none.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        ray.init(**options)
    else:
        # Nobody takes the only node away: one process less to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(num_cpus=max(min_cpus, os.cpu_count() or 1), include_dashboard=False, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    unwind_on_sigterm()


def connect_for_training(train: TrainConfig) -> None:
    """Like `connect`, to a local cluster that counts enough CPUs for the workers; they take turns on fewer cores."""
    connect(min_cpus=max(MIN_LOCAL_CPUS, train.max_workers * train.cpus_per_worker + SPARE_CPUS))


def connect_for_data() -> None:
    """Like `connect`, for a job that only computes in tasks: more of them than cores would be slower."""
    connect(min_cpus=1)


def disconnect() -> None:
    """Leave the cluster, or stop the one that `connect` started."""
    import ray  # noqa: PLC0415  (see connect)

    ray.shutdown()
