"""The version that is served: follows decisions, and goes on whatever is wrong with the next one."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.serving import followed_version
from instruct_ray.serving.alias_follower import find_target
from instruct_ray.serving.served_models import ServedModels
from instruct_ray.tracking.version_files import MANIFEST_TAG
from tests.serving.versions import Versions

SERVING = ServingConfig(follow_seconds=None)


@pytest.fixture
def served(versions: Versions) -> Iterator[ServedModels]:
    version = ServedModels(versions.config, SERVING)
    yield version
    version.close()


def change_weights(model_dir: Path) -> None:
    """Another model, which its recorded answers are not of."""
    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype) for name, tensor in tensors.items()}
    save_file({name: tensor + noise[name] for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def change_metadata(model_dir: Path) -> None:
    path = model_dir / "instruct_ray.json"
    path.write_text(path.read_text() + " ")


def test_decision_is_followed_and_the_old_version_answers_what_it_began(
    versions: Versions, served: ServedModels
) -> None:
    second = versions.add()
    served.follow_once()
    assert (served.info.version, served.info.not_followed) == ("1", None)
    versions.decide(second)
    with served.hold("tiny") as old:
        served.follow_once()
        with served.hold("tiny") as new:
            assert (old.info.version, new.info.version, served.info.version) == ("1", second, second)
        # It is still answering.
        assert generate_all(old.engine, [[5, 6]], SamplingParams(2))
    served.follow_once()
    assert not old.engine.is_alive and served.is_alive


def test_long_answers_do_not_keep_the_next_decisions_waiting(versions: Versions, served: ServedModels) -> None:
    second, third, fourth = versions.add(), versions.add(), versions.add()
    with served.hold("tiny") as first:
        versions.decide(second)
        served.follow_once()
        with served.hold("tiny") as old:
            versions.decide(third)
            served.follow_once()
            assert (first.info.version, old.info.version, served.info.version) == ("1", second, third)
            # Two versions that still answer are as many as there is memory for.
            versions.decide(fourth)
            served.follow_once()
            assert served.info.version == third
            reason = f"version {fourth} waits until versions that were replaced have answered their last requests"
            assert served.info.not_followed == f"{reason}: 1 and {second}"
            assert first.engine.is_alive and old.engine.is_alive
        served.follow_once()
        assert (served.info.version, served.info.not_followed) == (fourth, None)
        assert first.engine.is_alive and not old.engine.is_alive
        # One that still answers is not loaded again.
        versions.decide("1")
        served.follow_once()
        with served.hold("tiny") as again:
            assert again is first
    served.follow_once()
    assert first.engine.is_alive


def test_alias_that_was_moved_by_hand_is_not_followed(versions: Versions, served: ServedModels) -> None:
    second = versions.add()
    versions.registry.set_alias("tiny", "champion", second)
    served.follow_once()
    assert served.info.version == "1"
    reason = served.info.not_followed
    assert reason is not None and f"tiny@champion is version {second}, but no decision put it there" in reason
    # The same for an endpoint that starts.
    target = find_target(versions.registry, "tiny", "champion")
    assert (target.version.number, target.note) == ("1", reason)
    versions.registry.set_alias("tiny", "champion", "1")
    served.follow_once()
    assert served.info.not_followed is None


def test_alias_that_no_decision_was_recorded_about_is_not_served(versions: Versions) -> None:
    second = versions.add()
    versions.registry.set_alias("tiny", "other", second)
    with pytest.raises(InputError, match=f"no decision is recorded that put version {second} under tiny@other; use `"):
        find_target(versions.registry, "tiny", "other")


@pytest.mark.parametrize(
    ("change", "remakes_manifest", "reason"),
    [
        (change_metadata, False, "instruct_ray.json"),
        (change_weights, True, "answers have other tokens than recorded"),
        (lambda folder: (folder / "model.safetensors").unlink(), True, "can't be served"),
        (lambda folder: (folder / "code.py").write_text("x"), False, "code.py"),
    ],
    ids=["changed", "other_answers", "no_weights", "code"],
)
def test_broken_version_is_rejected_once_and_the_old_one_goes_on(
    versions: Versions,
    served: ServedModels,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], Any],
    remakes_manifest: bool,
    reason: str,
) -> None:
    broken = versions.add(change, remakes_manifest=remakes_manifest)
    versions.decide(broken)
    served.follow_once()
    info = served.info
    assert info.version == "1" and info.not_followed is not None
    assert info.not_followed.startswith(f"version {broken} can't be served: ") and reason in info.not_followed
    with monkeypatch.context() as patch:
        patch.setattr(followed_version, "load_version", None)
        served.follow_once()
    assert served.info == info
    with served.hold("tiny") as loaded:
        assert generate_all(loaded.engine, [[5, 6]], SamplingParams(2))
    versions.decide(versions.add())
    served.follow_once()
    assert served.info.version != "1" and served.info.not_followed is None


def test_version_that_was_changed_after_the_decision_is_not_served(versions: Versions) -> None:
    second = versions.add()
    versions.decide(second)
    versions.registry.client.set_model_version_tag("tiny", second, MANIFEST_TAG, "0" * 64)
    with pytest.raises(InputError, match=rf"tiny/{second}: its manifest is 0+, but the decision of .* was about"):
        find_target(versions.registry, "tiny", "champion")


def test_full_disk_is_tried_again(versions: Versions, served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    second = versions.add()
    versions.decide(second)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.artifacts.download_artifacts", fail_for_lack_of_space)
        served.follow_once()
    assert served.info.version == "1"
    assert "can't be loaded now" in str(served.info.not_followed) and "No space" in str(served.info.not_followed)
    served.follow_once()
    assert (served.info.version, served.info.not_followed) == (second, None)


def fail_for_lack_of_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_registry_that_is_away_for_a_while_stops_nothing(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    served = ServedModels(versions.config, ServingConfig(follow_seconds=0.05))
    second = versions.add()

    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        assert condition(), json.dumps(served.info.model_dump())

    try:
        with monkeypatch.context() as patch:
            patch.setattr(ModelRegistry, "aliases", fail_to_connect)
            wait_until(lambda: served.info.not_followed is not None)
            assert served.info.version == "1"
            assert served.info.not_followed == "tiny@champion can't be followed: no response"
        versions.decide(second)
        wait_until(lambda: served.info.version == second)
        wait_until(lambda: served.info.not_followed is None)
    finally:
        served.close()


def fail_to_connect(*args: object) -> None:
    raise UnavailableError("no response")
