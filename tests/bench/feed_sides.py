"""One run of the feed benchmark: prepare and tune a config, with packs streamed or already in memory.

python -m tests.bench.feed_sides stream|memory CONFIG.json
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.training.driver import tune as tune_module
from instruct_ray.training.driver.launch import run_ray_train
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.loop import run_worker
from instruct_ray.training.worker.outcome import TrainOutcome
from instruct_ray.training.worker.spec import WorkerSpec


def train_from_memory(config: dict[str, Any]) -> TrainOutcome:
    """Run the real training loop with all packs loaded before the first step."""
    return run_worker(WorkerSpec.model_validate(config["worker_spec"]), load_packs, config["eval_fn"])


def load_packs(*args: Any) -> Iterator[Any]:
    """Read all packs of `stream_packs` before the first one is used."""
    yield from list(stream_packs(*args))


def main() -> None:
    """Prepare and tune."""
    mode, path = sys.argv[1:]
    config = Config.model_validate(json.loads(Path(path).read_text()))
    ray_session.silence_libraries()
    if mode == "memory":
        # Only the training loop is replaced.
        from tests.bench.feed_sides import train_from_memory as loop  # noqa: PLC0415  (workers import it by its module)

        tune_module.run_ray_train = partial(run_ray_train, loop=loop)
    prepare(config, ray_session.init_ray)
    tune(config, lambda _: None, ray_session.init_ray)
    ray_session.shut_down_ray()


if __name__ == "__main__":
    main()
