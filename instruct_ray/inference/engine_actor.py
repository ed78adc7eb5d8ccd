"""An engine in a Ray worker: where the resources are, away from the driver."""

import time
from pathlib import Path

import ray

from instruct_ray.config.schema import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.engine import Completion, SamplingParams, generate_all
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.runtime_env import worker_runtime_env


class EngineActor:
    """Answers batches of prompts; its methods are called through Ray."""

    def __init__(self, folder: Path, contract: PromptContract, max_batch_size: int) -> None:
        self._engine = TransformersEngine(folder, contract, max_batch_size)

    def answer(self, prompts: list[list[int]], sampling: SamplingParams) -> tuple[list[Completion], float]:
        """The answers, and the seconds they took together."""
        began = time.perf_counter()
        completions = generate_all(self._engine, prompts, sampling)
        return completions, time.perf_counter() - began


def start_engine_actor(
    folder: Path, contract: PromptContract, serving: ServingConfig
) -> "ray.actor.ActorHandle[EngineActor]":
    """Start an engine with the resources that a serving replica has."""
    worker = ray.remote(EngineActor).options(
        num_cpus=serving.num_cpus,
        num_gpus=serving.num_gpus,
        runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
    )
    return worker.remote(folder, contract, serving.max_batch_size)
