"""Model and evidence of a run -> a registered version that the alias points to."""

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
    """Register the tuned model of a run and point the alias to it; the second value tells if that was done before.

    Raises:
        InputError: the run has no evidence yet, or the config changed since it began.
    """
    evidence = load_evidence(config)
    run = open_run(config, "register")
    folder = run.folder
    record = json.loads((folder.model_dir / MODEL_METADATA_FILE).read_text())
    status("opening the registry")
    registry = ModelRegistry(tracking_uri(config))
    name = config.registry.name
    if folder.version_file.is_file():
        return registry.get(name, json.loads(folder.version_file.read_text())["version"]), True

    status("completing the training's metrics")
    run_id = finish_pending_upload(config, logger.warning) or record["mlflow_run_id"]
    if run_id is None:
        raise RuntimeError(
            f"{redact_credentials(tracking_uri(config))} can't be reached; register again when it answers"
        )
    status("uploading the model")
    model_id = _upload(registry, config, record, run_id, evidence)
    status("creating the version")
    if not registry.client.search_registered_models(filter_string=f"name = '{name}'"):
        registry.client.create_registered_model(name)
    number = _create_version(registry, name, model_id, run_id, _tags(record, config))
    registry.promote(name, config.registry.alias, number)
    run.freeze()
    atomic_write_json(folder.version_file, {"name": name, "version": number})
    return registry.get(name, number), False


def _create_version(registry: ModelRegistry, name: str, model_id: str, run_id: str, tags: dict[str, str]) -> str:
    """A new version; or the one that a registration killed before its end left behind."""
    left_behind = registry.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if left_behind:
        return str(left_behind[0].version)
    created = registry.client.create_model_version(
        name, source=f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id
    )
    return str(created.version)


def _upload(
    registry: ModelRegistry, config: Config, record: dict[str, Any], run_id: str, evidence: dict[str, Any]
) -> str:
    """The model's files as an MLflow logged model, ready only when all are there. Returns its id."""
    folder, client = RunFolder.from_config(config), registry.client
    model = client.create_logged_model(
        get_or_create_experiment(client, config),
        name=config.run.name,
        source_run_id=run_id,
        model_type="causal-lm",
        tags=_tags(record, config),
    )
    client.log_model_artifacts(model.model_id, str(folder.model_dir))
    client.log_model_artifact(model.model_id, str(folder.evidence_file))
    for arm, values in evidence["arms"].items():
        client.log_metric(run_id, f"{arm}.accuracy", values["accuracy"], model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _tags(record: dict[str, Any], config: Config) -> dict[str, str]:
    """Where a version comes from."""
    return {
        "run": config.run.name,
        "base": record["base"],
        "base_digest": record["base_digest"],
        "form": record["form"],
        "data_digest": record["packs_digest"],
        "contract_digest": record["contract_digest"],
        "config": config.model_dump_json(include={"model", "data", "train"}),
    }
