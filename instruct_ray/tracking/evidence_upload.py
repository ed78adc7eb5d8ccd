"""Uploads the evidence of a run to its MLflow run: files as artifacts, and the answers as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.tracking.calls import call_with_retries, mlflow_errors
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.tracking.tracked_run import load_tracking_record

ARTIFACT_DIR = "evidence"
TABLE_FILE = f"{ARTIFACT_DIR}/answers.json"


def upload_evidence(config: Config, files: Sequence[Path], columns: Mapping[str, Sequence[Any]]) -> bool:
    """Upload the files, and the table unless it is there already.

    Args:
        config: the config of the run.
        files: replace those of an earlier upload.
        columns: the table by column, shape of each [rows]. MLflow's UI compares the tables of several runs.

    Returns:
        False if the run has no MLflow run.

    Raises:
        UnavailableError: MLflow does not respond.
        InputError: it denies access.
    """
    run_id, uri = load_tracking_record(config).run_id, tracking_uri(config)
    if run_id is None:
        return False
    client = connect_mlflow(uri)
    artifacts = call_with_retries(uri, lambda: client.list_artifacts(run_id, ARTIFACT_DIR))
    with mlflow_errors(uri):
        for file in files:
            client.log_artifact(run_id, str(file), ARTIFACT_DIR)
        # MLflow would append to an existing table.
        if TABLE_FILE not in [artifact.path for artifact in artifacts]:
            client.log_table(run_id, {name: list(values) for name, values in columns.items()}, TABLE_FILE)
    return True
