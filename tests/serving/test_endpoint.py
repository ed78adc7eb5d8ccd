"""The endpoint of a tiny version, on Ray Serve: what the OpenAI client and LangChain get from it over HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx2
import openai
import pytest
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests.browser import CTRL, find_chromium, open_browser
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
    assert chunks[-1].usage == complete.usage
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


def test_text_is_continued_without_a_template(endpoint: openai.OpenAI, endpoint_config: Config) -> None:
    prompts = ["How bad is it", "the shop"]
    request = {"model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 6, "logprobs": 2}
    response = endpoint.completions.create(**request)
    renderer = load_renderer(RunFolder.from_config(endpoint_config).model_dir)
    engine = create_engine(RunFolder.from_config(endpoint_config).model_dir, renderer.contract, endpoint_config.serving)
    expected = generate_all(engine, [renderer.continued_text(text) for text in prompts], SamplingParams(6))
    engine.close()
    assert [choice.text for choice in response.choices] == [renderer.decode(one.token_ids) for one in expected]
    assert response.usage.completion_tokens == sum(len(one.token_ids) for one in expected)
    for choice in response.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs)
    chunks = list(endpoint.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for choice in response.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset]
        assert offsets == choice.logprobs.text_offset
    assert chunks[-1].usage == response.usage
    ids = client.post(f"{URL}/completions", json={"model": "tiny", "prompt": [1, 2]})
    assert (ids.status_code, "token ids" in ids.json()["error"]["message"]) == (400, True)


def test_responses_api_answers_like_the_chat_api(endpoint: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    chat = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=6)
    request = {"model": "tiny", "instructions": "Be brief.", "input": "hello", "temperature": 0, "max_output_tokens": 6}
    response = endpoint.responses.create(**request)
    assert response.output_text == chat.choices[0].message.content
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        chat.usage.prompt_tokens, chat.usage.completion_tokens
    )  # fmt: skip
    is_cut = chat.choices[0].finish_reason == "length"
    assert response.status == ("incomplete" if is_cut else "completed") and response.store is False
    events = list(endpoint.responses.create(**request, stream=True))
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == response.output_text
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert events[-1].response.output[0].content == response.output[0].content
    with endpoint.responses.stream(**request) as stream:
        assert stream.get_final_response().output_text == response.output_text
    # An answer that is sent back.
    again = endpoint.responses.create(
        model="tiny", input=[{"role": "user", "content": "hello"}, *response.output, {"role": "user", "content": "x"}]
    )
    plain = endpoint.responses.create(model="tiny", input="hello")
    assert again.usage.input_tokens > plain.usage.input_tokens
    llm = ChatOpenAI(model="tiny", base_url=URL, api_key=KEY, temperature=0, use_responses_api=True)
    assert llm.invoke("hello").response_metadata["status"] in ("completed", "incomplete")
    refused = client.post(f"{URL}/responses", json={**request, "previous_response_id": "resp_1"})
    assert refused.json()["error"]["message"] == "previous_response_id: not supported by this endpoint"


def test_responses_api_follows_a_schema(endpoint: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    text = {"format": {"type": "json_schema", "name": "answer", "schema": {**schema, "additionalProperties": False}}}
    response = endpoint.responses.create(model="tiny", input="Is it?", text=text)
    assert response.status == "incomplete" or set(json.loads(response.output_text)) == {"ok"}


def test_every_route_but_health_and_a_static_page_needs_a_key(endpoint: openai.OpenAI) -> None:
    root = f"http://127.0.0.1:{PORT}"
    for path in ("/v1/models", "/v1/nothing", "/metrics", "/health/generate", "/openapi.json", "/playground/settings"):
        response = httpx2.get(root + path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert httpx2.get(root + path, headers={"Authorization": "Bearer sk-other"}).status_code == 401
    assert httpx2.get(root + "/health").status_code == httpx2.get(root + "/").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=URL, api_key="sk-other", max_retries=0).models.list()


def test_probe_generates_a_token_and_metrics_count_it(endpoint: openai.OpenAI) -> None:
    root = f"http://127.0.0.1:{PORT}"
    assert client.get(f"{root}/health/generate").json() == {"status": "ok", "model": "tiny", "version": "1"}

    def read(name: str) -> float:
        families = text_string_to_metric_families(client.get(f"{root}/metrics").text)
        return sum(one.value for family in families for one in family.samples if one.name == f"instruct_ray_{name}")

    before, num_requests = read("tokens_total"), read("requests_total")
    usage = endpoint.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}]).usage
    assert read("tokens_total") - before == usage.total_tokens
    assert read("requests_total") - num_requests >= 2
    assert read("served_version") == 2


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


def test_models_and_health_routes_name_the_versions(endpoint: openai.OpenAI) -> None:
    listed = {model.id: (model.model_extra or {})["version"] for model in endpoint.models.list()}
    assert listed == {"tiny": "1", "tiny@champion": "1", "tiny/1": "1", "tiny@base": "base"}
    assert [endpoint.models.retrieve(name).id for name in ("tiny", "tiny/1")] == ["tiny", "tiny/1"]
    health = client.get(f"http://127.0.0.1:{PORT}/health").json()
    reason = "no decision is recorded that replaced a version of tiny@champion"
    assert health == {
        "status": "ok", "model": "tiny", "version": "1", "not_followed": None, "not_served": {"tiny@previous": reason}
    }  # fmt: skip


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


def test_playground_shows_answers_and_saves_the_better_one(endpoint: openai.OpenAI, endpoint_config: Config) -> None:
    chromium, file = find_chromium(), endpoint_config.serving.feedback_file
    if chromium is None:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    renderer = load_renderer(RunFolder.from_config(endpoint_config).model_dir)
    messages = renderer.messages("How bad is it?", "the shop is down")
    expected = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0)
    with open_browser(chromium) as page:
        page.open(f"http://127.0.0.1:{PORT}/", 1280, 900, dark=False, is_phone=False)
        page.wait_until("document.activeElement.id === 'key'")
        page.write("key", KEY)
        page.press("Enter")
        page.wait_until("document.querySelector('#model-list input')")
        page.write("instruction", "How bad is it?")
        page.write("input", "the shop is down")
        page.press("Enter", CTRL)
        page.wait_until("document.querySelector('article .facts')?.textContent")
        text, facts = page.evaluate("['text', 'facts'].map(e => document.querySelector(`article .${e}`).textContent)")
        page.press("1")
        page.write("output", "High")
        page.press("Enter", CTRL)
        page.wait_until("document.getElementById('notice').textContent === 'The triple is saved.'")
    assert text == expected.choices[0].message.content
    assert (
        f"{expected.usage.prompt_tokens} prompt tokens · {expected.usage.completion_tokens} completion token" in facts
    )
    assert file is not None
    row = json.loads(file.read_text())
    assert (row["instruction"], row["input"], row["output"]) == ("How bad is it?", "the shop is down", "High")
    shown = row["provenance"]["answers"][0]
    assert (shown["version"], shown["output"]) == ("tiny/1", text)
    assert shown["contract_digest"] == renderer.contract.digest
    assert row["provenance"]["key"] == "tests"


def test_port_in_use_is_refused(
    endpoint: openai.OpenAI, endpoint_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=f"serving.port: 127.0.0.1:{PORT} can't be used"):
        start_endpoint(endpoint_config, ignore_status)
