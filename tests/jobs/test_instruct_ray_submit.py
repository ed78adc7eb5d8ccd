"""`instruct-ray submit` and `runs` on a cluster that requires a token, over HTTP."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from instruct_ray.config.schema import Config
from tests.token_cluster import TOKEN

ROOT = Path(__file__).parents[2]
INSTRUCT_RAY = (sys.executable, "-m", "instruct_ray")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def config_file(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A config whose gate refuses a random model, and whose engines take all CPUs of the cluster."""
    config = make_config(
        registry={"gate": {}},
        serving={"num_cpus": 4},
        # Ray agrees that a node without a label is one with another value.
        train={"label_selector": {"market": "spot", "zone": "!eu"}},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return path


@pytest.fixture
def submit(dashboard: str, environment: dict[str, str], config_file: Path) -> Run:
    """Runs `instruct-ray submit` as a user does."""

    def run(*arguments: str, address: str = dashboard, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [*INSTRUCT_RAY, "submit", *arguments, "--config", str(config_file), "--address", address]
        return subprocess.run(
            command, env=environment | variables, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def list_job_ids(dashboard: str) -> set[str]:
    """The jobs that were submitted, without those that looked at the cluster before."""
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return {job["submission_id"] for job in json.load(response) if "run" in job["metadata"]}


def test_pipeline_runs_all_stages_once_and_exits_as_the_gate_says(
    submit: Run, dashboard: str, environment: dict[str, str], make_config: Callable[..., Config]
) -> None:
    """More than 20 seconds: four stages for real.

    An engine of `evaluate` takes all CPUs, so it would wait for ever if the stage before held any.
    """
    first = submit("pipeline")
    assert first.returncode == 3, first.stdout + first.stderr
    headings = [line for line in first.stdout.splitlines() if line.startswith("── ")]
    assert headings == ["── 1/4 prepare", "── 2/4 tune", "── 3/4 evaluate", "── 4/4 register"]
    assert "is refused by the gate; champion stays unset" in first.stdout.strip().splitlines()[-1]
    assert first.stderr == ""

    again = submit("pipeline")
    assert again.returncode == 3
    for text in ("already prepared", "already tuned", "already evaluated", "already registered"):
        assert text in again.stdout

    storage = make_config().run.storage
    command = [*INSTRUCT_RAY, "runs", "--address", dashboard]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    [line] = [line for line in listed.splitlines() if line.startswith("tiny ")]
    for text in ("registered", "tiny/1", "failed (3)"):
        assert text in line
    local = subprocess.run(
        [*INSTRUCT_RAY, "runs", "--storage", str(storage)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "registered" in local


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (
            "tune",
            ("train.use_gpu=true",),
            "1 CPU and 1 GPU on nodes with market=spot, zone=!eu plus 1 CPU",
        ),
        ("pipeline", ("serving.num_gpus=2",), "serving.num_gpus=2: no node has so many GPUs"),
        ("tune", ("train.label_selector={market: on-demand}",), "change train.label_selector, which no node matches"),
        ("prepare", ("data.sources=[nowhere/x.jsonl]",), f"the cluster has no {ROOT}/nowhere/x.jsonl; copy it"),
        ("prepare", ("model.base=package:no_such_model",), "the cluster has no package no_such_model"),
    ],
)
def test_job_that_the_cluster_can_not_run_is_not_queued(
    submit: Run, dashboard: str, stage: str, overrides: tuple[str, ...], message: str
) -> None:
    before = list_job_ids(dashboard)
    result = submit(stage, *overrides)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list_job_ids(dashboard) == before


def test_token_and_address_are_checked(submit: Run) -> None:
    wrong = submit("tune", RAY_AUTH_TOKEN="another-token-for-tests-0123456789")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "refuses the token; set RAY_AUTH_TOKEN" in wrong.stderr
    nowhere = submit("tune", address="http://127.0.0.1:9")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert "http://127.0.0.1:9 can't be reached" in nowhere.stderr


def test_working_dir_that_is_too_large_is_not_sent(submit: Run, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    with (folder / "data" / "rows.jsonl").open("wb") as file:
        file.truncate(101 * 2**20)
    result = submit("prepare", f"--working-dir={folder}")
    assert result.returncode == 2
    assert "has 101 MiB, more than the 100 MiB that a cluster takes" in result.stderr
    assert "largest: data (101 MiB)" in result.stderr


def test_file_of_the_working_dir_is_found_on_the_cluster(
    submit: Run, tmp_path: Path, triples_file: Path, dashboard: str
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(triples_file.read_bytes())
    arguments = (f"--working-dir={folder}", "data.sources=[rows.jsonl]", "run.name=sent")
    result = submit("prepare", *arguments, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "prepared: " in result.stdout


def test_interrupted_command_says_that_the_job_goes_on(
    dashboard: str, environment: dict[str, str], config_file: Path
) -> None:
    # Stages that take longer than the interruption does.
    arguments = ["pipeline", "--config", str(config_file), "--address", dashboard, "run.name=interrupted"]
    command = [*INSTRUCT_RAY, "submit", *arguments]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that run in the background of a shell inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("── ") and "Running entrypoint" not in line:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on without this command" in errors
    assert f"ray job stop --address {dashboard} interrupted-pipeline-" in errors
    assert os.path.exists(config_file)
