"""replica: the models of `serving.also_serve`: other aliases, version numbers and the base model."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from instruct_ray.config.registry_names import BASE_MODEL
from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving.alias_follower import find_further_version
from instruct_ray.serving.loaded_version import LoadedVersion, load_base, load_version
from instruct_ray.serving.version_pool import VersionPool
from instruct_ray.tracking.registry_reader import ModelVersion

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class _Wanted:
    """A version, or the base model of one."""

    key: str
    """Under which the pool has it."""
    label: str
    source: ModelVersion | LoadedVersion
    """The version, or for a base model the version that was tuned from it."""


class FurtherVersions:
    """Knows which version answers requests for each of these models. What is wrong with one concerns no other."""

    def __init__(
        self, registry: ModelRegistry, name: str, alias: str, serving: ServingConfig, pool: VersionPool
    ) -> None:
        self._registry, self._name, self._alias, self._serving, self._pool = registry, name, alias, serving, pool
        self._wanted: dict[str, _Wanted] = {}
        self.keys: dict[str, str] = {}
        """By model name, which of the pool's versions answers."""
        self.not_served: dict[str, str] = {}
        """By model name, why none answers."""

    @property
    def wanted_keys(self) -> Collection[str]:
        """The versions that the pool has to keep, as far as they are loaded."""
        return {wanted.key for wanted in self._wanted.values()}

    def find(self, followed: LoadedVersion) -> None:
        """Look which versions these models are now.

        Args:
            followed: the version whose base model is served.
        """
        not_served: dict[str, str] = {}
        for model in self._serving.also_serve:
            name = f"{self._name}/{model}" if model.isdecimal() else f"{self._name}@{model}"
            try:
                self._wanted[name] = self._find_base(followed) if model == BASE_MODEL else self._find_version(model)
            except UnavailableError as error:
                # The version that it was stays, if it is loaded.
                not_served[name] = one_line(error, MAX_ERROR_CHARACTERS)
            except InputError as error:
                self._wanted.pop(name, None)
                not_served[name] = one_line(error, MAX_ERROR_CHARACTERS)
        self._say(not_served)
        self.keys = {name: wanted.key for name, wanted in self._wanted.items() if wanted.key in self._pool}

    def load(self) -> None:
        """Load those that are not loaded."""
        not_served = {name: reason for name, reason in self.not_served.items() if name not in self._wanted}
        for name, wanted in self._wanted.items():
            reason = self._pool.try_load(wanted.key, wanted.label, partial(self._load, wanted.source))
            if reason is not None:
                not_served[name] = reason
        self._say(not_served)
        self.keys = {name: wanted.key for name, wanted in self._wanted.items() if wanted.key in self._pool}

    def _find_version(self, model: str) -> _Wanted:
        version = find_further_version(self._registry, self._name, self._alias, model)
        return _Wanted(version.number, f"version {version.number}", version)

    def _find_base(self, followed: LoadedVersion) -> _Wanted:
        digest = None if followed.base is None else followed.base.digest
        return _Wanted(f"{BASE_MODEL}-{digest}-{followed.info.contract_digest}", "the base model", followed)

    def _load(self, source: ModelVersion | LoadedVersion) -> LoadedVersion:
        if isinstance(source, LoadedVersion):
            return load_base(source, self._pool.engines)
        return load_version(self._registry, source, self._serving, self._pool.engines)

    def _say(self, not_served: dict[str, str]) -> None:
        for name, reason in not_served.items():
            if self.not_served.get(name) != reason:
                logger.warning("%s is not served: %s", name, reason)
        self.not_served = not_served
