"""The endpoint of a tiny version, on Ray Serve: the routes besides chats, over HTTP."""

import json

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families

from instruct_ray.cli.runs import run_runs
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests.browser import CTRL, find_chromium, open_browser
from tests.serving.endpoint import KEY, PORT, URL, client


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
    assert chunks[-1].usage.total_tokens == response.usage.total_tokens
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


def test_models_and_health_routes_name_the_versions(endpoint: openai.OpenAI) -> None:
    listed = {model.id: (model.model_extra or {})["version"] for model in endpoint.models.list()}
    assert listed == {"tiny": "1", "tiny@champion": "1", "tiny/1": "1", "tiny@base": "base"}
    assert [endpoint.models.retrieve(name).id for name in ("tiny", "tiny/1")] == ["tiny", "tiny/1"]
    health = client.get(f"http://127.0.0.1:{PORT}/health").json()
    reason = "no version of tiny@champion to go back to is recorded"
    assert health == {
        "status": "ok", "model": "tiny", "version": "1", "not_followed": None, "not_served": {"tiny@previous": reason}
    }  # fmt: skip


def test_list_of_runs_shows_aliases_and_the_endpoint(
    endpoint: openai.OpenAI, endpoint_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    storages = [endpoint_config.run.storage]
    # One that nobody serves is said, and costs the others nothing.
    run_runs(storages, None, [URL, "http://127.0.0.1:9/v1"], as_json=False)
    output = capsys.readouterr()
    [line] = [line for line in output.out.splitlines() if line.startswith("tiny ")]
    assert line.endswith(f"  {URL}")
    assert "tiny/1 @champion" in line
    assert output.err.startswith("warning: the endpoint http://127.0.0.1:9/v1 can't be reached")
    # The other routes of the same server are no endpoint.
    run_runs(storages, None, [f"{URL}/models"], as_json=True)
    output = capsys.readouterr()
    [run] = json.loads(output.out)
    assert (run["version"], run["aliases"], run["endpoint"]) == ("tiny/1", ["champion"], None)
    assert "does not say which version it serves (HTTP status 401)" in output.err


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
