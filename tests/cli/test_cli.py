"""The operator's desk (promote and rollback are tested on a real registry in jobs/test_way.py)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from instruct_ray.cli import ray_session
from instruct_ray.cli.main import main
from instruct_ray.config.schema import Config

RUN = "import sys; from instruct_ray.cli.main import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules, file=sys.stderr)"


@pytest.fixture
def config_file(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    return path


def modules_after(*arguments: str) -> tuple[str, set[str]]:
    """(what a command printed, the modules it imported)"""
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, set(done.stderr.split())


def test_the_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema"])
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["run", "model", "data", "registry"]
    assert schema["$defs"]["TrainConfig"]["properties"]["zero_stage"]["description"].startswith("DeepSpeed ZeRO")


def test_the_schema_needs_no_heavy_library() -> None:
    said, modules = modules_after("schema")
    assert json.loads(said)
    assert not modules & {"torch", "transformers", "ray", "mlflow", "pyarrow", "rich.console"}


def test_a_preview_needs_no_ray_and_writes_nothing(config_file: Path, tmp_path: Path) -> None:
    said, modules = modules_after("preview", "--config", str(config_file), "-n", "3", "data.pack_tokens=512")
    assert not modules & {"ray", "deepspeed", "mlflow"}
    assert "── 3. triples.jsonl, row " in said
    assert "to compute in 1 pack of up to 512" in said
    assert "\x1b" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.sources=[/nowhere/x.jsonl]",), "no file /nowhere/x.jsonl"),
        (("model.base=./nowhere",), "model.base: no folder ./nowhere"),
        (("data.source=x",), "unknown key data.source; did you mean sources?"),
        (("-n", "0"), "-n 0: from 1 to 1000 rows can be previewed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["preview", "--config", str(config_file), *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ") and message in said


def test_the_doctor_says_what_would_come_of_it(config_file: Path) -> None:
    code = "from instruct_ray.cli.main import main; main()"
    # More workers than the machine may have cores: the local cluster counts enough.
    command = [sys.executable, "-c", code, "doctor", "--config", str(config_file), "train.num_workers=6"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    said = " ".join(done.stdout.split())
    assert "placement ok 6 worker(s) on 1 of 1 node(s)" in said
    assert "memory ok 6 worker(s) on " in said
    assert "packs warning not prepared yet" in said


@pytest.mark.usefixtures("ray_4_cpus")
def test_the_doctor_refuses_what_can_not_work(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests go on in this cluster.
    monkeypatch.setattr(ray_session, "shut_down_ray", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--config", str(config_file), "train.use_gpu=true", "train.num_workers=64"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "placement error" in " ".join(said.out.split())
    assert said.err.splitlines()[-1].startswith("error: placement: 64 worker(s) of 1 CPU and 1 GPU beside 1 CPU")
