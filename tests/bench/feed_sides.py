"""One run of the feeding benchmark: prepare and tune a configuration, packs streamed or already in memory.

python -m tests.bench.feed_sides stream|memory CONFIG.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_ray.config import Config
from instruct_ray.data.prepare import prepare
from instruct_ray.training import loop, trainer
from jobs import runner


def loop_from_memory(config: dict[str, Any]) -> str:
    """What a worker runs for `memory`: the real loop, but all packs are there before the first step begins."""
    streamed = loop.stream

    def from_memory(*args: Any) -> Iterator[Any]:
        yield from list(streamed(*args))

    loop.stream = from_memory  # type: ignore[assignment]
    return loop.train_loop_per_worker(config)


def main() -> None:
    """Run it."""
    mode, path = sys.argv[1:]
    config = Config.model_validate(json.loads(Path(path).read_text()))
    runner.quiet()
    if mode == "memory":
        # Ray Train is handed this function in place of the other; everything else is the real thing.
        from tests.bench.feed_sides import loop_from_memory as by_name  # noqa: PLC0415  (workers import it by name)

        trainer.train_loop_per_worker = by_name
    prepare(config, runner.connect)
    trainer.tune(config, lambda _: None, runner.connect)
    runner.disconnect()


if __name__ == "__main__":
    main()
