"""replica: the version under an alias, replaced by another one when a decision moves the alias, without a pause."""

import logging

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving.alias_follower import Target, find_decided_version, find_target
from instruct_ray.serving.canary import Canary
from instruct_ray.serving.loaded_version import LoadedVersion, load_version
from instruct_ray.serving.version_pool import VersionPool
from instruct_ray.tracking.registry_reader import ModelVersion

logger = logging.getLogger(__name__)


class FollowedVersion:
    """Knows which version answers. Whatever is wrong with the next one, the present one goes on."""

    def __init__(
        self,
        registry: ModelRegistry,
        name: str,
        alias: str,
        serving: ServingConfig,
        pool: VersionPool,
        *,
        first_number: str | None = None,
    ) -> None:
        """Load a version into the pool: the one under the alias, or `first_number` if that can be served.

        Raises:
            InputError: it can't be served.
            UnavailableError: the registry does not respond.
        """
        self._registry, self._name, self._alias, self._serving, self._pool = registry, name, alias, serving, pool
        target = find_target(registry, name, alias)
        self.number = target.version.number
        """The version that answers, all requests or, during a canary, most of them."""
        if first_number is not None and first_number != self.number and self._load_first(first_number):
            self.number = first_number
        else:
            pool.load(self.number, lambda: self._load(target.version))
        self.canary: Canary | None = None
        """The new version that gets a share of the requests."""
        # Why versions are not served after their canaries, by number and decision.
        self._rejected: dict[tuple[str, str | None], str] = {}
        self.not_followed = target.note
        """Why it is not the version under the alias, if it is not."""

    @property
    def numbers(self) -> set[str]:
        """The versions that answer: the followed one and, during a canary, the new one."""
        return {self.number} if self.canary is None else {self.number, self.canary.new}

    def choose(self) -> str:
        """The version for the next request."""
        canary = self.canary
        return self.number if canary is None else canary.choose()

    def record(self, number: str, seconds: float, *, is_failed: bool) -> None:
        """Count a finished request that `choose` gave to a version; see `Canary.record`."""
        canary = self.canary
        if canary is not None:
            canary.record(number, seconds, is_failed=is_failed)

    def follow_once(self) -> None:
        """Look which version is to answer, and change to it if it is another one.

        Raises:
            InputError: no decision can be followed.
            UnavailableError: the registry does not respond.
        """
        target = find_target(self._registry, self._name, self._alias)
        self._end_canary(target)
        number, version = target.version.number, target.version
        if number == self.number:
            self.say(target.note)
        elif (number, target.decision_id) in self._rejected:
            self.say(self._rejected[number, target.decision_id])
        elif self.canary is not None:
            self.not_followed = self.canary.status
        elif (reason := self._pool.try_load(number, f"version {number}", lambda: self._load(version))) is not None:
            self.say(reason)
        elif self._serving.canary is None or target.is_rollback:
            # Whoever rolls back wants the present version to answer no longer.
            self._switch_to(number)
            self.say(target.note)
        else:
            self.canary = Canary(self._serving.canary, self.number, number)
            self.not_followed = self.canary.status
            logger.info(self.not_followed)

    def _end_canary(self, target: Target) -> None:
        """End the canary if it is decided, or if another version is to be served."""
        canary = self.canary
        if canary is None or (canary.verdict == "running" and canary.new == target.version.number):
            return
        if canary.new != target.version.number:
            logger.info("the canary of version %s ends: another version was decided on", canary.new)
        elif canary.verdict == "accepted":
            logger.info("version %s is accepted: %s", canary.new, canary.reason)
            self._switch_to(canary.new)
        else:
            reason = f"version {canary.new} is rejected: {canary.reason}; version {canary.old} goes on"
            self._rejected[canary.new, target.decision_id] = reason
        self.canary = None

    def say(self, not_followed: str | None) -> None:
        """Say why the version under the alias is not served; None if it is."""
        if not_followed is not None and not_followed != self.not_followed:
            logger.warning(not_followed)
        self.not_followed = not_followed

    def _load_first(self, number: str) -> bool:
        """Load the version to begin with; returns whether it can be served."""
        try:
            version = find_decided_version(self._registry, self._name, self._alias, number)
        except (InputError, UnavailableError) as error:
            logger.warning("version %s, which others serve, can't be served: %s", number, one_line(error))
            return False
        return self._pool.try_load(number, f"version {number}", lambda: self._load(version)) is None

    def _switch_to(self, number: str) -> None:
        logger.info("serving %s/%s instead of version %s", self._name, number, self.number)
        self.number = number

    def _load(self, version: ModelVersion) -> LoadedVersion:
        return load_version(self._registry, version, self._serving, self._pool.engines)
