"""The shell commands of the `ray up` files: syntax as the launcher wraps them, and those that run on any machine."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.docker import with_docker_exec
from ray.autoscaler._private.util import prepare_config

from tests.cluster.test_launcher import FILES, load

ON_HOST = ("initialization_commands",)
IN_CONTAINER = (
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands",
)  # fmt: skip
# Programs that are not here, or would change this machine. They append what they are asked for to a file.
STAND_INS = {
    "sudo": 'exec "$@"',
    "dpkg": "exit 1",
    "apt-get": 'echo "apt-get $*" >> "$CALLS"',
    "mount": 'echo "mount $*" >> "$CALLS"; exec /bin/mount -t tmpfs none "${@: -1}"',
}


def wrapped_commands(name: str) -> list[str]:
    """All commands of a file as they reach the shell of a machine; Ray's defaults are filled in."""
    config = prepare_config(load(name))
    on_host = [" ".join(_with_interactive(command)) for key in ON_HOST for command in config[key]]
    in_container = [" ".join(_with_interactive(command)) for key in IN_CONTAINER for command in config[key]]
    return on_host + with_docker_exec(in_container, config["docker"]["container_name"], "docker")


@pytest.mark.parametrize("name", FILES)
def test_commands_are_valid_for_the_shell(name: str) -> None:
    commands = wrapped_commands(name)
    assert len([command for command in commands if "ray start" in command]) == 2
    for command in commands:
        check_syntax(command)
        # What is quoted for the shell in the container, or for the login shell.
        for script in _inner_scripts(command):
            check_syntax(script)


def _inner_scripts(command: str) -> list[str]:
    """The arguments of `bash -c`, from outside to inside."""
    *words, script = shlex.split(command)
    assert "bash" in " ".join(words)
    return [script, *(_inner_scripts(script) if script.startswith("bash --login") else [])]


def check_syntax(script: str) -> None:
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, ""), script


def test_broken_command_is_found() -> None:
    command = " ".join(_with_interactive("mountpoint -q /mnt/shared || (sudo mount"))
    with pytest.raises(AssertionError, match="sudo mount"):
        check_syntax(_inner_scripts(command)[0])


def test_ray_is_started_on_aws_as_on_machines_that_it_was_run_on() -> None:
    """tests/multinode runs the commands of the file for own machines."""
    aws, on_premises = load("aws"), load("on-premises")
    # There the type of the node says that the head has no CPUs for tasks.
    assert aws["available_node_types"]["head"]["resources"] == {"CPU": 0}
    started = [command.replace(" --num-cpus=0", "") for command in on_premises["head_start_ray_commands"]]
    assert aws["head_start_ray_commands"] == started
    assert aws["worker_start_ray_commands"] == on_premises["worker_start_ray_commands"]


class RunOnHost:
    """Runs commands one after the other, as `ray up` does, and again."""

    def __init__(self, folder: Path) -> None:
        self._calls = folder / "calls"
        self._environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self._calls)}

    def __call__(self, *commands: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Returns the result, and what the stand-ins were asked for."""
        self._calls.write_text("")
        lines = ["/bin/mount -t tmpfs none /mnt", *(f"bash -c {shlex.quote(command)}" for command in commands)]
        result = subprocess.run(
            ["unshare", "--mount", "bash", "-e"], input="\n".join(lines), env=self._environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return result, self._calls.read_text().splitlines()


@pytest.fixture
def run_on_host(tmp_path: Path) -> RunOnHost:
    """A shell with STAND_INS, whose /mnt is its own."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a /mnt of its own")
    for name, script in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return RunOnHost(tmp_path)


def test_machines_on_aws_get_the_shared_folder_once(run_on_host: RunOnHost) -> None:
    """Its NFS is a stand-in, everything else is done."""
    commands = load("aws")["initialization_commands"]
    # `ray up` runs them again on a machine that it has started before.
    result, calls = run_on_host(*commands, *commands, "stat -c %u:%g /mnt/shared", "mountpoint /mnt/shared")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["1000:100", "/mnt/shared is a mountpoint"]
    [mount] = [call for call in calls if call.startswith("mount ")]
    assert mount.startswith("mount -t nfs4 -o nfsvers=4.1,")
    assert mount.endswith(".efs.us-west-2.amazonaws.com:/ /mnt/shared")
    assert "apt-get install -y -o DPkg::Lock::Timeout=300 nfs-common" in calls


def test_own_machine_without_the_shared_folder_is_refused(run_on_host: RunOnHost) -> None:
    commands = load("on-premises")["initialization_commands"]
    assert run_on_host(*commands)[0].returncode != 0
    assert run_on_host("mkdir /mnt/shared", *commands)[0].returncode != 0
    prepared = ("mkdir /mnt/shared", "/bin/mount -t tmpfs none /mnt/shared")
    assert run_on_host(*prepared, *commands)[0].returncode == 0
