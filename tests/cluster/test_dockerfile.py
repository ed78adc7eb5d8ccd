"""The Dockerfile: lint, user, base image, and what it copies."""

import subprocess

from tests.cluster.manifests import CLUSTER, PROGRAMS, ROOT

DOCKERFILE = CLUSTER / "Dockerfile"
LINES = DOCKERFILE.read_text().splitlines()


def test_linter_finds_nothing() -> None:
    result = subprocess.run([PROGRAMS / "hadolint", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("", 0)


def test_linter_finds_what_is_wrong() -> None:
    text = DOCKERFILE.read_text().replace('--constraint constraints.txt ".[${EXTRAS}]"', "requests")
    command = [PROGRAMS / "hadolint", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert "DL3013" in result.stdout


def test_image_needs_a_token_and_runs_without_root() -> None:
    assert "ENV RAY_AUTH_MODE=token" in LINES
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 1000:100"]


def test_base_image_has_the_cuda_of_torch() -> None:
    [base_image] = [line for line in LINES if line.startswith("ARG BASE_IMAGE=")]
    # The tag -gpu is an older CUDA.
    assert base_image.endswith("-py311-cu130")


def test_copied_paths_exist() -> None:
    copied = [
        path
        for line in LINES
        if line.startswith("COPY ")
        for path in [word for word in line.split()[1:] if not word.startswith("--")][:-1]
    ]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert {"jobs", "instruct_ray", "pyproject.toml", "constraints.txt"} <= set(copied)
