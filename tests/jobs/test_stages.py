"""The stages end to end on the tiny model: from triples to a registered version."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from instruct_ray.cli.learning_curve import run_learning_curve
from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.generate import run_generate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.tracking.tracked_run import load_tracking_record

PORT = 8765
URL = f"http://127.0.0.1:{PORT}/v1"


@pytest.fixture(scope="module")
def config(registered: Config) -> Config:
    """A run that is registered as a version."""
    return registered


def test_evidence_is_in_mlflow_with_its_report_and_answers_once(config: Config) -> None:
    run_evaluate(config)
    client, run_id = connect_mlflow(tracking_uri(config)), load_tracking_record(config).run_id
    names = {artifact.path for artifact in client.list_artifacts(run_id, "evidence")}
    assert names == {"evidence/evidence.json", "evidence/report.html", "evidence/answers.json"}
    table = json.loads(Path(client.download_artifacts(run_id, "evidence/answers.json")).read_text())
    columns = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    answers_file = RunFolder.from_config(config).evidence_file.with_name("answers.jsonl")
    rows = [json.loads(line) for line in answers_file.read_text().splitlines()]
    assert list(columns["id"]) == [row["id"] for row in rows]
    assert list(columns["answer.tuned"]) == [row["answers"]["tuned"]["text"] for row in rows]


@pytest.mark.slow
def test_learning_curve_has_a_point_for_each_part_and_repeats_nothing(config: Config) -> None:
    run_learning_curve(config, [0.5])
    folder = RunFolder.from_config(config)
    written = json.loads((folder.evidence_file.parent / "learning_curve.json").read_text())
    half, whole = written["points"]
    assert (half["fraction"], whole["fraction"]) == (0.5, 1.0)
    assert 0 < half["num_rows"] < whole["num_rows"]
    evidence = json.loads(folder.evidence_file.read_text())
    assert whole["accuracy"] == evidence["arms"]["tuned"]["accuracy"]
    # The tiny data has too few rows to tell more.
    assert written["doubling"] is None
    [part] = (folder.path / "learning_curve").glob("*-percent")
    assert (part / "test.jsonl").read_bytes() == folder.test_rows_file.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in part.rglob("*") if path.is_file()}
    run_learning_curve(config, [0.5])
    assert {path: path.stat().st_mtime_ns for path in part.rglob("*") if path.is_file()} == before


def test_learning_curve_needs_an_evaluated_run(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="no answers; run `instruct-ray evaluate`"):
        run_learning_curve(make_config(), [0.5])
    with pytest.raises(InputError, match="--fraction 1: give fractions of the training rows between 0 and 1"):
        run_learning_curve(make_config(), [1.0])


def test_run_folder_holds_the_results_of_all_stages(config: Config) -> None:
    folder = RunFolder.from_config(config)
    for path in (
        folder.test_rows_file,
        folder.metrics_file,
        folder.contract_file,
        folder.evidence_file,
        folder.version_file,
    ):
        assert path.is_file(), path
    assert (folder.model_dir / "model.safetensors").is_file()
    assert list(folder.packs_dir.glob("*/manifest.json"))
    assert list(folder.ray_train_dir.glob("checkpoint-*"))
    assert not [path for path in folder.path.rglob("*") if path.suffix in (".pkl", ".bin")]


def test_evidence_compares_all_arms(config: Config) -> None:
    folder = RunFolder.from_config(config)
    evidence = json.loads(folder.evidence_file.read_text())
    assert list(evidence["arms"]) == ["zero_shot", "few_shot_3", "tuned"]
    assert evidence["arms"]["few_shot_3"]["prompt_tokens"] > 2 * evidence["arms"]["tuned"]["prompt_tokens"]
    assert all(arm["latency"]["p50"]["value"] > 0 for arm in evidence["arms"].values())
    assert list(evidence["comparisons"]) == ["tuned - zero_shot", "tuned - few_shot_3"]
    assert evidence["verdict"]["outcome"] in ("tune", "prompt instead", "not settled")
    # The random base never stops, so the limit cuts its answers, and the evidence says so.
    num_cut = evidence["arms"]["zero_shot"]["num_cut"]
    assert num_cut > 0
    [note] = evidence["notes"]
    assert f"cut at evidence.max_new_tokens=4: {num_cut} of {evidence['num_test']} answers of zero_shot" in note
    answers = folder.evidence_file.with_name("answers.jsonl").read_text().splitlines()
    assert len(answers) == evidence["num_test"] == len(folder.test_rows_file.read_text().splitlines())


@pytest.mark.parametrize("stage", [run_prepare, run_tune, run_evaluate, run_register])
def test_finished_stage_does_nothing_and_reports_it(
    config: Config, capsys: pytest.CaptureFixture[str], stage: Callable[[Config], None]
) -> None:
    stage(config)
    assert "already " in capsys.readouterr().out


def test_version_has_tags_of_its_origin(config: Config) -> None:
    version = ModelRegistry(tracking_uri(config)).resolve("models:/tiny@champion")
    assert version.number == "1"
    assert {"run", "base", "base_digest", "form", "data_digest", "contract_digest"} <= version.tags.keys()


def test_version_holds_the_tuned_weights_and_no_pickle(config: Config, tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri(config))
    folder = registry.download(registry.resolve("models:/tiny/1"), tmp_path)
    tuned = load_file(RunFolder.from_config(config).model_dir / "model.safetensors")
    downloaded = load_file(folder / "model.safetensors")
    assert all((downloaded[name] == tensor).all() for name, tensor in tuned.items())
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md", ".parquet", ".html"}
    assert (folder / "report.html").is_file()


def test_rerun_of_a_killed_registration_makes_no_second_version(config: Config) -> None:
    RunFolder.from_config(config).version_file.unlink()
    run_register(config)
    assert ModelRegistry(tracking_uri(config)).aliases("tiny") == {"champion": "1"}


def test_generate_gives_the_same_answers_with_the_version_and_the_run(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {}
    for name, model in (("version", "models:/tiny@champion"), ("run", None)):
        run_generate(config, model, tmp_path / name)
        assert "generated: 64 rows" in capsys.readouterr().out
        answers[name] = "".join(part.read_text() for part in sorted((tmp_path / name).glob("part-*")))
    assert answers["version"] == answers["run"]
    assert {json.loads(line)["finish_reason"] for line in answers["run"].splitlines()} <= {"stop", "length"}


def test_mlflow_run_has_params_and_metrics(config: Config) -> None:
    client = ModelRegistry(tracking_uri(config)).client
    run_id = json.loads((RunFolder.from_config(config).path / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    lines = RunFolder.from_config(config).metrics_file.read_text().splitlines()
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rate"] == "0.01"
    assert len(client.get_metric_history(run_id, "loss")) == len(lines)
