"""The MLflow model registry: moves aliases and downloads versions. No pickle and no MLflow model flavor is used."""

from pathlib import Path

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory
from instruct_ray.run.folder import CONTRACT_FILE
from instruct_ray.tracking.registry_reader import ModelVersion, RegistryReader

# Alias of the version that `promote` replaced.
PREVIOUS_ALIAS = "previous"


class ModelRegistry(RegistryReader):
    """The model registry at a URI, for reading and writing."""

    def promote(self, name: str, alias: str, number: str) -> None:
        """Point an alias to a version; the version it pointed to before gets the alias `previous`.

        Raises:
            InputError: the version does not exist.
        """
        self.get(name, number)
        current = self.aliases(name).get(alias)
        if current is not None and current != number:
            self.client.set_registered_model_alias(name, PREVIOUS_ALIAS, current)
        self.client.set_registered_model_alias(name, alias, number)

    def rollback(self, name: str, alias: str) -> str:
        """Swap an alias with `previous`; returns the version number that the alias points to now.

        Raises:
            InputError: there is no previous version.
        """
        previous = self.aliases(name).get(PREVIOUS_ALIAS)
        if previous is None:
            raise InputError(f"registered model {name} has no previous version to roll back to")
        self.promote(name, alias, previous)
        return previous

    def download(self, version: ModelVersion, target: Path) -> Path:
        """Download the files of a version into a folder and check their contract; returns the model folder.

        Raises:
            InputError: the contract differs from the one in the version's tags.
        """
        model_dir = self.copy(version, target)
        actual = PromptContract.load(model_dir / CONTRACT_FILE).digest
        expected = version.tags["contract_digest"]
        if actual != expected:
            raise InputError(
                f"{version.name}/{version.number}: its files have contract {actual[:12]}, its tags {expected[:12]}"
            )
        return model_dir

    def fetch(self, version: ModelVersion, cache_dir: Path) -> Path:
        """Download a version unless it is in the cache already; returns the model folder.

        Raises:
            InputError: the contract differs from the one in the version's tags.
        """
        model_dir = cache_dir / f"{version.name}-{version.number}"
        if not model_dir.is_dir():
            with atomic_directory(model_dir) as temporary_dir:
                self.download(version, temporary_dir)
        return model_dir
