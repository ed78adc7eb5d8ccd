"""A run's model -> a version: adds card, evidence, lineage and manifest, and uploads each file once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.packs.dataset import finished_pack_dirs
from instruct_ray.errors import InputError
from instruct_ray.evidence.benchmarks.file import BENCHMARKS_FILE, BenchmarksFile, benchmarks_file
from instruct_ray.files import atomic_write_json, atomic_write_text, sha256_file
from instruct_ray.inference.recorded_answers import RECORDED_ANSWERS_FILE
from instruct_ray.registry.base_license import find_base_license
from instruct_ray.registry.gate_evidence import GateEvidence, read_gate_evidence
from instruct_ray.registry.lineage import LINEAGE_FILE, ROWS_FILE, build_lineage, write_rows
from instruct_ray.registry.model_card import CARD_FILE, build_card, describe_for_browsing, describe_model
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.run_page import list_datasets, list_figures
from instruct_ray.run.folder import MODEL_METADATA_FILE
from instruct_ray.tracking.calls import mlflow_errors
from instruct_ray.tracking.mlflow_client import get_or_create_experiment
from instruct_ray.tracking.registry_reader import ModelVersion
from instruct_ray.tracking.run_page import DESCRIPTION_TAG, UsedDataset, show_datasets, show_figures, show_model
from instruct_ray.tracking.version_files import MANIFEST_FILE, MANIFEST_TAG, make_manifest

EVIDENCE_FILE = "evidence.json"
EVIDENCE_TAG = "evidence_digest"
# Only of versions that have benchmarks.
BENCHMARKS_TAG = "benchmarks_digest"
# Tag of a version: the digest of the test rows of its evidence, for decisions that do not read the evidence.
TEST_ROWS_TAG = "test_digest"
ACCURACY_TAG = "accuracy"
READY, PENDING = "READY", "PENDING"


@dataclass(frozen=True)
class VersionContents:
    """The files and tags of a version that is to be registered."""

    model_dir: Path
    added_dir: Path
    """The files that are added to those of the model."""
    tags: dict[str, str]
    description: str
    figures: dict[str, float]
    """Of the evidence, by the name that MLflow shows."""
    datasets: list[UsedDataset]


def build_contents(
    run: OpenRun,
    evidence: dict[str, Any],
    benchmarks: BenchmarksFile | None,
    recorded: Path | None,
    mlflow_run_id: str,
    added_dir: Path,
) -> VersionContents:
    """Write the files that are added to the model into `added_dir`, and build the tags.

    Args:
        run: the run.
        evidence: the content of its `evidence.json`.
        benchmarks: that of its `benchmarks.json`; None if it has none.
        recorded: file with the recorded answers; None leaves them out.
        mlflow_run_id: its MLflow run.
        added_dir: the folder for the added files.

    Raises:
        InputError: the model's folder has a file that no version may have.
    """
    config, model_dir = run.config, run.folder.model_dir
    metadata = json.loads((model_dir / MODEL_METADATA_FILE).read_text())
    lineage, values = build_lineage(run, metadata, mlflow_run_id), read_gate_evidence(evidence)
    base_folder = Path(metadata["base_folder"]) if "base_folder" in metadata else None
    shutil.copyfile(run.folder.evidence_file, added_dir / EVIDENCE_FILE)
    if run.folder.report_file.is_file():
        shutil.copy(run.folder.report_file, added_dir)
    if benchmarks is not None:
        shutil.copyfile(benchmarks_file(run.folder), added_dir / BENCHMARKS_FILE)
    if recorded is not None:
        shutil.copyfile(recorded, added_dir / RECORDED_ANSWERS_FILE)
    atomic_write_json(added_dir / LINEAGE_FILE, lineage.model_dump(mode="json"))
    card = build_card(config.registry.name, lineage, evidence, benchmarks, find_base_license(base_folder))
    atomic_write_text(added_dir / CARD_FILE, card)
    if finished_pack_dirs(run.folder):
        write_rows(run.packs, added_dir / ROWS_FILE)
    try:
        manifest = make_manifest(model_dir, added_dir)
    except InputError as error:
        raise InputError(f"{model_dir}: {error}") from None
    atomic_write_json(added_dir / MANIFEST_FILE, manifest.model_dump(mode="json"))
    tags = _build_tags(metadata, config, evidence, values) | {
        MANIFEST_TAG: manifest.digest,
        EVIDENCE_TAG: sha256_file(added_dir / EVIDENCE_FILE),
    }
    if benchmarks is not None:
        tags[BENCHMARKS_TAG] = sha256_file(added_dir / BENCHMARKS_FILE)
    if values.test_digest is not None:
        tags[TEST_ROWS_TAG] = values.test_digest
    description = describe_for_browsing(lineage, evidence)
    return VersionContents(
        model_dir, added_dir, tags, description, list_figures(evidence), list_datasets(lineage, evidence)
    )


def find_version_of_run(registry: ModelRegistry, name: str, mlflow_run_id: str) -> ModelVersion | None:
    """The version that an interrupted registration of a run created; None if it did not get there."""
    query = f"name = '{name}' and run_id = '{mlflow_run_id}'"
    found = registry.call(lambda: registry.client.search_model_versions(query))
    return registry.get(name, str(found[0].version)) if found else None


def create_version(
    registry: ModelRegistry,
    config: Config,
    contents: VersionContents,
    mlflow_run_id: str,
    check_lock: Callable[[], None],
) -> ModelVersion:
    """Upload the files and create the version, which exists only once all files are there.

    Raises:
        InputError: MLflow rejects the name, or denies access.
        UnavailableError: MLflow does not respond.
    """
    name, client = config.registry.name, registry.client
    model_id = _find_or_upload(registry, config, contents, mlflow_run_id)
    registry.call(lambda: show_datasets(client, mlflow_run_id, contents.datasets))
    registry.call(lambda: show_model(client, mlflow_run_id, model_id, contents.description))
    check_lock()
    if not registry.call(lambda: client.search_registered_models(filter_string=f"name = '{name}'")):
        about = describe_model(name, config.registry.alias)
        registry.call(lambda: client.create_registered_model(name, description=about))
    # Not tried again by itself: a lost response may have created the version. A rerun finds it by the run.
    with mlflow_errors(registry.uri):
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=mlflow_run_id,
            tags=contents.tags,
            description=contents.description,
            model_id=model_id,
        )
    return registry.get(name, str(version.version))


def _find_or_upload(registry: ModelRegistry, config: Config, contents: VersionContents, mlflow_run_id: str) -> str:
    """Upload the files as an MLflow logged model, unless an interrupted registration did; returns its id.

    The model becomes READY after all its files are uploaded. What an interrupted upload left is deleted.
    """
    client = registry.client
    experiment = registry.call(lambda: get_or_create_experiment(client, config))
    query = f"source_run_id = '{mlflow_run_id}'"
    for model in registry.call(lambda: client.search_logged_models([experiment], filter_string=query)):
        is_same = model.tags.get(MANIFEST_TAG) == contents.tags[MANIFEST_TAG]
        if model.status.value == READY and is_same:
            return str(model.model_id)
        if model.status.value == PENDING:
            registry.call(lambda model_id=model.model_id: client.delete_logged_model(model_id))  # type: ignore[misc]
    with mlflow_errors(registry.uri):
        model = client.create_logged_model(
            experiment,
            name=config.run.name,
            source_run_id=mlflow_run_id,
            model_type="causal-lm",
            tags=contents.tags | {DESCRIPTION_TAG: contents.description},
        )
        client.log_model_artifacts(model.model_id, str(contents.model_dir))
        client.log_model_artifacts(model.model_id, str(contents.added_dir))
        show_figures(client, mlflow_run_id, model.model_id, contents.figures, contents.datasets)
        client.finalize_logged_model(model.model_id, READY)
    return str(model.model_id)


def _build_tags(
    metadata: dict[str, Any], config: Config, evidence: dict[str, Any], values: GateEvidence
) -> dict[str, str]:
    """Build the tags that tell versions apart in a list, and those that record where a version comes from."""
    tags = {"run": config.run.name}
    if values.tuned_arm in values.accuracies:
        tags[ACCURACY_TAG] = f"{values.accuracies[values.tuned_arm]:.4f}"
    if "verdict" in evidence:
        tags["verdict"] = evidence["verdict"]["outcome"]
    return tags | {
        "base": metadata["base"],
        "form": metadata["form"],
        "base_digest": metadata["base_digest"],
        "data_digest": metadata["packs_digest"],
        "contract_digest": metadata["contract_digest"],
    }
