"""A new version that gets a share of the requests first: when it gets all of them, and when none."""

import asyncio
import time
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest
from ray import serve

from instruct_ray.config.serving import CanaryConfig, ServingConfig
from instruct_ray.registry.alias_moves import roll_back
from instruct_ray.serving import replica as replica_module
from instruct_ray.serving.canary import Canary
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.peer_version import find_peer_version
from instruct_ray.serving.replica import ModelReplica
from instruct_ray.serving.replica_messages import AnswerStart, ModelInfo
from instruct_ray.serving.request_timer import RequestTimer
from instruct_ray.serving.served_models import ServedModels
from tests.serving.versions import Versions

CONFIG = CanaryConfig(share=0.25, min_requests=20, max_error_increase=0.1, max_latency_ratio=1.5)


def run_canary(
    canary: Canary, *, num_requests: int, new: tuple[float, int], old_fails_every: int = 10**6
) -> Counter[str]:
    """Send requests; `new` is the seconds of the new version, and every how many of its requests fail."""
    asked = Counter[str]()
    for _ in range(num_requests):
        version = canary.choose()
        asked[version] += 1
        seconds, fails_every = new if version == canary.new else (1.0, old_fails_every)
        canary.record(version, seconds, is_failed=asked[version] % fails_every == 0)
    return asked


def test_new_version_gets_its_share_and_then_all_requests() -> None:
    canary = Canary(CONFIG, "1", "2")
    asked = run_canary(canary, num_requests=79, new=(1.4, 10**6))
    assert asked == {"1": 60, "2": 19} and canary.verdict == "running"
    assert canary.status == (
        "version 2 gets 25% of the requests: 19 of 20 finished, 0 failed; of version 1 60 finished, 0 failed"
    )
    run_canary(canary, num_requests=1, new=(1.4, 10**6))
    assert canary.verdict == "accepted"
    assert canary.reason == ("0 of 20 requests to version 2 failed, 0 of 60 to version 1; median 1.4 s against 1 s")
    assert run_canary(canary, num_requests=9, new=(1.0, 2)) == {"2": 9}


@pytest.mark.parametrize(
    ("new", "old_fails_every", "num_of_new", "reason"),
    [
        # It fails always, so three requests show that it can't keep its limit of 10% of 20.
        ((1.0, 1), 10**6, 3, "3 of 3 requests to version 2 failed, 0 of 9 to version 1 (allowed: 10.0%)"),
        ((1.0, 5), 10**6, 15, "3 of 15 requests to version 2 failed, 0 of 45 to version 1 (allowed: 10.0%)"),
        ((1.6, 10**6), 10**6, 20, "median 1.6 s against 1 s, 1.6 times (allowed: 1.5)"),
    ],
)
def test_new_version_that_fails_or_is_slow_gets_no_more_requests(
    new: tuple[float, int], old_fails_every: int, num_of_new: int, reason: str
) -> None:
    canary = Canary(CONFIG, "1", "2")
    asked = run_canary(canary, num_requests=200, new=new, old_fails_every=old_fails_every)
    assert canary.verdict == "rejected" and canary.reason.endswith(reason)
    assert asked["2"] == num_of_new


def test_failures_that_the_old_version_has_too_are_no_fault_of_the_new_one() -> None:
    canary = Canary(CONFIG, "1", "2")
    run_canary(canary, num_requests=200, new=(1.0, 3), old_fails_every=3)
    assert canary.verdict == "accepted"


def test_version_that_fails_always_is_replaced() -> None:
    canary = Canary(CONFIG, "1", "2")
    run_canary(canary, num_requests=200, new=(1.0, 10**6), old_fails_every=1)
    assert canary.verdict == "accepted"


def test_requests_of_other_versions_are_not_counted() -> None:
    canary = Canary(CONFIG, "1", "2")
    for _ in range(50):
        canary.record("3", 1.0, is_failed=True)
    assert canary.verdict == "running" and "0 of 20 finished" in canary.status


def make_replica(versions: Versions) -> ModelReplica:
    canary = CanaryConfig(share=0.5, min_requests=4, max_error_increase=0.25, max_latency_ratio=None)
    return ModelReplica(versions.config, ServingConfig(follow_seconds=None, canary=canary))


async def answering(replica: ModelReplica, model: str = "tiny") -> str:
    """Which version answers a request."""
    request = ChatRequest.model_validate(
        {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    )
    messages = [message async for message in replica.answer(request)]
    start = messages[0]
    assert isinstance(start, AnswerStart)
    return start.info.version


def ask(replica: ModelReplica, num_requests: int, model: str = "tiny") -> list[str]:
    async def ask_all() -> list[str]:
        return [await answering(replica, model) for _ in range(num_requests)]

    return asyncio.run(ask_all())


def test_accepted_version_is_followed(versions: Versions) -> None:
    second, replica = versions.add(), make_replica(versions)
    models = replica._models
    versions.decide(second)
    models.follow_once()
    assert ask(replica, 6) == ["1", second] * 3
    # Requests that name a version get it, and are not counted.
    assert ask(replica, 2, f"tiny/{second}") == [second] * 2 and ask(replica, 2, "tiny/1") == ["1"] * 2
    models.follow_once()
    info = models.info
    assert info.version == "1" and f"version {second} gets 50% of the requests: 3 of 4" in str(info.not_followed)
    assert ask(replica, 4, "tiny@champion") == ["1", second, second, second]
    models.follow_once()
    assert (models.info.version, models.info.not_followed) == (second, None)
    assert "tiny/1" not in models.info.served_models
    models.close()


@pytest.mark.parametrize("is_followed", [True, False])
def test_rollback_needs_no_canary(versions: Versions, is_followed: bool) -> None:
    """Whether the replica has changed to the accepted version before the rollback, or looks only after it."""
    second, replica = versions.add(), make_replica(versions)
    models = replica._models
    versions.decide(second)
    models.follow_once()
    ask(replica, 8)
    if is_followed:
        models.follow_once()
        assert models.info.version == second
    roll_back(versions.registry, "tiny", "champion", "it is wrong")
    models.follow_once()
    assert (models.info.version, models.info.not_followed) == ("1", None)
    assert ask(replica, 4) == ["1"] * 4
    models.close()


def test_rejected_version_is_not_tried_again_until_another_decision(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, replica = versions.add(), make_replica(versions)
    models, real_answer = replica._models, replica_module.answer
    versions.decide(second)
    models.follow_once()

    async def answer_or_fail(loaded: Any, *args: Any) -> Any:
        """As an engine that fails on every request to the new version."""
        async with aclosing(real_answer(loaded, *args)) as messages:
            async for message in messages:
                yield message
                if loaded.info.version == second:
                    raise RuntimeError("the engine failed")

    monkeypatch.setattr(replica_module, "answer", answer_or_fail)
    versions_asked = []
    for _ in range(8):
        try:
            versions_asked += ask(replica, 1)
        except RuntimeError:
            versions_asked.append(second)
    assert versions_asked == ["1", second, "1", second, "1", "1", "1", "1"]
    for _ in range(2):
        models.follow_once()
        reason = str(models.info.not_followed)
        assert models.info.version == "1" and reason == (
            f"version {second} is rejected: 2 of 2 requests to version {second} failed, 0 of 2 to version 1 "
            "(allowed: 25.0%); version 1 goes on"
        )
        assert f"tiny/{second}" not in models.info.served_models
    versions.decide("1")
    models.follow_once()
    assert models.info.not_followed is None
    versions.decide(second)
    models.follow_once()
    assert f"version {second} gets 50% of the requests" in str(models.info.not_followed)
    # Another decision ends it.
    versions.decide("1")
    models.follow_once()
    assert models.info.not_followed is None and set(ask(replica, 4)) == {"1"}
    models.close()


def test_client_that_leaves_says_nothing_about_the_version(versions: Versions) -> None:
    info: Any = versions
    timer = RequestTimer(max_seconds=100)
    assert timer.is_failed is None
    timer.see(AnswerStart(info, num_prompt_tokens=1, num_choices=1))
    assert timer.is_failed is None
    late = RequestTimer(max_seconds=0.0)
    late.see(AnswerStart(info, num_prompt_tokens=1, num_choices=1))
    assert late.is_failed is True


def test_replica_that_starts_during_a_canary_begins_with_the_version_of_the_others(versions: Versions) -> None:
    second = versions.add()
    versions.decide(second)
    serving = ServingConfig(follow_seconds=None, canary=CanaryConfig(share=0.5, min_requests=4))
    models = ServedModels(versions.config, serving, first_number="1")
    assert models.info.version == "1"
    models.follow_once()
    assert f"version {second} gets 50% of the requests" in str(models.info.not_followed)
    models.close()
    # What others serve is missing, or no decision was about it: it begins with the version under the alias.
    for number in ("99", versions.add()):
        alone = ServedModels(versions.config, serving, first_number=number)
        assert alone.info.version == second
        alone.close()


class Starting:
    """Stands for a replica: what it was told when it started, and what it says."""

    def __init__(self) -> None:
        self.found = find_peer_version("tiny"), find_peer_version("other")

    def info(self) -> ModelInfo:
        return ModelInfo(
            name="tiny", version="7", contract_digest="", data_digest=None, max_context=1, layout="", alias="champion"
        )

    def get_found(self) -> tuple[str | None, str | None]:
        return self.found


def test_replica_that_starts_asks_the_others(ray_4_cpus: None) -> None:
    deployment = serve.deployment(Starting, name="Starting", ray_actor_options={"num_cpus": 0.1})
    serve.start(http_options={"location": "NoServer"})
    try:
        handle = serve.run(deployment.bind(), name="starting", route_prefix=None)
        assert handle.get_found.remote().result() == (None, None)
        handle = serve.run(deployment.options(num_replicas=2).bind(), name="starting", route_prefix=None)
        end, found = time.monotonic() + 60, set()
        while len(found) < 2 and time.monotonic() < end:
            found.add(handle.get_found.remote().result())
        assert found == {(None, None), ("7", None)}
    finally:
        serve.shutdown()
