"""driver: what the registry knows before an evaluation: the standing champion, and earlier decisions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.files import atomic_directory
from instruct_ray.tracking.decision_history import DecisionHistory
from instruct_ray.tracking.mlflow_client import require_registry_uri
from instruct_ray.tracking.registry_reader import ModelVersion, RegistryReader


@dataclass(frozen=True)
class Champion:
    """A version, with its files."""

    number: str
    folder: Path


@dataclass(frozen=True)
class Standing:
    """What the registry knows of a registered model."""

    champion: Champion | None
    """None if nothing is under the alias yet."""
    num_decisions: int
    """How many pieces of evidence from the same test rows were decided on before."""


def find_standing(config: Config, test_digest: str) -> Standing:
    """Read the registry and download the standing champion, unless it was before.

    Raises:
        UnavailableError: the registry does not respond.
        InputError: a file of the version is missing or was changed, or a decision record can't be read.
    """
    try:
        uri = require_registry_uri(config)
    except InputError:
        # Nothing was ever registered.
        return Standing(None, 0)
    name = config.registry.name
    try:
        registry = RegistryReader(uri)
        if name not in registry.model_names():
            return Standing(None, 0)
        number = registry.aliases(name).get(config.registry.alias)
        history = DecisionHistory.from_versions(registry.versions(name))
        champion = None
        if number is not None:
            version = registry.get(name, number)
            champion = Champion(number, _fetch(registry, version, config.run.storage / "versions"))
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}; evaluate compares with the standing champion, unless evidence.compare_champion=false"
        ) from None
    return Standing(champion, history.num_other_evidence(test_digest, None))


def _fetch(registry: RegistryReader, version: ModelVersion, cache_dir: Path) -> Path:
    # Version numbers start at 1 again in a new registry, so they don't identify the files alone.
    source = hashlib.sha256(version.source.encode()).hexdigest()[:8]
    folder = cache_dir / f"{version.name}-{version.number}-{source}"
    if not folder.is_dir():
        with atomic_directory(folder, keep_existing=True) as temporary_dir:
            registry.copy(version, temporary_dir)
    return folder
