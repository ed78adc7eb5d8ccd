"""driver: engine actors of one model, as many as fit, which share a list of prompts."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from instruct_ray.config.serving import ServingConfig
from instruct_ray.evidence.arms import LocalModel
from instruct_ray.inference.engine import Completion, SamplingParams
from instruct_ray.inference.engine_actor import start_engine_actor

# Prompts per call of an actor: a few batches, so that answers are recorded and progress is shown between calls.
PROMPTS_PER_CALL = 32
# An engine takes seconds to load, so another one is started only for this many more prompts.
PROMPTS_PER_ENGINE = 128
# A model takes about this much of the size of its files, in memory: weights in fp32 and caches.
MEMORY_PER_FILE_BYTE = 2.5


@dataclass(frozen=True)
class Prompt:
    """A prompt and the limit of its answer."""

    token_ids: list[int]
    sampling: SamplingParams


@dataclass
class Capacity:
    """The resources of the cluster that engines may take."""

    cpus: float
    """Logical CPUs: what Ray has not given away."""
    cores: float
    """At most the cores of this machine if it is the only node: more engines than that would be slower."""
    gpus: float
    memory: float
    """In bytes."""

    @classmethod
    def measure(cls) -> "Capacity":
        """The resources that are free now."""
        free = ray.available_resources()
        cpus = float(free.get("CPU", 0))
        cores = min(cpus, os.cpu_count() or 1) if len(ray.nodes()) == 1 else cpus
        return cls(cpus, cores, float(free.get("GPU", 0)), float(free.get("memory", 0)))

    def num_engines(self, serving: ServingConfig) -> int:
        """The number of engines of a size that fit; one at least."""
        by_gpus = self.gpus / serving.num_gpus if serving.num_gpus else math.inf
        return max(1, int(min(self.cores / serving.num_cpus, by_gpus)))

    def fits_together(self, models: Sequence[LocalModel], serving: ServingConfig) -> bool:
        """Whether an engine of each model can be loaded at the same time."""
        count = len(models)
        weights = sum(model.num_bytes for model in models)
        return (
            count * serving.num_cpus <= self.cpus
            and count * serving.num_gpus <= self.gpus
            and (serving.num_gpus > 0 or weights * MEMORY_PER_FILE_BYTE <= self.memory)
        )


class EnginePool:
    """Engines of one model."""

    def __init__(self, model: LocalModel, serving: ServingConfig, num_engines: int) -> None:
        self.model = model
        # Rows of one instruction follow each other here as they never do for an endpoint: with a prefix that is kept,
        # latencies would say little.
        serving = serving.model_copy(update={"prefix_cache_tokens": 0})
        self._engines = [
            start_engine_actor(model.folder, model.renderer.contract, serving) for _ in range(num_engines)
        ]  # fmt: skip

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], list[Completion]]]:
        """Generate the completions of all prompts; yields them by the indices of the prompts, as they come.

        An engine that is not loaded yet gets no prompts, so one that finds no place in the cluster delays nothing.
        """
        starts = list(range(0, len(prompts), PROMPTS_PER_CALL))
        batches = [list(range(start, min(start + PROMPTS_PER_CALL, len(prompts)))) for start in reversed(starts)]
        waiting: dict[Any, tuple[Any, list[int]]] = {
            engine.wait_until_loaded.remote(): (engine, []) for engine in self._engines
        }
        num_left = len(prompts)
        while num_left:
            [ref], _ = ray.wait(list(waiting), num_returns=1)
            engine, indices = waiting.pop(ref)
            result = ray.get(ref)
            if batches:
                following = batches.pop()
                call = engine.generate.remote(
                    [prompts[index].token_ids for index in following],
                    [prompts[index].sampling for index in following],
                )
                waiting[call] = (engine, following)
            if indices:
                num_left -= len(indices)
                yield indices, result[0]

    def keep_one(self) -> None:
        """Stop all engines but the first that is loaded."""
        if len(self._engines) > 1:
            loaded = {engine.wait_until_loaded.remote(): engine for engine in self._engines}
            [ref], _ = ray.wait(list(loaded), num_returns=1)
            kept = loaded[ref]
            for engine in self._engines:
                if engine is not kept:
                    ray.kill(engine)
            self._engines = [kept]

    def time_one(self, prompt: Prompt) -> float:
        """The seconds that a single request takes."""
        _, seconds = ray.get(self._engines[0].generate.remote([prompt.token_ids], prompt.sampling))
        return float(seconds)

    def time_many(self, prompts: Sequence[Prompt], num_at_once: int) -> float:
        """The seconds that all requests take with `num_at_once` requests in flight."""
        token_ids, sampling = [one.token_ids for one in prompts], [one.sampling for one in prompts]
        _, seconds = ray.get(self._engines[0].generate.remote(token_ids, sampling, num_at_once))
        return float(seconds)

    def close(self) -> None:
        """Stop all engines."""
        for engine in self._engines:
            ray.kill(engine)


def choose_num_engines(wanted: int | None, num_prompts: int, num_free: int) -> int:
    """The number of engines for a number of prompts: as wanted, or as many as fit and have enough to do."""
    if wanted is not None:
        return wanted
    return max(1, min(num_free, -(-num_prompts // PROMPTS_PER_ENGINE)))
