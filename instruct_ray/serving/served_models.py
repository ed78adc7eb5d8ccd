"""replica: all models that it serves: a thread looks after the registry, and each request gets the version it names."""

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from instruct_ray.config.schema import RegistryConfig
from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving.followed_version import FollowedVersion
from instruct_ray.serving.further_versions import FurtherVersions
from instruct_ray.serving.loaded_version import LoadedVersion
from instruct_ray.serving.replica_messages import ModelInfo, RequestError
from instruct_ray.serving.version_pool import DRAIN_POLL_SECONDS, MAX_ERROR_CHARACTERS, VersionPool

logger = logging.getLogger(__name__)


class ModelNotServedError(Exception):
    """No version answers to the model name of a request."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.message)
        self.error = error


class ServedModels:
    """Holds the versions that answer: the one that is followed, and those of `serving.also_serve`.

    Whatever fails, the versions that are loaded go on, and `info` says why.
    """

    def __init__(self, registry: RegistryConfig, serving: ServingConfig, first_number: str | None = None) -> None:
        """Load the version under the alias, and the further ones as far as possible.

        Args:
            registry: the model and its alias.
            serving: the options of the endpoint.
            first_number: the version to begin with, if it is not the one under the alias; that one is then followed.

        Raises:
            InputError: the version under the alias can't be served.
            UnavailableError: the registry does not respond.
        """
        assert registry.uri is not None, "build_app checks it"
        self._name, self._alias, self._pool = registry.name, registry.alias, VersionPool(serving)
        self._followed_names = (self._name, f"{self._name}@{self._alias}")
        arguments = ModelRegistry(registry.uri), self._name, self._alias, serving, self._pool
        self._followed = FollowedVersion(*arguments, first_number=first_number)
        self._further = FurtherVersions(*arguments)
        self._stopped = threading.Event()
        self._update_further()
        if serving.follow_seconds is not None:
            threading.Thread(target=self._follow, args=(serving.follow_seconds,), name="follow", daemon=True).start()

    @property
    def info(self) -> ModelInfo:
        """The version that is followed and why it is not another one, and the further models."""
        with self._pool.hold(lambda: self._followed.number) as followed:
            info = followed.info
        loaded = self._pool.loaded
        further = {name: loaded[key].info for name, key in self._keys(loaded).items()}
        return ModelInfo(
            **info.model_dump(),
            alias=self._alias,
            not_followed=self._followed.not_followed,
            further_models={name: version.version for name, version in further.items()},
            further_layouts={version.version: version.layout for version in further.values()},
            not_served=self._further.not_served,
        )

    @property
    def is_alive(self) -> bool:
        """Whether every engine still processes requests."""
        return all(version.engine.is_alive for version in self._pool.loaded.values())

    @contextmanager
    def hold(self, model: str) -> Iterator[LoadedVersion]:
        """The version for a request that names this model; it stays loaded until the request is answered.

        Raises:
            ModelNotServedError: there is none.
        """
        with self._pool.hold(lambda: self._choose(model)) as loaded:
            yield loaded

    def record(self, model: str, version: str, seconds: float, *, is_failed: bool) -> None:
        """Count a finished request, of which a canary may depend.

        Args:
            model: the name in the request.
            version: that answered.
            seconds: how long it took.
            is_failed: whether it failed by a fault of the version.
        """
        if model in self._followed_names:
            self._followed.record(version, seconds, is_failed=is_failed)

    def follow_once(self) -> None:
        """Look which versions are to be served, and change to them if they are other ones.

        Raises:
            InputError: no decision can be followed.
            UnavailableError: the registry does not respond.
        """
        self._followed.follow_once()
        self._update_further()

    def close(self) -> None:
        """Stop looking after the registry, answer what is queued and stop the engines."""
        self._stopped.set()
        self._pool.close()

    def _update_further(self) -> None:
        self._further.find(self._pool[self._followed.number])
        # First, so that fewer are in memory together.
        self._pool.keep_only({*self._followed.numbers, *self._further.wanted_keys})
        self._further.load()

    def _follow(self, seconds: float) -> None:
        while not self._wait(seconds):
            try:
                self.follow_once()
            except Exception as error:  # whatever fails, the versions that are loaded go on
                if not isinstance(error, (InputError, UnavailableError)):
                    logger.exception("%s@%s can't be followed", self._name, self._alias)
                reason = one_line(error, MAX_ERROR_CHARACTERS)
                self._followed.say(f"{self._name}@{self._alias} can't be followed: {reason}")

    def _wait(self, seconds: float) -> bool:
        """Wait until the next look, and close versions meanwhile that were drained; returns whether it is the end."""
        end = time.monotonic() + seconds
        while self._pool.is_draining and time.monotonic() + DRAIN_POLL_SECONDS < end:
            if self._stopped.wait(DRAIN_POLL_SECONDS):
                return True
            self._pool.close_drained()
        return self._stopped.wait(max(0.0, end - time.monotonic()))

    def _choose(self, model: str) -> str:
        """The key of the version that a model name stands for."""
        if model in self._followed_names:
            return self._followed.choose()
        keys = self._keys(self._pool.loaded)
        if model in keys:
            return keys[model]
        if model in self._further.not_served:
            message = f"the model {model!r} is configured but can't be served now; /health says why"
        else:
            message = f"no model {model!r} here; use one of {', '.join([*self._followed_names, *keys])}"
        raise ModelNotServedError(RequestError(404, message, "model", "model_not_found"))

    def _keys(self, loaded: Collection[str]) -> dict[str, str]:
        """By model name, the key of its version if it is loaded, except for the names that follow the alias."""
        numbers = {f"{self._name}/{key}": key for key in loaded if key.isdecimal()}
        return numbers | {name: key for name, key in self._further.keys.items() if key in loaded}
