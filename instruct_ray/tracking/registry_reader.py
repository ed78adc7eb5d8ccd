"""Reads the MLflow model registry: resolves names, aliases and version numbers, and copies the files of a version.

Versions are plain folders of files; no MLflow flavor is used. Files are checked against the version's manifest.
"""

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.files import is_temporary
from instruct_ray.tracking.calls import call_with_retries, mlflow_errors
from instruct_ray.tracking.mlflow_client import connect_mlflow
from instruct_ray.tracking.version_files import (
    MANIFEST_FILE,
    MANIFEST_TAG,
    check_file,
    check_folder_without_manifest,
    check_version_folder,
    parse_manifest,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

T = TypeVar("T")
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")

logger = logging.getLogger(__name__)


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

    @property
    def manifest_digest(self) -> str | None:
        """Digest of the manifest of its files; None if it was registered before there were manifests."""
        return self.tags.get(MANIFEST_TAG)


class RegistryReader:
    """Reads versions from the MLflow model registry at a URI.

    Every method raises `UnavailableError` if the registry does not respond, and `InputError` if it denies access.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = self.call(lambda: connect_mlflow(uri))

    def call(self, function: Callable[[], T]) -> T:
        """Call MLflow; a few attempts, and its errors in one line."""
        return call_with_retries(self.uri, function)

    def model_names(self) -> list[str]:
        """Return the names of all registered models."""
        # As many as MLflow returns at most in one response.
        models = self.call(lambda: self.client.search_registered_models(max_results=1000))
        return [str(model.name) for model in models]

    def aliases(self, name: str) -> dict[str, str]:
        """Return the version number of each alias of a registered model.

        Raises:
            InputError: there is no registered model of that name.
        """
        models = self.call(lambda: self.client.search_registered_models(filter_string=f"name = '{name}'"))
        if not models:
            raise InputError(f"no registered model {name}; run `instruct-ray register` first")
        return {alias: str(number) for alias, number in models[0].aliases.items()}

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a registered model, oldest first; none if there is no such model."""
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self.call(
                lambda token=token: self.client.search_model_versions(f"name = '{name}'", page_token=token)  # type: ignore[misc]
            )
            found += [_to_version(name, version) for version in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.number))

    def get(self, name: str, number: str) -> ModelVersion:
        """Return a version by its number.

        Raises:
            InputError: there is no such version.
        """
        if not number.isdecimal():
            raise InputError(f"{number!r} is not the number of a version")
        query = f"name = '{name}' and version_number = {int(number)}"
        versions = self.call(lambda: self.client.search_model_versions(query))
        if not versions:
            raise InputError(f"registered model {name} has no version {number}")
        return _to_version(name, versions[0])

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
        """Copy a version's files into a folder and check them; returns the folder that contains them.

        Raises:
            InputError: a file is forbidden, missing, added or changed; names it.
        """
        folder = self._download(version.reference, target)
        check_version_files(version, folder)
        return folder

    def read_file(self, version: ModelVersion, name: str) -> bytes:
        """Read one file of a version, without the others, and check it.

        Raises:
            InputError: the version has no such file or no manifest, or the file was changed.
        """
        where = f"{version.name}/{version.number}"
        if version.manifest_digest is None:
            raise InputError(f"{where} was registered without a manifest by an earlier version, so it has no {name}")
        with tempfile.TemporaryDirectory() as folder:
            content = self._download(f"{version.reference}/{MANIFEST_FILE}", Path(folder)).read_bytes()
            try:
                manifest = parse_manifest(content, version.manifest_digest)
                if name not in manifest.files:
                    raise InputError(f"it has no {name}")
                path = self._download(f"{version.reference}/{name}", Path(folder))
                check_file(name, path, manifest.files[name])
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            return path.read_bytes()

    def _download(self, uri: str, target: Path) -> Path:
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415  (see connect_mlflow)

        try:
            with mlflow_errors(self.uri):
                return Path(download_artifacts(uri, dst_path=str(target)))
        except OSError as error:
            message = f"{uri}: its files can't be downloaded: {error}"
            raise (UnavailableError(message) if is_temporary(error) else InputError(message)) from None


def check_version_files(version: ModelVersion, folder: Path) -> None:
    """Check the copy of a version in a folder.

    Raises:
        InputError: a file is forbidden, missing, added or changed; names it.
    """
    try:
        if version.manifest_digest is not None:
            check_version_folder(folder, version.manifest_digest)
            return
        check_folder_without_manifest(folder)
    except InputError as error:
        raise InputError(f"{version.name}/{version.number}: {error}") from None
    logger.warning(
        "%s was registered without a manifest: its files can't be compared with the registered ones",
        version.reference,
    )


def _to_version(name: str, version: "MlflowVersion") -> ModelVersion:
    return ModelVersion(name, str(version.version), dict(version.tags), str(version.source))
