"""Bad input: one clear line, exit code 2, nothing half made."""

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
def refusal(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a stage in-process that must be refused before Ray starts; returns the message."""

    def run(stage: str, *arguments: str, config: Path = config_file) -> str:
        def start_ray(min_cpus: int = 0) -> None:
            pytest.fail("Ray was started for bad input")

        monkeypatch.setattr(ray_session, "init_ray", start_ray)
        # The cluster of the other tests stays.
        monkeypatch.setattr(ray_session, "shut_down_ray", lambda: None)
        with pytest.raises(SystemExit) as stopped:
            main([stage, "--config", str(config), *arguments])
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert message.startswith("error: ")
        return message

    return run


def test_an_unknown_key(refusal: Callable[..., str]) -> None:
    assert "unknown key train.epoch; did you mean epochs?" in refusal("prepare", "train.epoch=2")


def test_a_missing_config(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "no such config file" in refusal("prepare", config=tmp_path / "none.yaml")


def test_a_missing_source(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "no file /nowhere/x.jsonl" in refusal("prepare", "data.sources=[/nowhere/x.jsonl]")
    assert not (tmp_path / "runs").exists()


def test_an_empty_source(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl is empty" in refusal("prepare", f"data.sources=[{tmp_path}/empty.jsonl]")


def test_a_base_that_is_not_there(refusal: Callable[..., str]) -> None:
    assert "model.base: no folder ./nowhere" in refusal("prepare", "model.base=./nowhere")


@pytest.mark.parametrize(
    ("stage", "predecessor"),
    [("tune", "prepare"), ("evaluate", "tune"), ("register", "evaluate"), ("serve", "register")],
)
def test_a_stage_without_its_predecessor(
    refusal: Callable[..., str], stage: str, predecessor: str, tmp_path: Path
) -> None:
    assert f"run `instruct-ray {predecessor}`" in refusal(stage)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "no tuned model; run `instruct-ray tune` with this config, or give a --model"),
        ("/nowhere", "--model: no folder /nowhere"),
        ("models:/tiny@champion", "nothing is registered"),
    ],
)
def test_generating_with_a_model_that_is_not_there(
    refusal: Callable[..., str], tmp_path: Path, triples_file: Path, model: str | None, message: str
) -> None:
    arguments = ["--input", str(triples_file), "--output", str(tmp_path / "answers")]
    assert message in refusal("generate", *arguments, *([] if model is None else ["--model", model]))
    assert not (tmp_path / "answers").exists()


def test_generating_from_an_input_that_is_not_there(
    refusal: Callable[..., str], base_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(base_folder, tmp_path / "model"))
    derive_renderer(model, None).contract.save(model / "contract.json")
    arguments = ["--input", "/nowhere/q: 1.jsonl", "--output", "/nowhere/out", "--model", str(model)]
    assert refusal("generate", *arguments) == "error: data.sources: no file /nowhere/q: 1.jsonl\n"


def test_the_program_itself_exits_with_2(config_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", "--config", str(config_file), "train.zero_stage=9"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {config_file}: train.zero_stage: Input should be 0, 1, 2 or 3"
