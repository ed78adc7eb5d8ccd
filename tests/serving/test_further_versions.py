"""The models of `serving.also_serve`, beside the followed version: other aliases, version numbers, the base model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.serving import further_versions
from instruct_ray.serving.alias_follower import find_further_version
from instruct_ray.serving.app import AppArgs
from instruct_ray.serving.served_models import ModelNotServedError, ServedModels
from instruct_ray.tracking.version_files import MANIFEST_TAG
from tests.serving.versions import Versions


def serve(versions: Versions, *also_serve: str) -> ServedModels:
    return ServedModels(versions.config, ServingConfig(follow_seconds=None, also_serve=also_serve))


def answering(served: ServedModels, model: str) -> str:
    with served.hold(model) as loaded:
        assert generate_all(loaded.engine, [[5, 6]], SamplingParams(2))
        return loaded.info.version


def test_aliases_numbers_and_the_base_model_are_served(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    second, third = versions.add(), versions.add()
    versions.registry.set_alias("tiny", "candidate", third)
    served = serve(versions, "previous", "candidate", "1", "base")
    assert served.info.not_served.keys() == {"tiny@previous"}
    expected = {"tiny": "1", "tiny@champion": "1", "tiny/1": "1", f"tiny/{third}": third, "tiny@candidate": third,
                "tiny@base": "base"}  # fmt: skip
    assert served.info.served_models == expected
    assert {name: answering(served, name) for name in expected} == expected
    loaded: list[str] = []
    load_version = further_versions.load_version
    monkeypatch.setattr(
        further_versions, "load_version", lambda *args: loaded.append(args[1].number) or load_version(*args)
    )
    versions.decide(second)
    served.follow_once()
    # The one that was replaced is not loaded again, and the base model is the same.
    assert answering(served, "tiny@previous") == "1" and answering(served, "tiny") == second and not loaded
    assert served.info.not_served == {}
    versions.registry.delete_alias("tiny", "candidate")
    served.follow_once()
    assert served.info.served_models.keys() == {
        "tiny", "tiny@champion", "tiny/1", f"tiny/{second}", "tiny@previous", "tiny@base"
    }  # fmt: skip
    for name, message in {
        "tiny@candidate": "/health says why",
        f"tiny/{third}": "no model",
        "x": "use one of tiny",
    }.items():
        with pytest.raises(ModelNotServedError, match=message) as raised, served.hold(name):
            raise AssertionError(name)
        assert raised.value.error.status == 404
    served.close()


def test_model_that_cannot_be_loaded_stops_no_other(versions: Versions) -> None:
    broken = versions.add(lambda folder: (folder / "model.safetensors").unlink())
    versions.registry.set_alias("tiny", "candidate", broken)
    served = serve(versions, "candidate", "7", "base")
    info = served.info
    assert f"version {broken} can't be served" in info.not_served["tiny@candidate"]
    assert info.not_served["tiny/7"] == "registered model tiny has no version 7"
    assert info.further_models == {"tiny/1": "1", "tiny@base": "base"} and served.is_alive
    served.close()


def test_base_model_that_was_changed_is_not_served(versions: Versions, tmp_path: Path) -> None:
    def move_base(folder: Path) -> None:
        path = folder / "instruct_ray.json"
        values = path.read_text()
        base = values.split('"base_folder": "')[1].split('"')[0]
        shutil.copytree(base, tmp_path / "base")
        (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
        path.write_text(values.replace(base, str(tmp_path / "base")))

    changed = versions.add(move_base)
    versions.decide(changed)
    served = serve(versions, "base")
    assert "now holds" in served.info.not_served["tiny@base"] and answering(served, "tiny") == changed
    served.close()


def test_previous_follows_the_records_and_not_the_alias(versions: Versions) -> None:
    second, third = versions.add(), versions.add()
    versions.decide(second)
    versions.registry.set_alias("tiny", "previous", third)
    assert find_further_version(versions.registry, "tiny", "champion", "previous").number == "1"
    versions.decide(third)
    versions.registry.client.set_model_version_tag("tiny", second, MANIFEST_TAG, "0" * 64)
    with pytest.raises(InputError, match="the version was changed since"):
        find_further_version(versions.registry, "tiny", "champion", "previous")


@pytest.mark.parametrize("value", ["latest", "v3", "a/b", "", "01", ["x"], True])
def test_wrong_models_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="also_serve"):
        ServingConfig(also_serve=(value,))
    assert ServingConfig.model_validate({"also_serve": [3, "base"]}).also_serve == ("3", "base")


def test_followed_alias_is_no_further_model() -> None:
    registry = {"uri": "sqlite:///x.db", "name": "tiny", "alias": "base"}
    with pytest.raises(ValidationError, match=r"base is registry\.alias, which is served anyway"):
        AppArgs.model_validate({"registry": registry, "serving": {"also_serve": ["base"]}})
