"""The registry: versions whose aliases move, and files that are what their tags say. No pickle, no MLflow flavour."""

from pathlib import Path

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory
from instruct_ray.tracking.registry_reader import ModelVersion, RegistryReader

PREVIOUS = "previous"


class ModelRegistry(RegistryReader):
    """The MLflow model registry at a URI."""

    def promote(self, name: str, alias: str, number: str) -> None:
        """Point an alias to a version; the one it pointed to before becomes `previous`.

        Raises:
            InputError: there is no such version.
        """
        self.get(name, number)
        current = self.aliases(name).get(alias)
        if current is not None and current != number:
            self.client.set_registered_model_alias(name, PREVIOUS, current)
        self.client.set_registered_model_alias(name, alias, number)

    def rollback(self, name: str, alias: str) -> str:
        """Exchange an alias and `previous`; returns the number that the alias points to now.

        Raises:
            InputError: there is no previous version.
        """
        previous = self.aliases(name).get(PREVIOUS)
        if previous is None:
            raise InputError(f"registered model {name} has no previous version to go back to")
        self.promote(name, alias, previous)
        return previous

    def download(self, version: ModelVersion, target: Path) -> Path:
        """Copy a version's files into a folder and check that they are what its tags say.

        Raises:
            InputError: its files follow another contract than it was registered with.
        """
        folder = self.copy(version, target)
        found = PromptContract.load(folder / "contract.json").digest
        expected = version.tags["contract_digest"]
        if found != expected:
            raise InputError(
                f"{version.name}/{version.number}: files follow contract {found[:12]}, tags {expected[:12]}"
            )
        return folder

    def fetch(self, version: ModelVersion, cache: Path) -> Path:
        """As `download`, into a folder of its own in `cache`, once.

        Raises:
            InputError: as `download`.
        """
        folder = cache / f"{version.name}-{version.number}"
        if not folder.is_dir():
            with atomic_directory(folder) as unfinished:
                self.download(version, unfinished)
        return folder
