"""Registered versions and their aliases: name and alias -> files. No pickle, no MLflow flavour."""

import re
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.data.rendering.contract import Contract
from instruct_ray.errors import InputError
from instruct_ray.tracking import connect

PREVIOUS = "previous"
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")


@dataclass(frozen=True)
class Version:
    """A version in the registry."""

    name: str
    number: str
    tags: dict[str, str]


class Registry:
    """The MLflow model registry at a URI."""

    def __init__(self, uri: str) -> None:
        self.client = connect(uri)

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version number.

        Raises:
            InputError: there is no registered model of that name.
        """
        found = self.client.search_registered_models(filter_string=f"name = '{name}'")
        if not found:
            raise InputError(f"no registered model {name}; run `python -m jobs.register` first")
        return {alias: str(number) for alias, number in found[0].aliases.items()}

    def get(self, name: str, number: str) -> Version:
        """A version by its number.

        Raises:
            InputError: it does not exist.
        """
        found = self.client.search_model_versions(f"name = '{name}' and version_number = {int(number)}")
        if not found:
            raise InputError(f"registered model {name} has no version {number}")
        return Version(name, str(found[0].version), dict(found[0].tags))

    def resolve(self, reference: str) -> Version:
        """`models:/name@alias` or `models:/name/number` -> the version.

        Raises:
            InputError: the reference is malformed, or what it names does not exist.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise InputError(f"{reference!r} is no model reference; write models:/name@alias or models:/name/1")
        if match["number"]:
            return self.get(match["name"], match["number"])
        aliases = self.aliases(match["name"])
        if match["alias"] not in aliases:
            raise InputError(
                f"registered model {match['name']} has no alias {match['alias']}; it has {sorted(aliases)}"
            )
        return self.get(match["name"], aliases[match["alias"]])

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

    def download(self, version: Version, target: Path) -> Path:
        """Copy a version's files into a folder and check that they are what its tags say.

        Raises:
            InputError: its files follow another contract than it was registered with.
        """
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415  (see tracking.connect)

        folder = Path(download_artifacts(f"models:/{version.name}/{version.number}", dst_path=str(target)))
        found = Contract.load(folder / "contract.json").digest
        expected = version.tags["contract_digest"]
        if found != expected:
            raise InputError(
                f"{version.name}/{version.number}: files follow contract {found[:12]}, tags {expected[:12]}"
            )
        return folder
