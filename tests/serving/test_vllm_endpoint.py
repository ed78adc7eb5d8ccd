"""An endpoint on the vLLM engine serves a registered version, which must pass the live check."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from ray import serve
from transformers import PreTrainedTokenizerFast

from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests import tiny
from tests.fakes import ignore_status
from tests.inference.vllm_mark import NEEDS_VLLM

pytestmark = NEEDS_VLLM
PORT = 8767


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, triples_file: Path, ray_4_cpus: None
) -> Config:
    """A registered run of a tiny model whose heads have a size that vLLM knows."""
    base = tiny.save_base(tmp_path_factory.mktemp("base"), tokenizer, head_dim=32)
    config = tiny.configure(
        tmp_path_factory.mktemp("runs"), base, triples_file,
        train={"learning_rate": 1e-2, "epochs": 2},
        serving={"engine": "vllm", "port": PORT, "kv_cache_bytes": 2**26, "follow_seconds": 0.5},
    )  # fmt: skip
    # The evidence needs no second engine.
    transformers = config.model_copy(update={"serving": config.serving.model_copy(update={"engine": "transformers"})})
    for run_stage in (run_prepare, run_tune, run_evaluate, run_register):
        run_stage(transformers)
    return config


@pytest.fixture(scope="module")
def client(config: Config) -> Iterator[openai.OpenAI]:
    start_endpoint(config, ignore_status)
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0)
    serve.shutdown()


def test_endpoint_gives_the_answers_of_the_transformers_engine(config: Config, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "How bad is it?\n\nthe shop is down"}]
    response = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
    model_dir = RunFolder.from_config(config).model_dir
    renderer = load_renderer(model_dir)
    engine = create_engine(model_dir, renderer.contract, config.serving.model_copy(update={"engine": "transformers"}))
    [expected] = generate_all(engine, [renderer.prompt(messages)], SamplingParams(8))
    engine.close()
    assert response.choices[0].message.content == renderer.tokenizer.decode(expected.token_ids)
    assert response.choices[0].finish_reason == expected.finish_reason
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, temperature=0, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
