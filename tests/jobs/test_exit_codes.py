"""Bad input of a stage: one line on stderr, exit code 2, no output, and Ray is not started."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from instruct_ray.cli import ray_session
from instruct_ray.cli.main import main
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.derive_contract import derive_renderer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    return path


@pytest.fixture
def run_refused(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a stage in this process that must be refused before Ray starts; returns the message."""

    def start_ray(min_cpus: int = 0) -> None:
        pytest.fail("Ray was started for bad input")

    def run(stage: str, *arguments: str, config: Path = config_file) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main([stage, "--config", str(config), *arguments])
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert message.startswith("error: ")
        return message

    monkeypatch.setattr(ray_session, "init_ray", start_ray)
    # The session's cluster is used by other tests.
    monkeypatch.setattr(ray_session, "shut_down_ray", lambda: None)
    return run


def test_unknown_key(run_refused: Callable[..., str]) -> None:
    assert "unknown key train.epoch; did you mean epochs?" in run_refused("prepare", "train.epoch=2")


def test_missing_config(run_refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such config file" in run_refused("prepare", config=tmp_path / "none.yaml")


def test_missing_source(run_refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no file /nowhere/x.jsonl" in run_refused("prepare", "data.sources=[/nowhere/x.jsonl]")
    assert not (tmp_path / "runs").exists()


def test_pipeline_ends_as_its_first_stage_that_fails(run_refused: Callable[..., str]) -> None:
    assert "no file /nowhere/x.jsonl" in run_refused("pipeline", "data.sources=[/nowhere/x.jsonl]")


def test_empty_source(run_refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl is empty" in run_refused("prepare", f"data.sources=[{tmp_path}/empty.jsonl]")


def test_missing_base_model(run_refused: Callable[..., str]) -> None:
    assert "model.base: no folder ./nowhere" in run_refused("prepare", "model.base=./nowhere")


@pytest.mark.parametrize(
    ("stage", "predecessor"),
    [("tune", "prepare"), ("evaluate", "tune"), ("register", "evaluate"), ("serve", "register")],
)
def test_stage_before_its_predecessor(
    run_refused: Callable[..., str], stage: str, predecessor: str, tmp_path: Path
) -> None:
    assert f"run `instruct-ray {predecessor}`" in run_refused(stage)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "no tuned model; run `instruct-ray tune` with this config or give --model"),
        ("/nowhere", "--model: no folder /nowhere"),
        ("models:/tiny@champion", "nothing is registered"),
    ],
)
def test_generate_with_a_missing_model(
    run_refused: Callable[..., str], tmp_path: Path, triples_file: Path, model: str | None, message: str
) -> None:
    arguments = ["--input", str(triples_file), "--output", str(tmp_path / "answers")]
    assert message in run_refused("generate", *arguments, *([] if model is None else ["--model", model]))
    assert not (tmp_path / "answers").exists()


def test_generate_from_a_missing_input(run_refused: Callable[..., str], base_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base_folder, tmp_path / "model"))
    derive_renderer(model, None).contract.save(model / "contract.json")
    arguments = ["--input", "/nowhere/q: 1.jsonl", "--output", "/nowhere/out", "--model", str(model)]
    assert run_refused("generate", *arguments) == "error: data.sources: no file /nowhere/q: 1.jsonl\n"


def test_job_process_exits_with_2(config_file: Path) -> None:
    result = run_job("prepare", "--config", str(config_file), "train.zero_stage=9")
    assert result.returncode == 2
    assert result.stderr.strip() == f"error: {config_file}: train.zero_stage: Input should be 0, 1, 2 or 3"


@pytest.mark.parametrize("job", ["prepare", "tune", "evaluate", "register", "serve", "generate", "pipeline", "demo"])
def test_every_job_has_help(job: str) -> None:
    result = run_job(job, "--help")
    assert result.returncode == 0
    assert "usage: " in result.stdout.lower()
    assert "SECTION.KEY=VALUE" in result.stdout


def run_job(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"jobs.{job}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
