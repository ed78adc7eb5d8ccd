"""An engine in a Ray actor: runs with the resources of a serving replica, outside the driver process."""

import time
from pathlib import Path

import ray

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.engine import Completion, SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.runtime_env import worker_runtime_env

# How often an engine that dies, with its node or for lack of memory, is restarted and its prompts are asked again.
MAX_RESTARTS = 3


class EngineActor:
    """Ray actor that generates completions for batches of prompts."""

    def __init__(self, model_dir: Path, contract: PromptContract, serving: ServingConfig) -> None:
        self._engine = create_engine(model_dir, contract, serving)

    def generate(
        self,
        prompts: list[list[int]],
        sampling: SamplingParams | list[SamplingParams],
        num_at_once: int | None = None,
    ) -> tuple[list[Completion], float]:
        """Generate the completions of all prompts; the arguments are those of `generate_all`.

        Returns:
            The completions, and the wall-clock seconds that all of them took together.
        """
        start = time.perf_counter()
        completions = generate_all(self._engine, prompts, sampling, num_at_once=num_at_once)
        return completions, time.perf_counter() - start

    def wait_until_loaded(self) -> None:
        """Return once the model is loaded: actors process their calls in order."""


def start_engine_actor(
    model_dir: Path, contract: PromptContract, serving: ServingConfig
) -> "ray.actor.ActorHandle[EngineActor]":
    """Start an engine actor with the resources of a serving replica; one that dies is restarted a few times."""
    actor_class = ray.remote(EngineActor).options(
        num_cpus=serving.num_cpus,
        num_gpus=serving.num_gpus,
        label_selector=serving.label_selector,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
    )
    return actor_class.remote(model_dir, contract, serving)
