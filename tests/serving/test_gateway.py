"""The gateway when replicas fail, have no room or take too long, and when requests are wrong. Its replica is a fake."""

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, RequestError
from tests.serving.fake_replica import CHAT, END, FOREVER, HI, INFO, START, FakeReplica, ask, chat, events

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


def test_events_have_no_line_break_that_a_client_may_split_at() -> None:
    text = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b ü"
    response = chat([[START, ReplicaChunk(text, num_tokens=1), END]], stream=True)
    assert response.text.splitlines() == response.text.split("\n")[:-1]
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in events(response)[:-1]) == text
    assert "ü" in response.text


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
    ("body", "message"),
    [
        ({"prompt": []}, "prompt: List should have at least 1 item"),
        ({"prompt": ["a"] * 33}, "prompt: List should have at most 32 items"),
    ],
)
def test_limit_of_a_field_of_several_types_is_named(body: dict[str, Any], message: str) -> None:
    [response] = ask(FakeReplica([]), {"url": "/v1/completions", "json": {"model": "m"} | body})
    assert response.status_code == 400 and response.json()["error"]["message"].startswith(message)


def test_body_that_is_not_json_is_no_field() -> None:
    [response] = ask(FakeReplica([]), {"content": "{", "headers": {"Content-Type": "application/json"}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, None)


@pytest.mark.parametrize(
    ("item", "param"),
    [({"role": "user", "content": 5}, "input.0.content"), ({"type": "function_call", "name": "x"}, "input.0")],
)
def test_error_of_the_responses_api_names_its_field(item: Any, param: str) -> None:
    [response] = ask(FakeReplica([]), {"url": "/v1/responses", "json": {"model": "m", "input": [item]}})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param)
    assert "Input" not in response.json()["error"]["param"]
