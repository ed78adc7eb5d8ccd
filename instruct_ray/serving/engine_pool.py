"""replica: the engines of the versions that are loaded. Adapters of one base model share one, if several are served."""

import logging
from pathlib import Path

from instruct_ray.base_model.digest import folder_digest
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.adapters import check_plain
from instruct_ray.inference.engine import Engine, UnsupportedAdapterError
from instruct_ray.inference.engines import can_share_base, create_adapter_engine, create_engine
from instruct_ray.inference.loading import check_base_unchanged, find_adapter_base
from instruct_ray.inference.shared_engine import SharedEngine

logger = logging.getLogger(__name__)

# Digests of base model and tokenizer, stop token, pad token: all of a model and its contract that an engine knows.
SharedKey = tuple[str, str, int, int]


class EnginePool:
    """Makes engines. Without `serving.also_serve` an adapter is merged into its base, which answers faster."""

    def __init__(self, serving: ServingConfig) -> None:
        self._serving = serving
        self._is_sharing = bool(serving.also_serve) and can_share_base(serving)
        self._shared: dict[SharedKey, SharedEngine] = {}

    def open_version(self, model_dir: Path, contract: PromptContract, name: str) -> Engine:
        """Load a version, full or an adapter.

        Args:
            model_dir: its folder, which may be temporary.
            contract: its contract.
            name: identifies these files: the engine calls an adapter so.

        Raises:
            InputError: it can't be loaded.
        """
        base_dir = find_adapter_base(model_dir) if self._is_sharing else None
        if base_dir is None:
            return create_engine(model_dir, contract, self._serving)
        check_base_unchanged(model_dir, base_dir)
        try:
            check_plain(model_dir)
            return self._find_shared(base_dir, contract).open_adapter(name, model_dir)
        except UnsupportedAdapterError as error:
            logger.warning("%s gets its own copy of the base model, since it can't share one: %s", name, error)
            return create_engine(model_dir, contract, self._serving)

    def open_base(self, base_dir: Path, contract: PromptContract) -> Engine:
        """Load a base model, unless an adapter has loaded it.

        Raises:
            InputError: it can't be loaded.
        """
        if not self._is_sharing:
            return create_engine(base_dir, contract, self._serving)
        return self._find_shared(base_dir, contract).open_base()

    def _find_shared(self, base_dir: Path, contract: PromptContract) -> SharedEngine:
        """The engine of a base model, loaded if there is none yet."""
        key = folder_digest(base_dir), contract.tokenizer_digest, contract.stop_token_id, contract.pad_token_id
        if key not in self._shared:
            engine = create_adapter_engine(base_dir, contract, self._serving)
            self._shared[key] = SharedEngine(engine, lambda: self._forget(key))
        return self._shared[key]

    def _forget(self, key: SharedKey) -> None:
        del self._shared[key]
