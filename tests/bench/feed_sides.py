"""One run of the feeding benchmark: prepare and tune a configuration, packs streamed or already in memory.

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
from instruct_ray.training.worker.spec import WorkerSpec


def loop_from_memory(config: dict[str, Any]) -> str:
    """What a worker runs for `memory`: the real loop, but all packs are there before the first step begins."""
    return run_worker(WorkerSpec.model_validate(config["worker_spec"]), from_memory, config["eval_fn"])


def from_memory(*args: Any) -> Iterator[Any]:
    """As `stream`, all at once."""
    yield from list(stream_packs(*args))


def main() -> None:
    """Run it."""
    mode, path = sys.argv[1:]
    config = Config.model_validate(json.loads(Path(path).read_text()))
    ray_session.silence_libraries()
    if mode == "memory":
        # Ray Train is handed this function in place of the other; everything else is the real thing.
        from tests.bench.feed_sides import loop_from_memory as by_name  # noqa: PLC0415  (workers import it by name)

        tune_module.run_ray_train = partial(run_ray_train, loop=by_name)
    prepare(config, ray_session.init_ray)
    tune(config, lambda _: None, ray_session.init_ray)
    ray_session.shut_down_ray()


if __name__ == "__main__":
    main()
