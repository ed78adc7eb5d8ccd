"""The stages end to end on the tiny model: from triples to answers for the OpenAI client and LangChain."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI
from ray import serve
from safetensors.torch import load_file

from instruct_ray.cli.main import main
from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.generate import run_generate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config, ServingConfig
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from tests.fakes import ignore_status

PORT = 8765
URL = f"http://127.0.0.1:{PORT}/v1"


@pytest.fixture(scope="module")
def config(tuned: Config) -> Config:
    """A run that is registered as a version."""
    serving = ServingConfig(port=PORT, max_new_tokens=24, max_batch_size=4, max_queued_requests=4)
    config = tuned.model_copy(update={"serving": serving})
    for stage in (run_evaluate, run_register):
        stage(config)
    return config


@pytest.fixture(scope="module")
def endpoint(config: Config) -> Iterator[openai.OpenAI]:
    """A client of the endpoint that serves the version."""
    start_endpoint(config, ignore_status)
    yield openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
    serve.shutdown()


def test_run_folder_holds_the_results_of_all_stages(config: Config) -> None:
    folder = RunFolder.from_config(config)
    for path in (
        folder.test_rows_file,
        folder.metrics_file,
        folder.contract_file,
        folder.evidence_file,
        folder.version_file,
    ):
        assert path.is_file(), path
    assert (folder.model_dir / "model.safetensors").is_file()
    assert list(folder.packs_dir.glob("*/manifest.json"))
    assert list(folder.ray_train_dir.glob("checkpoint-*"))
    assert not [path for path in folder.path.rglob("*") if path.suffix in (".pkl", ".bin")]


def test_evidence_compares_all_arms(config: Config) -> None:
    folder = RunFolder.from_config(config)
    evidence = json.loads(folder.evidence_file.read_text())
    assert list(evidence["arms"]) == ["zero_shot", "few_shot", "tuned"]
    assert evidence["arms"]["few_shot"]["prompt_tokens"] > 2 * evidence["arms"]["tuned"]["prompt_tokens"]
    assert all(arm["latency_p50_seconds"] > 0 for arm in evidence["arms"].values())
    answers = folder.evidence_file.with_name("answers.jsonl").read_text().splitlines()
    assert len(answers) == evidence["num_test"] == len(folder.test_rows_file.read_text().splitlines())


@pytest.mark.parametrize("stage", [run_prepare, run_tune, run_evaluate, run_register])
def test_finished_stage_does_nothing_and_reports_it(
    config: Config, capsys: pytest.CaptureFixture[str], stage: Callable[[Config], None]
) -> None:
    stage(config)
    assert "already " in capsys.readouterr().out


def test_version_has_tags_of_its_origin(config: Config) -> None:
    version = ModelRegistry(tracking_uri(config)).resolve("models:/tiny@champion")
    assert version.number == "1"
    assert {"base", "base_digest", "data_digest", "contract_digest", "config", "run"} <= version.tags.keys()


def test_version_holds_the_tuned_weights_and_no_pickle(config: Config, tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri(config))
    folder = registry.download(registry.resolve("models:/tiny/1"), tmp_path)
    tuned = load_file(RunFolder.from_config(config).model_dir / "model.safetensors")
    downloaded = load_file(folder / "model.safetensors")
    assert all((downloaded[name] == tensor).all() for name, tensor in tuned.items())
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_rerun_of_a_killed_registration_makes_no_second_version(config: Config) -> None:
    RunFolder.from_config(config).version_file.unlink()
    run_register(config)
    assert ModelRegistry(tracking_uri(config)).aliases("tiny") == {"champion": "1"}


def test_generate_gives_the_same_answers_with_the_version_and_the_run(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {}
    for name, model in (("version", "models:/tiny@champion"), ("run", None)):
        run_generate(config, model, tmp_path / name)
        assert "generated: 64 rows" in capsys.readouterr().out
        answers[name] = "".join(part.read_text() for part in sorted((tmp_path / name).glob("part-*")))
    assert answers["version"] == answers["run"]
    assert {json.loads(line)["finish_reason"] for line in answers["run"].splitlines()} <= {"stop", "length"}


def test_mlflow_run_has_params_and_metrics(config: Config) -> None:
    client = ModelRegistry(tracking_uri(config)).client
    run_id = json.loads((RunFolder.from_config(config).path / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    lines = RunFolder.from_config(config).metrics_file.read_text().splitlines()
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rate"] == "0.01"
    assert len(client.get_metric_history(run_id, "loss")) == len(lines)


def test_endpoint_answers_like_the_tuned_model(config: Config, endpoint: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "How bad is it?\n\nthe shop is down"}]
    response = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
    renderer = load_renderer(RunFolder.from_config(config).model_dir)
    engine = create_engine(RunFolder.from_config(config).model_dir, renderer.contract, config.serving)
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


def test_concurrent_requests_get_the_answers_of_single_requests(endpoint: openai.OpenAI, config: Config) -> None:
    def ask(text: str) -> str | None:
        messages = [{"role": "user", "content": text}]
        response = endpoint.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=6)
        return response.choices[0].message.content

    texts = [f"report {number} is slow" for number in range(4)]
    expected = [ask(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, texts)) == expected


def test_langchain_gets_answers(endpoint: openai.OpenAI) -> None:
    llm = ChatOpenAI(model="tiny", base_url=URL, api_key="none", temperature=0, max_tokens=4)
    chain = PromptTemplate.from_template("Rate: {report}") | llm
    assert chain.invoke({"report": "x"}).content == llm.invoke("Rate: x").content
    assert "".join(str(chunk.content) for chunk in llm.stream("Rate: x")) == llm.invoke("Rate: x").content


def test_models_and_health_routes_name_the_version(endpoint: openai.OpenAI) -> None:
    assert [model.id for model in endpoint.models.list()] == ["tiny", "tiny@champion"]
    assert endpoint.models.retrieve("tiny").id == "tiny"
    assert httpx2.get(f"http://127.0.0.1:{PORT}/health").json() == {"status": "ok", "model": "tiny", "version": "1"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "no model 'other' here; use one of tiny, tiny@champion"),
        ({"tools": []}, 400, "tools: not supported by this endpoint"),
        ({"messages": []}, 400, "messages: "),
        ({"temperature": 9}, 400, "temperature: "),
        ({"max_tokens": 100_000}, 400, "This model's maximum context length is 512 tokens"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "maximum context length is 512 tokens"),
    ],
)
def test_errors_have_the_openai_format(
    endpoint: openai.OpenAI, body: dict[str, object], status: int, message: str
) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | body
    response = httpx2.post(f"{URL}/chat/completions", json=request)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert message in response.json()["error"]["message"]


def test_invalid_json_and_unknown_routes_have_the_openai_error_format(endpoint: openai.OpenAI) -> None:
    invalid = httpx2.post(f"{URL}/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert (invalid.status_code, set(invalid.json())) == (400, {"error"})
    unknown = httpx2.get(f"{URL}/nothing")
    assert (unknown.status_code, set(unknown.json())) == (404, {"error"})


def test_overload_returns_429_and_other_requests_are_answered(endpoint: openai.OpenAI) -> None:
    def ask(number: int) -> int:
        request = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}]}
        return httpx2.post(f"{URL}/chat/completions", json=request, timeout=120).status_code

    with ThreadPoolExecutor(48) as pool:
        codes = list(pool.map(ask, range(48)))
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 8
    assert ask(0) == 200


def test_port_in_use_is_refused(endpoint: openai.OpenAI, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=f"serving.port: 127.0.0.1:{PORT} can't be used"):
        start_endpoint(config, ignore_status)


def run_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0


def test_promote_and_rollback_move_the_alias(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ModelRegistry(tracking_uri(config))
    source = registry.client.get_model_version("tiny", "1").source
    tags = registry.resolve("models:/tiny/1").tags
    registry.client.create_model_version("tiny", source=source, tags=tags)
    path = tmp_path / "config.yaml"
    path.write_text(config.model_dump_json())
    run_command("promote", "--config", str(path), "2")
    assert registry.aliases("tiny") == {"champion": "2", "previous": "1"}
    run_command("rollback", "--config", str(path))
    assert registry.aliases("tiny") == {"champion": "1", "previous": "2"}
    assert "models:/tiny@champion is version 1" in capsys.readouterr().out
    shutil.rmtree(tmp_path)
