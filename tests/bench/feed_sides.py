"""One run of the feeding benchmark: prepare and tune a configuration, packs streamed or already in memory.

python -m tests.bench.feed_sides stream|memory CONFIG.json
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from instruct_ray.config import Config
from instruct_ray.data.feed import stream
from instruct_ray.data.prepare import prepare
from instruct_ray.training import trainer
from instruct_ray.training.job import TrainJob
from instruct_ray.training.loop import work
from jobs import runner


def loop_from_memory(config: dict[str, Any]) -> str:
    """What a worker runs for `memory`: the real loop, but all packs are there before the first step begins."""
    return work(TrainJob.model_validate(config["job"]), from_memory, config["score"])


def from_memory(*args: Any) -> Iterator[Any]:
    """As `stream`, all at once."""
    yield from list(stream(*args))


def main() -> None:
    """Run it."""
    mode, path = sys.argv[1:]
    config = Config.model_validate(json.loads(Path(path).read_text()))
    runner.quiet()
    if mode == "memory":
        # Ray Train is handed this function in place of the other; everything else is the real thing.
        from tests.bench.feed_sides import loop_from_memory as by_name  # noqa: PLC0415  (workers import it by name)

        trainer.fit = partial(trainer.fit, loop=by_name)
    prepare(config, runner.connect)
    trainer.tune(config, lambda _: None, runner.connect)
    runner.disconnect()


if __name__ == "__main__":
    main()
