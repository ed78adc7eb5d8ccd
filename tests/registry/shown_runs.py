"""Runs with evidence and a metrics file as a real training leaves them, registered for a look at MLflow's pages."""

import json
import random
from pathlib import Path

from instruct_ray.config.schema import Config
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.registry.register import register
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.tracking.tracked_run import TrackedRun
from tests.evidence.report import folders
from tests.fakes import ignore_status
from tests.registry.fake_runs import make_contract, make_run

# Of each run: its name, its learning rate, how often its tuned model is right, and whether the gate is asked.
RUNS = (("lr-1e-4", 1e-4, 0.62, False), ("lr-2e-4", 2e-4, 0.87, False), ("lr-4e-4", 4e-4, 0.60, True))
ARMS = ("zero_shot", "few_shot_3", "tuned")


def register_runs(uri: str, storage: Path, name: str) -> list[str]:
    """Register three versions: the first is `previous` then, the second `champion`, the third `candidate`.

    Returns:
        The ids of their MLflow runs.
    """
    return [_register(uri, storage, name, *values) for values in RUNS]


def _register(uri: str, storage: Path, name: str, run: str, learning_rate: float, chance: float, gate: bool) -> str:
    rows = folders.label_rows()
    answers = folders.answer_rows(rows, ARMS, seed=1)
    rng = random.Random(run)
    answers["tuned"] = [row.expected if rng.random() < chance else "I can't tell" for row in rows]
    digest = make_contract().digest
    config = make_run(
        storage, run, folders.make_evidence(rows, answers, contract_digest=digest),
        registry={"uri": uri, "name": name, "gate": {} if gate else None}, train={"learning_rate": learning_rate},
    )  # fmt: skip
    _show_real_counts(config)
    run_id = _track(config, rng)
    register(config, ignore_status)
    return run_id


def _show_real_counts(config: Config) -> None:
    """Let the packs be those of the demo, as far as a page shows them."""
    [path] = RunFolder.from_config(config).packs_dir.glob("*/manifest.json")
    sources = [{"name": "incidents.jsonl", "sha256": "5f1c" * 16}]
    counts = {"num_read": 1010, "fates": {"trained": 764, "test": 246}, "sources": sources}
    path.write_text(json.dumps(json.loads(path.read_text()) | counts))


def _track(config: Config, rng: random.Random) -> str:
    """Upload the metrics of a run to an MLflow run in place of that of `make_run`, which has none."""
    folder = RunFolder.from_config(config)
    metadata = json.loads((folder.model_dir / MODEL_METADATA_FILE).read_text())
    lines = [
        {"step": n, "loss": round(0.25 + 2.2 * 0.94**n + 0.1 * rng.random(), 4), "lr": 1e-4, "time": 1.79e9 + n}
        for n in range(1, 81)
    ]
    atomic_write_text(folder.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
    connect_mlflow(tracking_uri(config)).delete_run(metadata["mlflow_run_id"])
    tracked = TrackedRun(config, ignore_status)
    tracked.start()
    assert tracked.finish("FINISHED") and tracked.id is not None
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, metadata | {"mlflow_run_id": tracked.id})
    return tracked.id
