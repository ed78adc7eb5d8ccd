"""Registered versions, read: name and alias or number -> version -> files. No MLflow flavour."""

import re
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.errors import InputError
from instruct_ray.tracking.mlflow_client import connect_mlflow

REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry."""

    name: str
    number: str
    tags: dict[str, str]
    source: str
    """Where MLflow keeps its files."""

    @property
    def reference(self) -> str:
        """Its name for ever; an alias moves."""
        return f"models:/{self.name}/{self.number}"


class RegistryReader:
    """The versions in the MLflow model registry at a URI."""

    def __init__(self, uri: str) -> None:
        self.client = connect_mlflow(uri)

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version number.

        Raises:
            InputError: there is no registered model of that name.
        """
        found = self.client.search_registered_models(filter_string=f"name = '{name}'")
        if not found:
            raise InputError(f"no registered model {name}; run `instruct-ray register` first")
        return {alias: str(number) for alias, number in found[0].aliases.items()}

    def get(self, name: str, number: str) -> ModelVersion:
        """A version by its number.

        Raises:
            InputError: it does not exist.
        """
        found = self.client.search_model_versions(f"name = '{name}' and version_number = {int(number)}")
        if not found:
            raise InputError(f"registered model {name} has no version {number}")
        return ModelVersion(name, str(found[0].version), dict(found[0].tags), str(found[0].source))

    def resolve(self, reference: str) -> ModelVersion:
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

    def copy(self, version: ModelVersion, target: Path) -> Path:
        """Copy a version's files into a folder; returns where they are."""
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415  (see tracking.client)

        return Path(download_artifacts(version.reference, dst_path=str(target)))
