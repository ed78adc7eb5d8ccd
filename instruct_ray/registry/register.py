"""The register stage: the tuned model and evidence of a run -> a registered version, and the decision of the gate."""

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.registry_names import describe_client_problem
from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.evidence.benchmarks.file import BenchmarksFile, benchmarks_file, load_benchmarks
from instruct_ray.evidence.evaluate import load_evidence
from instruct_ray.files import atomic_write_json
from instruct_ray.inference.loading import model_digest
from instruct_ray.registry.alias_moves import finish_decision, mark_candidate
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.promote import decide
from instruct_ray.registry.upload import build_contents, create_version, find_version_of_run
from instruct_ray.run.folder import MODEL_METADATA_FILE
from instruct_ray.run.lock import RunLock, run_lock
from instruct_ray.tracking.decision_records import Decision
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.registry_reader import ModelVersion
from instruct_ray.tracking.tracked_run import finish_pending_upload
from instruct_ray.tracking.uploader import redact_credentials

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """A registered run."""

    version: ModelVersion
    decision: Decision | None
    """The last decision about the version; None if it was registered before decisions were recorded."""
    already_done: bool
    """Whether an earlier command registered the run."""


def register(
    config: Config, status: Callable[[str], None], record: Callable[[OpenRun], Path] | None = None
) -> Registration:
    """Register the tuned model of a run, and point the alias to the new version if the gate accepts it.

    A version that is refused stays under the alias `candidate`. Killed anywhere and called again, it makes no second
    version and no second decision.

    Args:
        config: the config of the run.
        status: called with progress messages.
        record: records answers of the run's model for the live check, as `record_answers` does, and returns their file;
            None leaves them out.

    Raises:
        InputError: the run has no evidence yet, its config has changed, the model's folder has a file that no version
            may have, or another process is working on the run.
        UnavailableError: the MLflow server can't be reached, or its database is locked.
    """
    load_evidence(config)
    run = open_run(config, "register")
    if registration := _find_registered(run):
        return registration
    with run_lock(run.folder.path) as lock:
        # Again: another process may have held the lock until now.
        if registration := _find_registered(run):
            return registration
        # Again: another process may have written it again.
        evidence = load_evidence(config)
        benchmarks = load_benchmarks(benchmarks_file(run.folder))
        _check_model(run, evidence, benchmarks)
        return _register(run, evidence, benchmarks, record, lock, status)


def _check_model(run: OpenRun, evidence: dict[str, Any], benchmarks: BenchmarksFile | None) -> None:
    """Check that evidence and benchmarks are those of the model. Evidence of earlier versions does not say.

    Raises:
        InputError: they are not.
    """
    # By command and file.
    digests: dict[str, tuple[Path, str]] = {}
    if "model_digest" in evidence:
        digests["evaluate"] = run.folder.evidence_file, evidence["model_digest"]
    if benchmarks is not None:
        digests["benchmark"] = benchmarks_file(run.folder), benchmarks.model_digest
    actual = model_digest(run.folder.model_dir) if digests else None
    for command, (file, digest) in digests.items():
        if digest != actual:
            raise InputError(
                f"{file}: belongs to another model than {run.folder.model_dir} holds now; remove the file and run "
                f"`instruct-ray {command}` again"
            )


def _find_registered(run: OpenRun) -> Registration | None:
    """The version that an earlier command registered, and the last decision about it; None if none did."""
    if not run.folder.version_file.is_file():
        return None
    number = json.loads(run.folder.version_file.read_text())["version"]
    registry = ModelRegistry(tracking_uri(run.config))
    version = registry.get(run.config.registry.name, number)
    return Registration(version, registry.history(version.name).last_on(number), already_done=True)


def _register(
    run: OpenRun,
    evidence: dict[str, Any],
    benchmarks: BenchmarksFile | None,
    record: Callable[[OpenRun], Path] | None,
    lock: RunLock,
    status: Callable[[str], None],
) -> Registration:
    config, name = run.config, run.config.registry.name
    if problem := describe_client_problem(name):
        logger.warning("%s", problem)
    status("opening the registry")
    registry = ModelRegistry(tracking_uri(config))
    # Fails before anything is uploaded if the registry does not respond or a decision can't be read.
    registry.history(name)
    status("uploading the remaining metrics")
    run_id = _mlflow_run_id(run)
    version = find_version_of_run(registry, name, run_id)
    if version is None:
        status("recording answers for the live check")
        recorded = None if record is None else record(run)
        status("hashing and uploading the model")
        with tempfile.TemporaryDirectory() as added_dir:
            contents = build_contents(run, evidence, benchmarks, recorded, run_id, Path(added_dir))
            lock.check()
            version = create_version(registry, config, contents, run_id, lock.check)
    status("asking the gate")
    lock.check()
    decision = finish_decision(registry, config.registry.alias, version)
    if decision is None:
        mark_candidate(registry, version)
        decision = decide(registry, config.registry.alias, version, config.registry.gate, "gate")
    run.freeze()
    atomic_write_json(run.folder.version_file, {"name": name, "version": version.number})
    return Registration(version, decision, already_done=False)


def _mlflow_run_id(run: OpenRun) -> str:
    """The MLflow run of the training run, with all its metrics uploaded.

    Raises:
        UnavailableError: the server can't be reached.
    """
    run_id = finish_pending_upload(run.config, logger.warning)
    if run_id is None:
        metadata = json.loads((run.folder.model_dir / MODEL_METADATA_FILE).read_text())
        run_id = metadata["mlflow_run_id"]
    if run_id is None:
        uri = redact_credentials(tracking_uri(run.config))
        raise UnavailableError(f"{uri} can't be reached; run `instruct-ray register` again later")
    return str(run_id)
