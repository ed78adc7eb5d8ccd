"""The endpoint of a tiny version, on Ray Serve: what the OpenAI client and LangChain get from it over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pytest
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests.fakes import ignore_status
from tests.serving.endpoint import KEY, PORT, URL, client

TOOL = {"type": "function", "function": {"name": "restart"}}


def test_endpoint_answers_like_the_tuned_model(endpoint_config: Config, endpoint: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "How bad is it?\n\nthe shop is down"}]
    response = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
    renderer = load_renderer(RunFolder.from_config(endpoint_config).model_dir)
    engine = create_engine(RunFolder.from_config(endpoint_config).model_dir, renderer.contract, endpoint_config.serving)
    prompt = renderer.prompt(messages)
    [expected] = generate_all(engine, [prompt], SamplingParams(8))
    engine.close()
    assert response.choices[0].message.content == renderer.tokenizer.decode(expected.token_ids)
    assert response.choices[0].finish_reason == expected.finish_reason
    assert response.usage.prompt_tokens == len(prompt)
    assert response.system_fingerprint.startswith("tiny-1-")


def test_streamed_answer_equals_the_complete_answer(endpoint: openai.OpenAI) -> None:
    request = {"model": "tiny@champion", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
    complete = endpoint.chat.completions.create(**request)
    chunks = list(endpoint.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == complete.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.total_tokens == complete.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == complete.choices[0].finish_reason


def test_concurrent_requests_get_the_answers_of_single_requests(
    endpoint: openai.OpenAI, endpoint_config: Config
) -> None:
    def ask(text: str) -> str | None:
        messages = [{"role": "user", "content": text}]
        response = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=6)
        return response.choices[0].message.content

    texts = [f"report {number} is slow" for number in range(4)]
    expected = [ask(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, texts)) == expected


def test_langchain_gets_answers(endpoint: openai.OpenAI) -> None:
    llm = ChatOpenAI(model="tiny", base_url=URL, api_key=KEY, temperature=0, max_tokens=4)
    chain = PromptTemplate.from_template("Rate: {report}") | llm
    assert chain.invoke({"report": "x"}).content == llm.invoke("Rate: x").content
    assert "".join(str(chunk.content) for chunk in llm.stream("Rate: x")) == llm.invoke("Rate: x").content


def test_choices_log_probabilities_and_bias(endpoint: openai.OpenAI) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    sampled = endpoint.chat.completions.create(**request, n=3, seed=1, temperature=1.0, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in sampled.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in sampled.choices}) > 1
    for choice in sampled.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    again = endpoint.chat.completions.create(**request, n=3, seed=1, temperature=1.0)
    assert [one.message.content for one in again.choices] == [one.message.content for one in sampled.choices]
    # Streamed, all choices come at once.
    chunks = list(endpoint.chat.completions.create(**request, n=3, seed=1, temperature=1.0, logprobs=True, stream=True))
    for expected in sampled.choices:
        deltas = [one for chunk in chunks for one in chunk.choices if one.index == expected.index]
        assert "".join(delta.delta.content or "" for delta in deltas) == expected.message.content
        assert deltas[-1].finish_reason == expected.finish_reason
        log_probs = [token.logprob for delta in deltas if delta.logprobs for token in delta.logprobs.content]
        assert log_probs == pytest.approx([token.logprob for token in expected.logprobs.content], abs=1e-4)
    biased = endpoint.chat.completions.create(**request, logit_bias={"40": 100}, temperature=0)
    assert biased.usage.completion_tokens == 4 and len(set(biased.choices[0].message.content)) == 1


class Severity(BaseModel):
    """The answer of a structured question."""

    severity: Literal["High", "Low"]


def test_structured_output_follows_its_schema(endpoint: openai.OpenAI, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Rate: the shop is down"}]
    # Without white space, so that the answer of a random model is not longer than the endpoint's limit.
    bias = {token_id: -100 for text in (" ", "\n", "\t", "\r") for token_id in tokenizer.encode(text)}
    parsed = endpoint.chat.completions.parse(
        model="tiny",
        messages=messages,
        response_format=Severity,
        temperature=1.5,
        logit_bias={str(token_id): value for token_id, value in bias.items()},
    )
    assert isinstance(parsed.choices[0].message.parsed, Severity)
    llm = ChatOpenAI(model="tiny", base_url=URL, api_key=KEY, logit_bias=bias)
    assert isinstance(llm.with_structured_output(Severity).invoke("Rate: x"), Severity)
    body = {"model": "tiny", "messages": messages, "response_format": {
        "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no such type"}}
    }}  # fmt: skip
    response = client.post(f"{URL}/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json_schema")


def test_body_that_is_too_large_is_refused(endpoint: openai.OpenAI) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 100_001}]}
    response = client.post(f"{URL}/chat/completions", json=request)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert response.headers["x-should-retry"] == "false"


def test_answers_name_version_and_request(endpoint: openai.OpenAI) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    headers = [client.post(f"{URL}/chat/completions", json=request).headers for _ in range(2)]
    assert headers[0]["x-model-version"] == "tiny/1"
    # Ray Serve's, which its logs have too.
    assert headers[0]["x-request-id"] != headers[1]["x-request-id"]


def test_base_model_answers_beside_the_version(endpoint: openai.OpenAI) -> None:
    request = {"messages": [{"role": "user", "content": "How bad is it?\n\nthe shop is down"}], "temperature": 0}
    tuned, base = (endpoint.chat.completions.create(model=name, **request) for name in ("tiny/1", "tiny@base"))
    assert tuned.system_fingerprint.startswith("tiny-1-") and base.system_fingerprint.startswith("tiny-base-")
    assert tuned.choices[0].message.content != base.choices[0].message.content
    text = client.get(f"http://127.0.0.1:{PORT}/metrics").text
    assert 'instruct_ray_answers_total{version="base"}' in text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "no model 'other' here; use one of tiny, tiny@champion, tiny/1"),
        ({"model": "tiny@previous"}, 404, "is configured but can't be served now; /health says why"),
        ({"tools": []}, 400, "tools: List should have at least 1 item"),
        ({"tools": [TOOL]}, 400, "tools: the chat template of this model writes no tools"),
        ({"messages": []}, 400, "messages: "),
        ({"logit_bias": {"100000": 1}}, 400, "logit_bias: the model has no token 100000"),
        ({"temperature": 9}, 400, "temperature: "),
        ({"max_tokens": 100_000}, 400, "This model's maximum context length is 512 tokens"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "maximum context length is 512 tokens"),
    ],
)
def test_errors_have_the_openai_format(
    endpoint: openai.OpenAI, body: dict[str, object], status: int, message: str
) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | body
    response = client.post(f"{URL}/chat/completions", json=request)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert message in response.json()["error"]["message"]


def test_invalid_json_and_unknown_routes_have_the_openai_error_format(endpoint: openai.OpenAI) -> None:
    invalid = client.post(f"{URL}/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert (invalid.status_code, set(invalid.json())) == (400, {"error"})
    unknown = client.get(f"{URL}/nothing")
    assert (unknown.status_code, set(unknown.json())) == (404, {"error"})


def test_overload_returns_429_and_other_requests_are_answered(endpoint: openai.OpenAI) -> None:
    def ask(number: int) -> int:
        request = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 24}
        return client.post(f"{URL}/chat/completions", json=request).status_code

    with ThreadPoolExecutor(48) as pool:
        codes = list(pool.map(ask, range(48)))
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 8
    assert ask(0) == 200


def test_port_in_use_is_refused(
    endpoint: openai.OpenAI, endpoint_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=f"serving.port: 127.0.0.1:{PORT} can't be used"):
        start_endpoint(endpoint_config, ignore_status)
