"""The `instruct-ray` command: help, completion, usage errors, and the commands that inspect a run.

The stages are tested in tests/jobs, the commands of the registry in tests/registry/test_commands.py.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.models import CommandInfo

from instruct_ray.cli import ray_session
from instruct_ray.cli.main import CLUSTER, INSPECT, REGISTRY, STAGES, app, main
from instruct_ray.config.schema import Config

HEAVY_LIBRARIES = {"torch", "transformers", "ray", "deepspeed", "mlflow", "pyarrow"}
RUN_MAIN = "from instruct_ray.cli.main import main; main()"
# Prints the names of all imported modules to stderr at the end.
LIST_MODULES = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"


def command_name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.callback.__name__.replace("_", "-")


@pytest.fixture
def config_file(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    return path


def run_and_list_modules(*arguments: str) -> tuple[str, set[str]]:
    """Run a command in a process without a terminal; returns its output and the modules that it imported."""
    command = [sys.executable, "-c", LIST_MODULES + RUN_MAIN, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout, set(result.stderr.split())


def read_usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that exits with 2; returns what it printed to stderr, on one line."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_help_lists_every_command_in_its_group() -> None:
    output, modules = run_and_list_modules("--help")
    assert not modules & HEAVY_LIBRARIES
    assert "\x1b" not in output
    names = (STAGES, INSPECT, CLUSTER, REGISTRY)
    positions = [output.index(group) for group in names]
    assert positions == sorted(positions)
    ends = [*positions[1:], len(output)]
    groups = {name: output[start:end] for name, start, end in zip(names, positions, ends, strict=True)}
    for command in app.registered_commands:
        assert re.search(rf"^│ {command_name(command)} ", groups[str(command.rich_help_panel)], re.MULTILINE)


@pytest.mark.parametrize("command", [command_name(command) for command in app.registered_commands])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"Usage: instruct-ray {command}" in capsys.readouterr().out


def test_shell_completion_completes_commands() -> None:
    environment = {**os.environ, "_INSTRUCT_RAY_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "instruct-ray tu", "COMP_CWORD": "1"}
    result = subprocess.run([sys.executable, "-c", RUN_MAIN], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["tune"]


def test_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such command 'tun'. Did you mean 'tune'?" in read_usage_error(capsys, "tun", "--config", "x.yaml")


def test_mistyped_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such option: --confg (Possible options: --config)" in read_usage_error(
        capsys, "tune", "--confg", "x.yaml"
    )


def test_mistyped_config_key_gets_a_suggestion(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = read_usage_error(capsys, "tune", "--config", str(config_file), "train.epoch=2")
    assert message == f"error: {config_file}: unknown key train.epoch; did you mean epochs?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune",), "Missing option '--config'"),
        (("generate", "--config", "x.yaml", "--input", "x.jsonl"), "Missing option '--output'"),
        (("promote", "tiny", "--config", "x.yaml"), "Missing argument 'VERSION'"),
        (("preview", "--config", "x.yaml", "-n", "many"), "Invalid value for '-n' / '--num-rows'"),
    ],
)
def test_usage_error_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert message in read_usage_error(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.sources=[/nowhere/x.jsonl]",), "no file /nowhere/x.jsonl"),
        (("model.base=./nowhere",), "model.base: no folder ./nowhere"),
        (("data.source=x",), "unknown key data.source; did you mean sources?"),
        (("train.weight_decay=-1",), "train.weight_decay: Input should be greater than or equal to 0"),
        (("-n", "0"), "-n 0: from 1 to 1000 rows can be previewed"),
    ],
)
@pytest.mark.parametrize("is_before_options", [False, True])
def test_bad_input_is_one_line_and_exits_with_2(
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    is_before_options: bool,
) -> None:
    options = ("--config", str(config_file))
    with pytest.raises(SystemExit) as exit_info:
        main(["preview", *arguments, *options] if is_before_options else ["preview", *options, *arguments])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ") and message in error


def test_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["schema"])
    assert exit_info.value.code == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["run", "model", "data", "registry"]
    assert "DeepSpeed ZeRO" in schema["$defs"]["TrainConfig"]["properties"]["zero_stage"]["description"]


def test_schema_imports_no_heavy_library() -> None:
    output, modules = run_and_list_modules("schema")
    assert json.loads(output)
    assert not modules & (HEAVY_LIBRARIES | {"rich.console"})


def test_preview_needs_no_ray_and_writes_nothing(config_file: Path, tmp_path: Path) -> None:
    output, modules = run_and_list_modules("preview", "--config", str(config_file), "-n", "3", "data.pack_tokens=512")
    assert not modules & {"ray", "deepspeed", "mlflow"}
    assert "── 3. triples.jsonl, row " in output
    assert "to compute in 1 pack of up to 512" in output
    assert "\x1b" not in output
    assert not (tmp_path / "runs").exists()


def test_doctor_prints_its_findings(config_file: Path) -> None:
    # More workers than the machine may have cores: the local cluster is started with enough CPUs.
    command = [sys.executable, "-c", RUN_MAIN, "doctor", "--config", str(config_file), "train.num_workers=6"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    output = " ".join(result.stdout.split())
    assert "placement ok 6 worker(s) on 1 of 1 node(s)" in output
    assert "memory ok 6 worker(s) on " in output
    assert "packs warning not prepared yet" in output


@pytest.mark.usefixtures("ray_4_cpus")
def test_doctor_exits_with_2_if_a_check_fails(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests use this cluster too.
    monkeypatch.setattr(ray_session, "shut_down_ray", lambda: None)
    with pytest.raises(SystemExit) as exit_info:
        main(["doctor", "--config", str(config_file), "train.use_gpu=true", "train.num_workers=64"])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert "placement error" in " ".join(captured.out.split())
    assert captured.err.splitlines()[-1].startswith("error: placement: 64 worker(s) of 1 CPU and 1 GPU plus 1 CPU")
