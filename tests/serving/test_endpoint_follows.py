"""The endpoint follows decisions of the registry under load, without a failed request."""

import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from instruct_ray.cli.main import main
from instruct_ray.config.schema import Config
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.version_files import MANIFEST_TAG
from tests.serving.endpoint import PORT, client


def run_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0


def add_copy(endpoint_config: Config, *, tags: dict[str, str] | None = None) -> str:
    """Register the files of version 1 again, under the next number."""
    registry = ModelRegistry(tracking_uri(endpoint_config))
    first, source = registry.resolve("models:/tiny/1"), registry.client.get_model_version("tiny", "1").source
    version = registry.client.create_model_version("tiny", source=source, tags=first.tags | (tags or {}))
    return str(version.version)


def wait_for_health(key: str, text: str | None) -> None:
    """Wait until /health has a value, or one that contains a text."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        value = client.get(f"http://127.0.0.1:{PORT}/health").json()[key]
        if value == text or (text is not None and value is not None and text in value):
            return
        time.sleep(0.2)
    raise AssertionError(f"{key} is {value!r} and not {text!r}")


def wait_until_previous_answers(endpoint: openai.OpenAI) -> None:
    """Wait until version 1 is `previous`."""
    end, names = time.monotonic() + 60, set[str]()
    while "tiny@previous" not in names and time.monotonic() < end:
        names = {model.id for model in endpoint.models.list()}
        time.sleep(0.2)
    messages: list[Any] = [{"role": "user", "content": "x"}]
    answer = endpoint.chat.completions.create(model="tiny@previous", messages=messages, max_tokens=2)
    assert answer.system_fingerprint.startswith("tiny-1-")


def test_endpoint_follows_decisions_under_load_without_a_failed_request(
    endpoint_config: Config, endpoint: openai.OpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(endpoint_config.model_dump_json())
    registry, stopped, versions = ModelRegistry(tracking_uri(endpoint_config)), threading.Event(), Counter[str]()

    def ask(number: int) -> None:
        while not stopped.is_set():
            stream = endpoint.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": f"report {number}"}], stream=True, max_tokens=8
            )
            # Of one version from the first chunk to the last.
            [fingerprint] = {chunk.system_fingerprint for chunk in stream}
            versions[fingerprint.split("-")[1]] += 1

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask, number) for number in range(3)]
        try:
            second = add_copy(endpoint_config)
            run_command("promote", "tiny", second, "--force", "--reason", "a test", "--config", str(path))
            assert registry.aliases("tiny") == {"champion": second, "previous": "1"}
            wait_for_health("version", second)
            wait_until_previous_answers(endpoint)
            # Its files are not those of its manifest.
            broken = add_copy(endpoint_config, tags={MANIFEST_TAG: "0" * 64})
            run_command("promote", "tiny", broken, "--force", "--reason", "a test", "--config", str(path))
            wait_for_health("not_followed", f"version {broken} can't be served")
            run_command("rollback", "tiny", "--reason", "a test", "--config", str(path))
            wait_for_health("not_followed", None)
            # By hand, as on MLflow's pages.
            registry.set_alias("tiny", "champion", "1")
            wait_for_health("not_followed", f"no decision put it there, so version {second} is served")
            registry.set_alias("tiny", "champion", second)
            run_command("rollback", "tiny", "--reason", "a test", "--config", str(path))
            wait_for_health("version", "1")
        finally:
            stopped.set()
        for client in clients:
            client.result()
    assert set(versions) == {"1", second} and min(versions.values()) > 0
    assert registry.aliases("tiny") == {"champion": "1"}
    assert "models:/tiny@champion is version 1" in capsys.readouterr().out
    shutil.rmtree(tmp_path)
