"""Other models over HTTP: retries, refusals, failures, keys, and answers that are not asked for twice."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.evidence import EvidenceConfig, RivalConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.answers import REFUSED, Answer, FailedRequest
from instruct_ray.evidence.asking import rival_client
from instruct_ray.evidence.asking.journal import Journal
from instruct_ray.evidence.asking.latency import record_latency
from instruct_ray.evidence.asking.rival_client import RivalClient
from instruct_ray.evidence.asking.rivals import make_rival_arms
from tests.evidence.asking.fake_rival import FakeRival, Reply, completion, serve_rival
from tests.fakes import ignore_status

ROWS = [Triple(f"row-{number}", "Rate.", f"report {number}", "Low") for number in range(12)]
RIGHT = Answer("Low", "stop", 9, 2)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(rival_client.time, "sleep", waits.append)
    return waits


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield journal


def config_of(rival: FakeRival, **options: Any) -> RivalConfig:
    return RivalConfig(name="gpt", base_url=rival.base_url, model="gpt-x", **options)


def ask(reply: Reply, **options: Any) -> tuple[Any, FakeRival]:
    with serve_rival(lambda body, number: reply) as rival:
        return RivalClient(config_of(rival, **options)).ask([{"role": "user", "content": "x"}], 16)[0], rival


def test_answer_is_read_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVAL_KEY", "secret")
    outcome, rival = ask(completion("Low"), api_key_env="RIVAL_KEY")
    assert outcome == RIGHT and rival.keys == {"Bearer secret"}
    assert rival.requests == [
        {"model": "gpt-x", "messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 16}
    ]


def test_missing_key_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVAL_KEY", raising=False)
    rival = RivalConfig(name="gpt", base_url="http://x/v1", model="m", api_key_env="RIVAL_KEY")
    with pytest.raises(InputError, match="gpt: the environment variable RIVAL_KEY is not set"):
        RivalClient(rival)


@pytest.mark.parametrize(
    "reply",
    [
        (400, {"error": {"code": "content_filter", "message": "refused"}}, {}),
        (200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}, {}),
        completion("", refusal="I can't help with that."),
    ],
)
def test_refused_content_is_an_answer_that_is_refused(reply: Reply) -> None:
    outcome, rival = ask(reply)
    assert (outcome.text, outcome.finish_reason) == ("", REFUSED) and len(rival.requests) == 1


@pytest.mark.parametrize(
    ("reply", "message", "num_requests"),
    [
        ((400, {"error": {"message": "bad"}}, {}), "HTTP 400", 1),
        ((500, {"error": {"message": "down"}}, {}), "HTTP 500.*4 attempts", 4),
        ((200, {"nothing": 1}, {}), "not an answer in OpenAI's format", 1),
    ],
)
def test_other_failures_are_failed_requests(reply: Reply, message: str, num_requests: int) -> None:
    outcome, rival = ask(reply)
    assert isinstance(outcome, FailedRequest)
    assert re.search(message, outcome.error)
    assert len(rival.requests) == num_requests


def test_overload_is_waited_for(no_waiting: list[float]) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        return completion("Low") if number == 3 else (429, {}, {"Retry-After": "7"})

    with serve_rival(reply) as rival:
        outcome, _ = RivalClient(config_of(rival)).ask([{"role": "user", "content": "x"}], 16)
    assert outcome == RIGHT and no_waiting == [7, 7]


def test_endpoint_that_does_not_run_is_a_failed_request() -> None:
    with serve_rival(lambda body, number: completion("")) as rival:
        pass
    outcome, _ = RivalClient(config_of(rival)).ask([{"role": "user", "content": "x"}], 16)
    assert isinstance(outcome, FailedRequest) and "ConnectError" in outcome.error


def test_answers_are_recorded_and_failures_asked_again(base_folder: Path, journal: Journal) -> None:
    renderer = derive_renderer(base_folder, "You are blunt.")

    def reply(body: dict[str, Any], number: int) -> Reply:
        fails = "report 5" in body["messages"][-1]["content"] and number == 1
        return (400, {}, {}) if fails else completion("Low")

    with serve_rival(reply) as rival:
        evidence = EvidenceConfig(arms=(config_of(rival),), num_latency_rows=8)
        [first] = make_rival_arms(renderer, ROWS, evidence)
        first.answer(journal, ignore_status)
        assert len(rival.requests) == len(ROWS)
        assert rival.requests[0]["messages"][0] == {"role": "system", "content": "You are blunt."}
        [again] = make_rival_arms(renderer, ROWS, evidence)
        again.answer(journal, ignore_status)
        assert len(rival.requests) == len(ROWS) + 1
        record_latency({"gpt": again}, journal, ignore_status, interleaved=True)
        answers = again.collect(journal)
    assert answers.outcomes == (RIGHT,) * len(ROWS)
    assert answers.latency is not None and len(answers.latency.seconds) == 8
    assert answers.latency.requests_per_second_at_8 is not None


def test_failed_requests_are_not_timed(base_folder: Path, journal: Journal) -> None:
    """One of the rows always fails: neither its time nor a rate with it counts."""

    def reply(body: dict[str, Any], number: int) -> Reply:
        return (400, {}, {}) if "report 5" in body["messages"][-1]["content"] else completion("Low")

    with serve_rival(reply) as rival:
        evidence = EvidenceConfig(arms=(config_of(rival),), num_latency_rows=len(ROWS))
        [arm] = make_rival_arms(derive_renderer(base_folder, None), ROWS, evidence)
        arm.answer(journal, ignore_status)
        record_latency({"gpt": arm}, journal, ignore_status, interleaved=True)
    latency = arm.collect(journal).latency
    assert latency is not None and latency.requests_per_second_at_8 is None
    assert len(latency.seconds) == len(ROWS) - sum("report 5" in row.input for row in ROWS)


def test_answers_without_usage_have_no_tokens() -> None:
    status, values, headers = completion("Low")
    del values["usage"]
    with serve_rival(lambda body, number: (status, values, headers)) as rival:
        outcome, _ = RivalClient(config_of(rival)).ask([{"role": "user", "content": "x"}], 16)
    assert outcome == Answer("Low", "stop", None, None)


def test_dead_endpoint_is_given_up_soon(base_folder: Path, journal: Journal) -> None:
    rows = [Triple(str(number), "Rate.", f"report {number}", "Low") for number in range(100)]
    with serve_rival(lambda body, number: (503, {}, {})) as rival:
        [arm] = make_rival_arms(derive_renderer(base_folder, None), rows, EvidenceConfig(arms=(config_of(rival),)))
        arm.answer(journal, ignore_status)
        record_latency({"gpt": arm}, journal, ignore_status, interleaved=True)
    answers = arm.collect(journal)
    assert answers.num_failed == 100 and len({request["messages"][0]["content"] for request in rival.requests}) < 30


def test_wrong_key_stops_the_evaluation(base_folder: Path, journal: Journal) -> None:
    with serve_rival(lambda body, number: (401, {"error": {"message": "no such key"}}, {})) as rival:
        [arm] = make_rival_arms(derive_renderer(base_folder, None), ROWS, EvidenceConfig(arms=(config_of(rival),)))
        with pytest.raises(InputError, match=r"evidence\.arms: gpt: HTTP 401.*no such key"):
            arm.answer(journal, ignore_status)
    assert len(rival.requests) == 1
