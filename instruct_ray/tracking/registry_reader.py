"""Reads the MLflow model registry: resolves names, aliases and version numbers, and copies the files of a version.

Versions are plain folders of files; no MLflow flavor is used.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.errors import InputError
from instruct_ray.tracking.mlflow_client import connect_mlflow

REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    number: str
    tags: dict[str, str]
    source: str
    """The URI under which MLflow stores its files."""

    @property
    def reference(self) -> str:
        """The permanent reference by number; an alias can move."""
        return f"models:/{self.name}/{self.number}"


class RegistryReader:
    """Reads versions from the MLflow model registry at a URI."""

    def __init__(self, uri: str) -> None:
        self.client = connect_mlflow(uri)

    def aliases(self, name: str) -> dict[str, str]:
        """Return the version number of each alias of a registered model.

        Raises:
            InputError: there is no registered model of that name.
        """
        models = self.client.search_registered_models(filter_string=f"name = '{name}'")
        if not models:
            raise InputError(f"no registered model {name}; run `instruct-ray register` first")
        return {alias: str(number) for alias, number in models[0].aliases.items()}

    def get(self, name: str, number: str) -> ModelVersion:
        """Return a version by its number.

        Raises:
            InputError: there is no such version.
        """
        versions = self.client.search_model_versions(f"name = '{name}' and version_number = {int(number)}")
        if not versions:
            raise InputError(f"registered model {name} has no version {number}")
        version = versions[0]
        return ModelVersion(name, str(version.version), dict(version.tags), str(version.source))

    def resolve(self, reference: str) -> ModelVersion:
        """Return the version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` refers to.

        Raises:
            InputError: the reference is malformed, or there is no such model, alias or version.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise InputError(f"{reference!r} is not a model reference; write models:/NAME@ALIAS or models:/NAME/NUMBER")
        if match["number"]:
            return self.get(match["name"], match["number"])
        aliases = self.aliases(match["name"])
        if match["alias"] not in aliases:
            raise InputError(
                f"registered model {match['name']} has no alias {match['alias']}; it has {sorted(aliases)}"
            )
        return self.get(match["name"], aliases[match["alias"]])

    def copy(self, version: ModelVersion, target: Path) -> Path:
        """Copy a version's files into a folder; returns the folder that contains them."""
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415  (see connect_mlflow)

        return Path(download_artifacts(version.reference, dst_path=str(target)))
