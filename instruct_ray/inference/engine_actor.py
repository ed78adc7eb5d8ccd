"""An engine in a Ray actor: runs with the resources of a serving replica, outside the driver process."""

import time
from pathlib import Path

import ray

from instruct_ray.config.schema import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.engine import Completion, SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.runtime_env import worker_runtime_env


class EngineActor:
    """Ray actor that generates completions for batches of prompts."""

    def __init__(self, model_dir: Path, contract: PromptContract, serving: ServingConfig) -> None:
        self._engine = create_engine(model_dir, contract, serving)

    def generate(self, prompts: list[list[int]], sampling: SamplingParams) -> tuple[list[Completion], float]:
        """Generate the completions of all prompts.

        Returns:
            The completions, and the wall-clock seconds that all of them took together.
        """
        start = time.perf_counter()
        completions = generate_all(self._engine, prompts, sampling)
        return completions, time.perf_counter() - start


def start_engine_actor(
    model_dir: Path, contract: PromptContract, serving: ServingConfig
) -> "ray.actor.ActorHandle[EngineActor]":
    """Start an engine actor with the resources of a serving replica."""
    actor_class = ray.remote(EngineActor).options(
        num_cpus=serving.num_cpus,
        num_gpus=serving.num_gpus,
        runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
    )
    return actor_class.remote(model_dir, contract, serving)
