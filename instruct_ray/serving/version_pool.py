"""replica: the versions that are loaded, each once, whatever names it is served under.

A version that is no longer wanted drains: it answers what it has begun, and is closed after its last request. Meanwhile
another one may be loaded, so that a long stream does not keep the endpoint from following its alias. Only one, because
every version has a copy of the model in memory: there are never more than the version that answers, one that drains,
and one that is loaded or drains too (besides those of `serving.also_serve`).
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.files import is_temporary
from instruct_ray.inference.engines import choose_engine
from instruct_ray.serving.engine_pool import EnginePool
from instruct_ray.serving.loaded_version import LoadedVersion

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 300
# How often versions that drain are looked at.
DRAIN_POLL_SECONDS = 0.1


class VersionPool:
    """Loaded versions by key: the number of a version, or what identifies a base model.

    Requests hold versions from any thread; one thread loads and closes them.
    """

    def __init__(self, serving: ServingConfig) -> None:
        self.engines = EnginePool(serving)
        # vLLM takes its share of a GPU's memory whole, so another version may not fit.
        is_on_gpu = choose_engine(serving) == "vllm" and serving.num_gpus > 0
        self._max_draining = 1 if not is_on_gpu or serving.num_models_that_fit > serving.num_models else 0
        # Guards what is loaded, and the number of requests that each version answers.
        self._lock = threading.Lock()
        self._loaded: dict[str, LoadedVersion] = {}
        self._draining: dict[str, LoadedVersion] = {}
        # Why versions can't be loaded, by key. They are not tried again.
        self._rejected: dict[str, str] = {}
        self._is_closed = False

    def __contains__(self, key: str) -> bool:
        return key in self._loaded

    def __getitem__(self, key: str) -> LoadedVersion:
        return self._loaded[key]

    @property
    def loaded(self) -> dict[str, LoadedVersion]:
        """What is loaded now and wanted, by key."""
        return dict(self._loaded)

    @property
    def is_draining(self) -> bool:
        """Whether a version that is no longer wanted still answers requests."""
        return bool(self._draining)

    def load(self, key: str, load: Callable[[], LoadedVersion]) -> None:
        """Load a version, unless it is loaded.

        Raises:
            Exception: whatever `load` raises.
        """
        if key in self._loaded or self._take_back(key):
            return
        loaded = load()
        with self._lock:
            if not self._is_closed:
                self._loaded[key] = loaded
                return
        loaded.engine.close()

    def try_load(self, key: str, label: str, load: Callable[[], LoadedVersion]) -> str | None:
        """Load a version, unless it is loaded; returns why it can't be, None if it is there.

        It is tried again if what failed may pass, as with a full disk.
        """
        if key in self._rejected:
            return self._rejected[key]
        if key not in self._loaded and not self._has_room(key):
            versions = " and ".join(one.info.version for one in self._draining.values())
            return f"{label} waits until versions that were replaced have answered their last requests: {versions}"
        try:
            self.load(key, load)
        except Exception as error:  # whatever is wrong with a version, the others go on
            reason = one_line(error, MAX_ERROR_CHARACTERS)
            if _may_pass(error):
                return f"{label} can't be loaded now: {reason}"
            if not isinstance(error, InputError):
                logger.error("%s can't be served", label, exc_info=error)
            self._rejected[key] = f"{label} can't be served: {reason}"
            return self._rejected[key]
        return None

    @contextmanager
    def hold(self, choose: Callable[[], str]) -> Iterator[LoadedVersion]:
        """A version for one request, which stays loaded until the request is answered.

        Args:
            choose: returns the key of a version that is loaded.
        """
        with self._lock:
            loaded = self._loaded[choose()]
            loaded.num_running += 1
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.num_running -= 1

    def keep_only(self, keys: Collection[str]) -> None:
        """Give new requests to these versions alone; the others drain."""
        with self._lock:
            for key in self._loaded.keys() - set(keys):
                self._draining[key] = self._loaded.pop(key)
        self.close_drained()

    def close_drained(self) -> None:
        """Close the versions that were drained: their last requests are answered."""
        with self._lock:
            drained = [key for key, loaded in self._draining.items() if not loaded.num_running]
            removed = [self._draining.pop(key) for key in drained]
        for loaded in removed:
            loaded.engine.close()

    def close(self) -> None:
        """Answer what is queued and stop all engines."""
        with self._lock:
            self._is_closed = True
            remaining = [*self._loaded.values(), *self._draining.values()]
            self._draining.clear()
        for loaded in remaining:
            loaded.engine.close()

    def _has_room(self, key: str) -> bool:
        """Whether a version may be loaded, or taken back, beside those that drain."""
        self.close_drained()
        return key in self._draining or len(self._draining) <= self._max_draining

    def _take_back(self, key: str) -> bool:
        """Let a version that drains answer new requests again, as after a rollback; returns whether it drains."""
        with self._lock:
            if key not in self._draining:
                return False
            self._loaded[key] = self._draining.pop(key)
            return True


def _may_pass(error: Exception) -> bool:
    """Whether a version may be loaded later: a server or a disk may recover, and other versions free their memory."""
    if isinstance(error, OSError):
        return is_temporary(error)
    return isinstance(error, (UnavailableError, MemoryError, torch.OutOfMemoryError))
