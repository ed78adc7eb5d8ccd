"""What `submit` and `runs` refuse before they ask a cluster, and configs from standard input."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from instruct_ray.cli.main import main
from instruct_ray.config.load import load_config
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.submission.access import Access


@pytest.fixture
def run_refused(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run a command that must be refused, and return its message."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, config: bool = True) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main([*arguments, *(["--config", str(path)] if config else [])])
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return run


def test_submit_needs_an_address_and_a_known_stage(run_refused: Callable[..., str]) -> None:
    assert "no cluster is named: give --address http://HEAD:8265" in run_refused("submit", "tune")
    assert "is not the address of a dashboard" in run_refused("submit", "tune", "--address", "ray://head:10001")
    assert "is not the address of a dashboard" in run_refused("submit", "tune", "--address", "http://[::1")
    assert "'tunes' can't be submitted; choose one of prepare, tune" in run_refused("submit", "tunes")


def test_submit_checks_the_config_here(run_refused: Callable[..., str]) -> None:
    assert "unknown key train.epoch" in run_refused("submit", "tune", "train.epoch=3")
    assert "run.storage: runs is relative" in run_refused("submit", "tune", "run.storage=runs")
    for key, value in (
        ("registry.uri", "postgresql://me:secret@db/mlflow"),
        ("serving.tracing.uri", "http://me:secret@mlflow"),
        ("evidence.arms", "[{name: x, model: x, base_url: 'http://me:secret@host/v1'}]"),
    ):
        message = run_refused("submit", "tune", f"{key}={value}")
        assert key in message and "it has a password" in message
        assert "secret" not in message


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265x", "http://head..svc:8265", "http://127.0.0.1:9"])
def test_address_that_nothing_answers_at_is_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["runs", "--address", address])
    message = capsys.readouterr().err
    assert message.startswith(f"error: {address} can't be reached (") and message.count("\n") == 1


def test_runs_needs_a_folder_or_a_cluster(run_refused: Callable[..., str]) -> None:
    assert "--storage: no folder /nowhere" in run_refused("runs", "--storage", "/nowhere", config=False)
    assert "no cluster is named" in run_refused("runs", config=False)


def test_config_is_read_from_standard_input(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(config.model_dump(mode="json"))))
    assert load_config(Path("-"), ["train.epochs=3"]).train.epochs == 3


@pytest.mark.parametrize(
    ("address", "dashboard_host", "is_open"),
    [
        ("http://10.0.0.5:8265", None, True),
        ("http://127.0.0.1:8265", None, False),
        ("http://127.0.0.1:8265", "127.0.0.1", False),
        # A forwarded port of a dashboard that other machines reach.
        ("http://localhost:8265", "10.0.0.5", True),
    ],
)
def test_cluster_without_a_token_is_refused_if_others_reach_it(
    address: str, dashboard_host: str | None, is_open: bool
) -> None:
    Access(address, asks_for_token=True, allow_open=False).check_closed(dashboard_host)
    Access(address, asks_for_token=False, allow_open=True).check_closed(dashboard_host)
    access = Access(address, asks_for_token=False, allow_open=False)
    if is_open:
        with pytest.raises(InputError, match="runs jobs of anyone who reaches it"):
            access.check_closed(dashboard_host)
    else:
        access.check_closed(dashboard_host)
