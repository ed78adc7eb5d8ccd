"""Versions that are adapters of one base model share its weights in a replica."""

from typing import Any

from instruct_ray.config.serving import ServingConfig
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.shared_engine import AdapterView
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.serving.served_models import ServedModels
from tests.serving.versions import Versions, make_adapter

PROMPT = [[5, 6, 7, 8]]


def engine_of(served: ServedModels, model: str) -> Any:
    """What computes the requests of a model."""
    with served.hold(model) as loaded:
        assert generate_all(loaded.engine, PROMPT, SamplingParams(4))
        return loaded.engine._engine if isinstance(loaded.engine, AdapterView) else loaded.engine


def test_adapter_versions_and_their_base_share_an_engine(versions: Versions) -> None:
    second, third = versions.add(make_adapter(1)), versions.add(make_adapter(2))
    versions.decide(second)
    versions.registry.set_alias("tiny", "candidate", third)
    served = ServedModels(versions.config, ServingConfig(follow_seconds=None, also_serve=("candidate", "base", "1")))
    assert served.info.not_served == {}
    shared = engine_of(served, "tiny")
    assert isinstance(shared, TransformersEngine)
    assert engine_of(served, "tiny@candidate") is shared and engine_of(served, "tiny@base") is shared
    # A full model.
    assert engine_of(served, "tiny/1") is not shared
    digests = {number: str(versions.registry.get("tiny", number).manifest_digest)[:12] for number in (second, third)}
    names = {number: f"tiny/{number}/{digest}" for number, digest in digests.items()}
    assert set(shared._variants) == {None, *names.values()}
    versions.decide(third)
    served.follow_once()
    assert served.info.version == third and engine_of(served, "tiny") is shared
    # Its adapter is gone, and the base model stays.
    assert set(shared._variants) == {None, names[third]} and engine_of(served, "tiny@base") is shared
    served.close()
    # Nothing refers to its weights any more.
    assert not shared.is_alive and not served._pool.engines._shared


def test_adapter_that_cannot_share_gets_its_own_base(versions: Versions) -> None:
    versions.decide(versions.add(make_adapter(1, use_dora=True)))
    served = ServedModels(versions.config, ServingConfig(follow_seconds=None, also_serve=("base",)))
    assert served.info.not_served == {} and engine_of(served, "tiny") is not engine_of(served, "tiny@base")
    served.close()


def test_single_adapter_is_merged(versions: Versions) -> None:
    versions.decide(versions.add(make_adapter(1)))
    served = ServedModels(versions.config, ServingConfig(follow_seconds=None))
    assert not engine_of(served, "tiny")._row_layers
    served.close()
