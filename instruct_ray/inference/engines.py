"""The engine factory: a model folder and a serving config become an engine. No other module builds engines.

To add an engine, write a module that implements `Engine` and add a builder for it to `ENGINE_BUILDERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from instruct_ray.config.schema import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.engine import Engine
from instruct_ray.inference.transformers_engine import TransformersEngine

EngineKind = Literal["transformers"]
EngineBuilder = Callable[[Path, PromptContract, ServingConfig], Engine]
DEFAULT_ENGINE: EngineKind = "transformers"


def create_engine(model_dir: Path, contract: PromptContract, serving: ServingConfig) -> Engine:
    """Load a model into an engine in this process.

    Args:
        model_dir: a model folder, or an adapter folder.
        contract: the prompt contract of the model; defines the stop token and the pad token.
        serving: limits of the engine, such as its batch size.

    Raises:
        InputError: the model can't be loaded.
    """
    return ENGINE_BUILDERS[DEFAULT_ENGINE](model_dir, contract, serving)


def _build_transformers_engine(model_dir: Path, contract: PromptContract, serving: ServingConfig) -> Engine:
    return TransformersEngine(model_dir, contract, serving.max_batch_size)


ENGINE_BUILDERS: dict[EngineKind, EngineBuilder] = {"transformers": _build_transformers_engine}
