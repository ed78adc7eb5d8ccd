"""The MLflow model registry: writes decisions and aliases, downloads versions. Uses no pickle and no MLflow flavor."""

from pathlib import Path

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory
from instruct_ray.run.folder import CONTRACT_FILE
from instruct_ray.tracking.decision_history import DecisionHistory
from instruct_ray.tracking.decision_records import Decision
from instruct_ray.tracking.registry_reader import ModelVersion, RegistryReader, check_version_files


class ModelRegistry(RegistryReader):
    """The model registry at a URI, for reading and writing."""

    def history(self, name: str) -> DecisionHistory:
        """Read all decisions about the versions of a registered model.

        Raises:
            InputError: a record can't be read.
        """
        return DecisionHistory.from_versions(self.versions(name))

    def add_decision(self, name: str, decision: Decision) -> None:
        """Write the record of a decision. Written again after a lost response, it replaces itself."""
        value = decision.model_dump_json()
        self.call(lambda: self.client.set_model_version_tag(name, decision.to_version, decision.tag, value))

    def set_alias(self, name: str, alias: str, number: str) -> None:
        """Point an alias to a version. Only `alias_moves` does it, after it has recorded the decision."""
        self.call(lambda: self.client.set_registered_model_alias(name, alias, number))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it is there."""
        self.call(lambda: self.client.delete_registered_model_alias(name, alias))

    def download(self, version: ModelVersion, target: Path) -> Path:
        """Download the files of a version into a folder and check manifest and contract; returns the model folder.

        Raises:
            InputError: a file is forbidden, missing, added or changed, or the contract differs from the one in the
                version's tags.
        """
        model_dir = self.copy(version, target)
        _check_contract(version, model_dir)
        return model_dir

    def fetch(self, version: ModelVersion, cache_dir: Path) -> Path:
        """Download a version unless it is in the cache already, and check it in any case; returns the model folder.

        Raises:
            InputError: as `download`, or a file in the cache is not as it was registered.
        """
        model_dir = cache_dir / f"{version.name}-{version.number}"
        if not model_dir.is_dir():
            with atomic_directory(model_dir, keep_existing=True) as temporary_dir:
                self.download(version, temporary_dir)
            return model_dir
        try:
            check_version_files(version, model_dir)
            _check_contract(version, model_dir)
        except InputError as error:
            # Other processes may be reading it, so it is not replaced.
            raise InputError(f"{model_dir}: {error}; remove this folder to download the version again") from None
        return model_dir


def _check_contract(version: ModelVersion, model_dir: Path) -> None:
    actual, expected = PromptContract.load(model_dir / CONTRACT_FILE).digest, version.tags["contract_digest"]
    if actual != expected:
        raise InputError(
            f"{version.name}/{version.number}: its files have contract {actual[:12]}, its tags {expected[:12]}"
        )
