"""replica: the versions that are loaded, each once, whatever names it is served under."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.files import is_temporary
from instruct_ray.serving.engine_pool import EnginePool
from instruct_ray.serving.loaded_version import LoadedVersion

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 300
# How often a version that is no longer wanted is looked at, until its last request is answered.
DRAIN_POLL_SECONDS = 0.1


class VersionPool:
    """Loaded versions by key: the number of a version, or what identifies a base model."""

    def __init__(self, serving: ServingConfig) -> None:
        self.engines = EnginePool(serving)
        # Guards what is loaded, and the number of requests that each version answers.
        self._lock = threading.Lock()
        self._loaded: dict[str, LoadedVersion] = {}
        # Why versions can't be loaded, by key. They are not tried again.
        self._rejected: dict[str, str] = {}
        self._is_closed = False

    def __contains__(self, key: str) -> bool:
        return key in self._loaded

    def __getitem__(self, key: str) -> LoadedVersion:
        return self._loaded[key]

    @property
    def loaded(self) -> dict[str, LoadedVersion]:
        """What is loaded now, by key."""
        return dict(self._loaded)

    def load(self, key: str, load: Callable[[], LoadedVersion]) -> None:
        """Load a version, unless it is loaded.

        Raises:
            Exception: whatever `load` raises.
        """
        if key in self._loaded:
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

    def keep_only(self, keys: Collection[str], stopped: threading.Event) -> None:
        """Close the other versions, each after its last request is answered, or once `stopped` is set."""
        with self._lock:
            removed = [self._loaded.pop(key) for key in self._loaded.keys() - set(keys)]
        for loaded in removed:
            while loaded.num_running and not stopped.wait(DRAIN_POLL_SECONDS):
                pass
            loaded.engine.close()

    def close(self) -> None:
        """Answer what is queued and stop all engines."""
        with self._lock:
            self._is_closed = True
            remaining = list(self._loaded.values())
        for loaded in remaining:
            loaded.engine.close()


def _may_pass(error: Exception) -> bool:
    """Whether a version may be loaded later: a server or a disk may recover, and other versions free their memory."""
    if isinstance(error, OSError):
        return is_temporary(error)
    return isinstance(error, (UnavailableError, MemoryError, torch.OutOfMemoryError))
