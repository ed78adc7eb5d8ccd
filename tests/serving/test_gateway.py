"""The gateway in this process, asked over HTTP: failures, limits and keys. Its replica is a fake."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving import api_keys, served_version
from instruct_ray.serving.api_keys import hash_key
from instruct_ray.serving.gateway import Gateway
from instruct_ray.serving.replica_messages import AnswerStart, ModelInfo, ReplicaChunk, RequestError

INFO = ModelInfo(
    name="m",
    alias="champion",
    version="1",
    contract_digest="0" * 64,
    data_digest=None,
    max_context=64,
    layout="{instruction} {input}",
)
START = AnswerStart(INFO, num_prompt_tokens=3, num_choices=1)
HI = ReplicaChunk("Hi", num_tokens=1)
END = ReplicaChunk(finish_reason="stop", num_tokens=1)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
FOREVER = object()


class FakeReplica:
    """Stands for the handle of a replica: each answer yields the next of some lists, and raises their exceptions."""

    def __init__(self, answers: list[list[Any]], info: Any = INFO) -> None:
        self._answers = iter(answers)
        self.answer = self
        self.info = FakeMethod(info)
        self.num_cancelled = 0

    def options(self, stream: bool) -> "FakeReplica":
        return self

    def remote(self, request: object) -> "FakeAnswer":
        return FakeAnswer(self, next(self._answers))


class FakeMethod:
    """Stands for a method of a replica that returns a value, raises it if it is an exception, or never ends."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.num_calls = 0

    async def remote(self) -> Any:
        self.num_calls += 1
        if self.value is FOREVER:
            await asyncio.sleep(60)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeAnswer:
    """Stands for a response generator of Ray Serve."""

    def __init__(self, replica: FakeReplica, items: list[Any]) -> None:
        self._replica, self._items = replica, iter(items)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if item is FOREVER:
            await asyncio.sleep(60)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self._replica.num_cancelled += 1


def ask(
    replica: FakeReplica,
    *requests: dict[str, Any],
    serving: dict[str, Any] | None = None,
    client: str = "127.0.0.1",
    between: Callable[[], None] = lambda: None,
) -> list[httpx2.Response]:
    """Send requests to a gateway, one after the other; each is the arguments of httpx."""

    async def run() -> list[httpx2.Response]:
        handle: Any = replica
        gateway = Gateway(handle, ServingConfig.model_validate(serving or {}))
        transport = httpx2.ASGITransport(
            gateway.__serve_build_asgi_app__(), raise_app_exceptions=False, client=(client, 1)
        )
        responses = []
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for request in requests:
                responses.append(await http.request(**{"method": "POST", "url": PATH} | request))
                between()
        return responses

    return asyncio.run(run())


def chat(answers: list[list[Any]], *, stream: bool = False, **options: Any) -> httpx2.Response:
    [response] = ask(FakeReplica(answers), {"json": CHAT | {"stream": stream}}, **options)
    return response


def events(response: httpx2.Response) -> list[Any]:
    """The events of a stream, as JSON where they are JSON."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


FAILURES = [
    ActorDiedError(),
    RayTaskError("answer", "traceback", ValueError("x")).as_instanceof_cause(),
    ValueError("x"),
    ReplicaChunk(finish_reason="error"),
    None,
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_stream_that_fails_ends_with_an_error_event(failure: Any) -> None:
    *parts, last = events(chat([[START, HI, failure]], stream=True))
    assert parts[-1]["choices"][0]["delta"] == {"content": "Hi"}
    assert last["error"]["type"] == "server_error"
    assert events(chat([[START, HI, END]], stream=True))[-1] == "[DONE]"


@pytest.mark.parametrize("failure", [*FAILURES, DeploymentUnavailableError("deployment")], ids=str)
def test_other_failures_have_a_body_in_the_form_of_openai(failure: Any) -> None:
    response = chat([[START, HI, failure], [START, HI, failure]])
    assert response.status_code == (503 if isinstance(failure, DeploymentUnavailableError) else 500)
    assert response.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("items", [[], [START], [START, HI]], ids=len)
def test_request_whose_replica_dies_is_sent_to_another_one_once(items: list[Any]) -> None:
    response = chat([[*items, ActorDiedError()], [START, HI, END]])
    assert response.json()["choices"][0]["message"]["content"] == "Hi"
    assert response.json()["usage"]["total_tokens"] == 5
    assert chat([[*items, ActorDiedError()]] * 2).status_code == 500


def test_stream_whose_replica_dies_before_its_start_is_sent_to_another_one() -> None:
    assert events(chat([[ActorDiedError()], [START, HI, END]], stream=True))[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_overload_is_429_before_a_stream_starts(stream: bool) -> None:
    response = chat([[BackPressureError(1, 1)]], stream=stream)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "x-should-retry" not in response.headers


def test_request_that_takes_too_long_is_cancelled() -> None:
    replica, serving = FakeReplica([[FOREVER], [START, HI, FOREVER], [START, HI, FOREVER]]), {"max_seconds": 0.2}
    requests = [{"json": CHAT}, {"json": CHAT}, {"json": CHAT | {"stream": True}}]
    first, second, streamed = ask(replica, *requests, serving=serving)
    assert (first.status_code, second.status_code) == (504, 504)
    assert events(streamed)[-1]["error"]["code"] == "timeout"
    assert replica.num_cancelled == 3
    assert first.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_other_choices_are_cancelled_when_one_fails(stream: bool) -> None:
    two = AnswerStart(INFO, num_prompt_tokens=3, num_choices=2)
    replica = FakeReplica([[two, HI, ReplicaChunk(finish_reason="error"), FOREVER]])
    ask(replica, {"json": CHAT | {"n": 2, "stream": stream}})
    assert replica.num_cancelled == 1


def test_finished_answer_is_not_cancelled() -> None:
    replica = FakeReplica([[START, HI, END], [START, HI, END], [RequestError(400, "no", "messages", "x")]])
    ask(replica, {"json": CHAT}, {"json": CHAT | {"stream": True}}, {"json": CHAT})
    assert replica.num_cancelled == 0


HEALTH, GET_MODELS, GET_METRICS = ({"method": "GET", "url": url} for url in ("/health", "/v1/models", "/metrics"))


def test_health_is_answered_while_replicas_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_version, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(served_version, "MAX_WAIT_SECONDS", 0.1)
    replica = FakeReplica([])

    def be_busy() -> None:
        replica.info.value = FOREVER

    first, second = ask(replica, HEALTH, HEALTH, between=be_busy)
    assert first.json() == second.json() and first.json().items() >= {"version": "1", "not_followed": None}.items()
    monkeypatch.setattr(served_version, "MAX_AGE_SECONDS", 0.0)
    replica.info.value = INFO
    first, second = ask(replica, HEALTH, HEALTH, between=be_busy)
    assert (first.status_code, second.status_code) == (200, 503)


@pytest.mark.parametrize("failure", [ActorDiedError(), DeploymentUnavailableError("deployment")], ids=type)
def test_health_fails_without_a_replica(failure: Exception) -> None:
    health, models, metrics = ask(FakeReplica([], info=failure), HEALTH, GET_MODELS, GET_METRICS)
    for response in (health, models):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    # The requests that failed are counted all the same.
    assert metrics.status_code == 200 and 'route="/health",status="503"' in metrics.text


def test_version_is_asked_once_for_many_requests() -> None:
    replica = FakeReplica([])
    ask(replica, *[HEALTH] * 5, GET_MODELS, GET_METRICS)
    assert replica.info.num_calls == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ([START, HI, END], 200),
        ([BackPressureError(1, 1)], 200),
        ([START, ReplicaChunk(finish_reason="error")], 503),
        ([RayTaskError("answer", "traceback", ValueError("x")).as_instanceof_cause()], 503),
        ([ActorDiedError()], 503),
    ],
    ids=str,
)
def test_probe_is_red_on_an_engine_that_fails_and_not_on_a_busy_one(answer: list[Any], status: int) -> None:
    [response] = ask(FakeReplica([answer]), {"method": "GET", "url": "/health/generate"})
    assert response.status_code == status


def test_metrics_count_by_route_status_and_key(tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a"), "requests_per_minute": 2})
    scrape = with_key("a") | {"method": "GET", "url": "/metrics"}
    requests = [with_key("a"), with_key("a"), with_key("a"), with_key("no"), with_key("a") | {"url": "/x/y"}, scrape]
    replica = FakeReplica([[START, HI, END], [START, ValueError("x")]])
    *_, response = ask(replica, *requests, serving={"api_keys_file": str(keys_file)})
    counts = {
        (one.labels["route"], one.labels["status"], one.labels["key"]): one.value
        for family in text_string_to_metric_families(response.text)
        for one in family.samples
        if one.name == "instruct_ray_requests_total"
    }
    assert counts == {
        (PATH, "200", "a"): 1, (PATH, "500", "a"): 1, (PATH, "429", "a"): 1, (PATH, "401", ""): 1,
        ("other", "429", "a"): 1,
    }  # fmt: skip


def test_method_that_a_route_does_not_have_is_named() -> None:
    [response] = ask(FakeReplica([]), {"method": "GET"})
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "messages.0.content.0"),
        ([{"type": "text"}], "messages.0.content.0.text"),
        (5, "messages.0.content"),
    ],
)
def test_error_names_the_field_that_is_wrong(content: Any, param: str) -> None:
    [response] = ask(FakeReplica([]), {"json": CHAT | {"messages": [{"role": "user", "content": content}]}})
    assert response.json()["error"]["param"].startswith(param)
    assert "str" not in response.json()["error"]["param"]


@pytest.mark.parametrize(
    ("client", "serving", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("192.0.2.7", {}, 401),
        ("192.0.2.7", {"allow_without_key": True}, 200),
        ("not an address", {}, 401),
    ],
)
def test_without_keys_only_this_machine_is_answered(client: str, serving: dict[str, Any], status: int) -> None:
    assert chat([[START, HI, END]], client=client, serving=serving).status_code == status


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_request_through_a_proxy_is_not_of_this_machine(header: str) -> None:
    [response] = ask(FakeReplica([]), {"json": CHAT, "headers": {header: "127.0.0.1"}})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://other.example"}, 401),
        ({"Origin": "null"}, 401),
        # A name that an attacker lets resolve to this machine.
        ({"Host": "other.example"}, 401),
        ({"Origin": "http://other.example", "Host": "other.example"}, 401),
    ],
)
def test_page_of_another_site_is_not_this_machine(headers: dict[str, str], status: int) -> None:
    [response] = ask(FakeReplica([[START, HI, END]]), {"json": CHAT, "headers": headers})
    assert response.status_code == status


def test_reasons_in_health_are_for_those_with_a_key(tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a")})
    replica = FakeReplica([], info=INFO.model_copy(update={"not_followed": "no space on /mnt/x"}))
    without, with_one = ask(replica, HEALTH, with_key("a") | HEALTH, serving={"api_keys_file": str(keys_file)})
    assert without.json() == {"status": "ok", "model": "m", "version": "1"}
    assert with_one.json()["not_followed"] == "no space on /mnt/x"


def test_last_key_can_be_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a")})

    def revoke() -> None:
        file.write_text("[]")

    options = {"serving": {"api_keys_file": str(file), "allow_without_key": True}, "between": revoke}
    first, second = ask(FakeReplica([[START, HI, END]]), with_key("a"), with_key("a"), **options)
    assert (first.status_code, second.status_code) == (200, 401)


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def with_key(key: str) -> dict[str, Any]:
    return {"json": CHAT, "headers": {"Authorization": f"Bearer {key}"}}


def test_keys_are_changed_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    file = write_keys(tmp_path / "keys.yaml", {"name": "old", "sha256": hash_key("one")})
    contents = iter(
        [
            json.dumps([{"name": "new", "sha256": hash_key("two")}]),
            # A mistake changes nothing.
            "- {name: new",
            json.dumps([{"name": "new", "sha256": hash_key("two")}, {"name": "old", "sha256": hash_key("one")}]),
        ]
    )

    def write_next() -> None:
        if (text := next(contents, None)) is not None:
            file.with_suffix(".new").write_text(text)
            os.replace(file.with_suffix(".new"), file)

    answers = [[START, HI, END]] * 6
    pairs = [with_key("one"), with_key("two"), with_key("two"), with_key("one")]
    responses = ask(FakeReplica(answers), *pairs, serving={"api_keys_file": str(file)}, between=write_next)
    assert [response.status_code for response in responses] == [200, 200, 200, 200]
    file = write_keys(tmp_path / "keys.yaml", {"name": "old", "sha256": hash_key("one")})
    responses = ask(FakeReplica(answers), *pairs, serving={"api_keys_file": str(file)})
    assert [response.status_code for response in responses] == [200, 401, 401, 200]


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCT_RAY_API_KEYS", json.dumps([{"name": "a", "sha256": hash_key("one")}]))
    good, bad = ask(FakeReplica([[START, HI, END]]), with_key("one"), with_key("two"))
    assert (good.status_code, bad.status_code) == (200, 401)
    assert "one" not in bad.text and "two" not in bad.text


def test_limits_of_a_key_hold_for_it_alone(tmp_path: Path) -> None:
    file = write_keys(
        tmp_path / "keys.yaml",
        {"name": "few", "sha256": hash_key("few"), "requests_per_minute": 2},
        {"name": "short", "sha256": hash_key("short"), "tokens_per_minute": 5},
        {"name": "free", "sha256": hash_key("free")},
    )
    requests = [with_key(key) for key in ("few", "few", "few", "short", "short", "free", "free", "free")]
    responses = ask(FakeReplica([[START, HI, END]] * 6), *requests, serving={"api_keys_file": str(file)})
    assert [response.status_code for response in responses] == [200, 200, 429, 200, 429, 200, 200, 200]
    error = responses[2]
    assert error.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(error.headers["retry-after"]) <= 60


def test_aborted_stream_counts_its_tokens(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a"), "tokens_per_minute": 4})
    request = with_key("a")
    broken = {**request, "json": CHAT | {"stream": True}}
    replica = FakeReplica([[START, HI, ValueError("x")]])
    assert [one.status_code for one in ask(replica, broken, request, serving={"api_keys_file": str(file)})] == [
        200,
        429,
    ]
