"""From triples to an endpoint on a GPU: tuned, evaluated and registered there, and asked over HTTP."""

from collections.abc import Callable

import httpx
import openai
import torch
from ray import serve

from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests.gpu.gpu_mark import NEEDS_GPU

pytestmark = NEEDS_GPU
PORT = 8765
QUESTION = [{"role": "user", "content": "How bad is it?\n\nsearch is slow in room 7"}]


def test_endpoint_answers_as_its_engine(configure_run: Callable[..., Config]) -> None:
    train = {"examples_per_step": 12, "epochs": 6, "learning_rate": 1e-2, "use_gpu": True, "zero_stage": 1}
    serving = {"engine": "transformers", "num_gpus": 1, "port": PORT, "max_new_tokens": 8}
    config = configure_run(train=train, serving=serving)
    for run_stage in (run_tune, run_evaluate, run_register):
        run_stage(config)
    free_before = torch.cuda.mem_get_info()[0]
    url = start_endpoint(config, lambda text: None)
    try:
        assert torch.cuda.mem_get_info()[0] < free_before, "the replica uses no GPU"
        assert httpx.get(url.replace("/v1", "/health/generate")).status_code == 200
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        request = {"model": config.registry.name, "messages": QUESTION, "temperature": 0}
        answer = client.chat.completions.create(**request).choices[0].message.content
        parts = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**request, stream=True)]
    finally:
        serve.shutdown()
    assert "".join(parts) == answer == answer_alone(config)


def answer_alone(config: Config) -> str:
    """The answer of the model's engine in this process, which also computes on the GPU."""
    model_dir = RunFolder.from_config(config).model_dir
    renderer = load_renderer(model_dir)
    engine = create_engine(model_dir, renderer.contract, ServingConfig(engine="transformers"))
    try:
        [completion] = generate_all(engine, [renderer.prompt(QUESTION)], SamplingParams(8))
    finally:
        engine.close()
    return renderer.tokenizer.decode(completion.token_ids)
