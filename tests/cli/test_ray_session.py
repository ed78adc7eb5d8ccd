"""A local Ray cluster that does not start, and the logs of one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray._private import services

from instruct_ray.cli.ray_session import init_ray
from instruct_ray.config.schema import Config
from instruct_ray.errors import RunFailedError

ROOT = Path(__file__).parents[2]
# A command whose stage only logs. Its last line is the folder of Ray's logs.
LOGGING_COMMAND = """
import logging, sys
import ray
from instruct_ray.cli.main import main
from instruct_ray.cli.ray_session import init_ray
from instruct_ray.cli.stages import prepare

def run(config):
    init_ray(1)
    ray.get(ray.remote(lambda: logging.getLogger("instruct_ray.here").warning("from a worker")).remote())
    logging.getLogger("instruct_ray.here").warning("from the driver")
    print(ray._private.worker._global_node.get_logs_dir_path(), flush=True)

prepare.run_prepare = run
main(["prepare", "--config", sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_node_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: Ray waits for 30 seconds."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def get_node(*_: object) -> None:
        raise RuntimeError("no node info")

    monkeypatch.setattr(services, "get_node", get_node)
    with pytest.raises(RunFailedError, match=r"^Ray did not start in time, which happens on a busy machine"):
        init_ray()


@pytest.mark.parametrize("encoding", ["JSON", None])
def test_lines_of_structured_logs_name_the_run(
    encoding: str | None, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(make_config(run={"name": "support"}).model_dump(mode="json")))
    variables = {"PYTHONPATH": str(ROOT)} | ({"RAY_LOGGING_CONFIG_ENCODING": encoding} if encoding else {})
    result = subprocess.run(
        [sys.executable, "-c", LOGGING_COMMAND, str(file)],
        env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    of_workers = [
        line
        for path in Path(result.stdout.splitlines()[-1]).glob("worker-*.err")
        for line in path.read_text().splitlines()
        if "from a worker" in line
    ]
    lines = [*result.stderr.splitlines(), *of_workers]
    if encoding is None:
        assert lines == ["from the driver", "from a worker"]
        return
    records = [json.loads(line) for line in lines]
    assert [(one["run"], one["name"], one["levelname"], one["message"]) for one in records] == [
        ("support", "instruct_ray.here", "WARNING", f"from {place}") for place in ("the driver", "a worker")
    ]
    assert all(one["job_id"] for one in records)
