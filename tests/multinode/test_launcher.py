"""The commands of the on-premises `ray up` file, as the launcher runs them, and a job on the cluster they make."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mlflow_server import responds
from tests.multinode import workloads
from tests.multinode.documents import CLUSTER
from tests.multinode.hosts import Host, Mount
from tests.multinode.pods import (
    IMAGE_USER,
    IMAGE_WORKDIR,
    ROOT,
    TEST_ENVIRONMENT,
    Namespace,
    image_environment,
)

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(600)]

LAUNCHER: dict[str, Any] = yaml.safe_load((CLUSTER / "launcher" / "on-premises.yaml").read_text())
TOKEN_PATH = "/home/ray/.ray/auth_token"
# The launcher puts it on the head: the cluster's file, from which the autoscaler would start machines.
BOOTSTRAP_PATH = "/home/ray/ray_bootstrap_config.yaml"
# Two cores can't bear what Ray would take by default.
SMALL = {"head": "", "worker": "--num-cpus=4"}

PRINT_STATUS = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1]).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def environment(**variables: str) -> dict[str, str]:
    """The environment in the container that the file's `docker` section starts."""
    options = [option.split(maxsplit=1)[1] for option in LAUNCHER["docker"]["run_options"] if "--env " in option]
    from_options = dict(option.split("=", 1) for option in options)
    return image_environment() | TEST_ENVIRONMENT | from_options | variables


@pytest.fixture(scope="module")
def head(namespace: Namespace, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The head of a cluster that has one worker."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "auth_token").write_text("a-token-of-the-launcher-0123456789\n")
    # No machines are started: the autoscaler of the tests has none.
    bootstrap = LAUNCHER | {"provider": {"type": "local", "head_ip": "launcher-head", "worker_ips": []}, "auth": {}}
    (folder / "bootstrap.yaml").write_text(yaml.safe_dump(bootstrap))
    assert TOKEN_PATH in LAUNCHER["file_mounts"]
    mounts = [
        Mount(ROOT, IMAGE_WORKDIR, read_only=True),
        Mount(shared, workloads.MOUNT),
        Mount(folder / "auth_token", TOKEN_PATH, read_only=True),
        Mount(folder / "bootstrap.yaml", BOOTSTRAP_PATH),
    ]
    hosts: list[Host] = []
    for role in ("head", "worker"):
        name = f"launcher-{role}"
        host = namespace.network.add_host(name, namespace.network.reserve_address(name))
        commands = [
            f"{command} {SMALL[role]} --object-store-memory={100 * 2**20}" if "ray start" in command else command
            for command in LAUNCHER[f"{role}_start_ray_commands"]
        ]
        # The container of the launcher does nothing itself; Ray runs in the background.
        script = "; ".join([*commands, "sleep infinity"])
        hosts.append(host)
        variables = environment(RAY_HEAD_IP=hosts[0].address)
        host.start(["/bin/bash", "-c", script], variables, mounts, IMAGE_USER, IMAGE_WORKDIR)
        wait_until(lambda host=host: "Ray runtime started" in host.log, host)
    yield hosts[0]
    for host in hosts:
        namespace.network.remove_host(host)


def wait_until(condition: Any, host: Host, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, host.log
        time.sleep(0.5)


def test_only_the_head_reaches_its_dashboard(head: Host) -> None:
    """Users reach it through the tunnel of `ray dashboard`."""
    assert not responds(f"http://{head.address}:8265/api/version")
    # Without the token.
    refused = head.run(["python", "-c", PRINT_STATUS, "http://127.0.0.1:8265/api/jobs/"], environment(), IMAGE_USER)
    assert refused.stdout.strip() in ("401", "403"), refused


def test_a_job_runs_on_the_cluster(head: Host, shared: Path) -> None:
    """As in the comments of the file, without a server of MLflow."""
    command = f"--config {workloads.CONFIG_FILE} run.name=launched train.num_workers=1"
    stages = " && ".join(f"python -m jobs.{stage} {command}" for stage in ("prepare", "tune"))
    submit = ["ray", "job", "submit", "--address=http://127.0.0.1:8265", "--entrypoint-num-cpus=1", "--"]
    result = head.run([*submit, "bash", "-c", stages], environment(), IMAGE_USER, timeout=240)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert workloads.metrics_file(shared, "launched").read_text().count("\n") == 8 * workloads.STEPS_PER_EPOCH
