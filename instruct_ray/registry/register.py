"""The register stage: the tuned model and evidence of a run -> a registered version that the alias points to."""

import json
import logging
from collections.abc import Callable
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.evidence.evaluate import load_evidence
from instruct_ray.files import atomic_write_json
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.tracking.mlflow_client import get_or_create_experiment, tracking_uri
from instruct_ray.tracking.registry_reader import ModelVersion
from instruct_ray.tracking.tracked_run import finish_pending_upload
from instruct_ray.tracking.uploader import redact_credentials

logger = logging.getLogger(__name__)


def register(config: Config, status: Callable[[str], None]) -> tuple[ModelVersion, bool]:
    """Register the tuned model of a run and point the alias to the new version.

    Returns:
        The version, and whether the run was already registered.

    Raises:
        InputError: the run has no evidence yet, or its config has changed.
        RuntimeError: the MLflow server can't be reached.
    """
    evidence = load_evidence(config)
    run = open_run(config, "register")
    folder = run.folder
    metadata = json.loads((folder.model_dir / MODEL_METADATA_FILE).read_text())
    status("opening the registry")
    registry = ModelRegistry(tracking_uri(config))
    name = config.registry.name
    if folder.version_file.is_file():
        return registry.get(name, json.loads(folder.version_file.read_text())["version"]), True

    status("uploading the remaining metrics")
    run_id = finish_pending_upload(config, logger.warning) or metadata["mlflow_run_id"]
    if run_id is None:
        raise RuntimeError(
            f"{redact_credentials(tracking_uri(config))} can't be reached; run `instruct-ray register` again later"
        )
    status("uploading the model")
    tags = _build_tags(metadata, config)
    model_id = _upload(registry, config, tags, run_id, evidence)
    status("creating the version")
    if not registry.client.search_registered_models(filter_string=f"name = '{name}'"):
        registry.client.create_registered_model(name)
    number = _create_version(registry, name, model_id, run_id, tags)
    registry.promote(name, config.registry.alias, number)
    run.freeze()
    atomic_write_json(folder.version_file, {"name": name, "version": number})
    return registry.get(name, number), False


def _create_version(registry: ModelRegistry, name: str, model_id: str, run_id: str, tags: dict[str, str]) -> str:
    """Create the version of a run, unless an interrupted registration created it already; returns its number."""
    existing = registry.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if existing:
        return str(existing[0].version)
    version = registry.client.create_model_version(
        name, source=f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id
    )
    return str(version.version)


def _upload(
    registry: ModelRegistry, config: Config, tags: dict[str, str], run_id: str, evidence: dict[str, Any]
) -> str:
    """Upload the model and its evidence as an MLflow logged model; returns its id.

    The model becomes READY after all its files are uploaded.
    """
    folder, client = RunFolder.from_config(config), registry.client
    model = client.create_logged_model(
        get_or_create_experiment(client, config),
        name=config.run.name,
        source_run_id=run_id,
        model_type="causal-lm",
        tags=tags,
    )
    client.log_model_artifacts(model.model_id, str(folder.model_dir))
    client.log_model_artifact(model.model_id, str(folder.evidence_file))
    for arm, values in evidence["arms"].items():
        client.log_metric(run_id, f"{arm}.accuracy", values["accuracy"], model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _build_tags(metadata: dict[str, Any], config: Config) -> dict[str, str]:
    """Build the tags that record where a version comes from."""
    return {
        "run": config.run.name,
        "base": metadata["base"],
        "base_digest": metadata["base_digest"],
        "form": metadata["form"],
        "data_digest": metadata["packs_digest"],
        "contract_digest": metadata["contract_digest"],
        "config": config.model_dump_json(include={"model", "data", "train"}),
    }
