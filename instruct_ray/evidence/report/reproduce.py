"""driver: how to make the evidence again: commands, digests, versions and the frozen config."""

import json
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from instruct_ray.evidence.report.evidence_file import EvidenceFile
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder

STAGES = ("prepare", "tune", "evaluate")
PACKAGES = ("instruct-ray", "ray", "torch", "transformers", "deepspeed", "peft", "scipy", "numpy", "vllm")
# The sections that decide the evidence. The registry's URI may hold a password.
SHOWN_SECTIONS = ("run", "model", "data", "train", "evidence")


@dataclass(frozen=True)
class Reproduction:
    """The section of the page."""

    run_name: str
    commands: str
    facts: tuple[tuple[str, str], ...]
    """(what, value): digests and origin of the model."""
    versions: tuple[tuple[str, str], ...]
    """(package, version) of what wrote the report."""
    config: str
    """The frozen config as JSON; empty if there is none."""


def read_model_metadata(folder: RunFolder) -> dict[str, Any]:
    """What the tuned model was made from; empty if the model's folder was removed."""
    path = folder.model_dir / MODEL_METADATA_FILE
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values


def build_reproduction(
    folder: RunFolder, config_file: Path | None, evidence: EvidenceFile, metadata: Mapping[str, Any]
) -> Reproduction:
    """Collect the section; nothing of it depends on when or where the report is written."""
    config = "CONFIG.yaml" if config_file is None else shlex.quote(str(config_file))
    facts = {
        "run": folder.path.name,
        "config file": None if config_file is None else str(config_file),
        "base model": metadata.get("base"),
        "digest of the base model": metadata.get("base_digest"),
        "form of the model": metadata.get("form"),
        "step of the model": metadata.get("step"),
        "digest of the packs": metadata.get("packs_digest"),
        "digest of the contract": evidence.contract_digest,
        "digest of the test rows": evidence.test_digest,
        "MLflow run": metadata.get("mlflow_run_id"),
        "version of the champion": evidence.champion_version,
    }
    return Reproduction(
        run_name=folder.path.name,
        commands="\n".join(f"instruct-ray {stage} --config {config}" for stage in STAGES),
        facts=tuple((name, redact(str(value))) for name, value in facts.items() if value is not None),
        versions=(("python", platform.python_version()), *_installed_versions()),
        config=_read_config(folder.path / "config.json"),
    )


def redact(text: str) -> str:
    """Remove user and password from URIs."""
    return re.sub(r"(://)[^/@\s\"]+@", r"\1…@", text)


def _read_config(path: Path) -> str:
    if not path.is_file():
        return ""
    values = json.loads(path.read_text())
    # The folder of the run differs between machines.
    values.get("run", {}).pop("storage", None)
    shown = {name: values[name] for name in SHOWN_SECTIONS if name in values}
    return redact(json.dumps(shown, indent=2, ensure_ascii=False))


def _installed_versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            # Optional: engines that are not installed here.
            continue
