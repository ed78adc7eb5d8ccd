"""The engine factory: a model folder and a serving config become an engine. No other module builds engines.

To add an engine, write a module that implements `Engine` and add a builder for it to `ENGINE_BUILDERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import AdapterEngine, Engine
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.inference.vllm_environment import is_vllm_installed, set_vllm_variables

EngineKind = Literal["transformers", "vllm"]
EngineBuilder = Callable[[Path, PromptContract, ServingConfig], Engine]


def create_engine(model_dir: Path, contract: PromptContract, serving: ServingConfig) -> Engine:
    """Load a model into an engine in this process.

    Args:
        model_dir: a model folder, or an adapter folder. Not read any more afterwards.
        contract: the prompt contract of the model; defines the stop token and the pad token.
        serving: which engine, and its limits, such as its batch size.

    Raises:
        InputError: the model can't be loaded, or the engine is not installed.
    """
    return ENGINE_BUILDERS[choose_engine(serving)](model_dir, contract, serving)


def choose_engine(serving: ServingConfig) -> EngineKind:
    """The engine that `serving.engine` stands for in the environment of this process."""
    if serving.engine != "auto":
        return serving.engine
    return "vllm" if serving.num_gpus > 0 and is_vllm_installed() else "transformers"


def can_share_base(serving: ServingConfig) -> bool:
    """Whether adapters of one base can share an engine; with vLLM each gets its own."""
    return choose_engine(serving) == "transformers"


def create_adapter_engine(base_dir: Path, contract: PromptContract, serving: ServingConfig) -> AdapterEngine:
    """Load a base model into an engine that adapters of it share; the arguments are those of `create_engine`.

    Raises:
        InputError: the model can't be loaded.
    """
    return TransformersEngine(
        base_dir, contract, serving.max_batch_size, serving.prefix_cache_tokens, takes_adapters=True
    )


def _build_transformers_engine(model_dir: Path, contract: PromptContract, serving: ServingConfig) -> Engine:
    return TransformersEngine(model_dir, contract, serving.max_batch_size, serving.prefix_cache_tokens)


def _build_vllm_engine(model_dir: Path, contract: PromptContract, serving: ServingConfig) -> Engine:
    if not is_vllm_installed():
        raise InputError("serving.engine=vllm: vLLM is not installed here; pip install 'instruct-ray[vllm]'")
    set_vllm_variables()
    # Here, since vllm is optional and its import takes seconds.
    from instruct_ray.inference.vllm_engine import VllmEngine  # noqa: PLC0415

    return VllmEngine(model_dir, contract, serving)


ENGINE_BUILDERS: dict[EngineKind, EngineBuilder] = {
    "transformers": _build_transformers_engine,
    "vllm": _build_vllm_engine,
}
