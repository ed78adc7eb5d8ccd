"""What every engine does: the same greedy answers, log-probabilities, settings, grammars, ends and errors.

The model's folder has a generation_config.json that would change every answer, and the contract's stop token is not the
tokenizer's end token.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.inference.engine import (
    Engine,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Token,
    generate_all,
)
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.grammars import choice_grammar, json_grammar
from tests.inference.vllm_mark import NEEDS_VLLM

PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13], [20], [21, 22, 23, 24]]
LABELS = ["High", "Medium", "Low", 'it\'s "quoted" \\ 数据']
CONTEXT = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama whose most likely tokens are far from the second ones; its heads have a size that vLLM knows."""
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"repetition_penalty": 5.0, "temperature": 0.3, "do_sample": True, "eos_token_id": list(range(3, 200))}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return derive_renderer(folder, None)


@pytest.fixture(scope="module")
def contract(renderer: Renderer) -> PromptContract:
    stop_token_id = renderer.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert stop_token_id != renderer.tokenizer.eos_token_id
    return replace(renderer.contract, stop_token_id=stop_token_id)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def engine(request: pytest.FixtureRequest, folder: Path, contract: PromptContract) -> Iterator[Engine]:
    serving = ServingConfig(engine=request.param, max_batch_size=4, kv_cache_bytes=2**26)
    engine = create_engine(folder, contract, serving)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def next_logits(folder: Path) -> Callable[[Sequence[int]], torch.Tensor]:
    """Reference: the logits of the token after some tokens, without a cache, without padding."""
    model = AutoModelForCausalLM.from_pretrained(folder)

    @torch.inference_mode()
    def compute(token_ids: Sequence[int]) -> torch.Tensor:
        return model(torch.tensor([list(token_ids)])).logits[0, -1].float()

    return compute


@pytest.fixture(scope="module")
def decode(next_logits: Callable[[Sequence[int]], torch.Tensor], contract: PromptContract) -> Callable[..., list[int]]:
    """Reference: greedy decoding with OpenAI's penalties and bias."""

    def decode(prompt: list[int], sampling: SamplingParams) -> list[int]:
        found: list[int] = []
        while len(found) < sampling.max_new_tokens:
            logits = next_logits([*prompt, *found]).clone()
            for token_id, count in Counter(found).items():
                logits[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * count
            for token_id, bias in sampling.logit_bias:
                logits[token_id] += bias
            token_id = int(logits.argmax())
            if token_id == contract.stop_token_id:
                break
            found.append(token_id)
        return found

    return decode


class Recorder:
    """A request that keeps what the engine says."""

    def __init__(self, prompt: list[int], sampling: SamplingParams, cancels_itself: bool = False) -> None:
        self.tokens: list[Token] = []
        self.reasons: list[FinishReason] = []
        self.started, self.finished = threading.Event(), threading.Event()
        self._cancels_itself = cancels_itself
        self.request = GenerationRequest(prompt, sampling, self._on_token, self._on_finish)

    def _on_token(self, token: Token) -> None:
        self.tokens.append(token)
        self.started.set()
        if self._cancels_itself:
            self.request.cancelled.set()

    def _on_finish(self, reason: FinishReason) -> None:
        self.reasons.append(reason)
        self.finished.set()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(12),
        SamplingParams(12, temperature=1e-45),
        SamplingParams(12, presence_penalty=2.0, frequency_penalty=1.0),
        SamplingParams(12, frequency_penalty=-2.0),
        SamplingParams(12, logit_bias=((7, 5.0), (300, 4.0), (30, -100.0))),
    ],
    ids=["plain", "tiny_temperature", "penalties", "negative_penalty", "bias"],
)
def test_greedy_answers_are_those_of_the_model(
    engine: Engine, decode: Callable[..., list[int]], sampling: SamplingParams
) -> None:
    completions = generate_all(engine, PROMPTS, sampling)
    assert [one.token_ids for one in completions] == [decode(prompt, sampling) for prompt in PROMPTS]
    assert {one.finish_reason for one in completions} == {"length"}


def test_shared_prefix_does_not_change_answers(engine: Engine, decode: Callable[..., list[int]]) -> None:
    prefix = [5 + number % 50 for number in range(150)]
    prompts = [[*prefix, *rest] for rest in ([30], [31, 32, 33], [34, 35])]
    expected = [decode(prompt, SamplingParams(6)) for prompt in prompts]
    for _ in range(2):
        assert [one.token_ids for one in generate_all(engine, prompts, SamplingParams(6))] == expected


def test_stop_token_of_the_contract_ends_an_answer_and_no_other(
    engine: Engine, contract: PromptContract, renderer: Renderer
) -> None:
    stop = SamplingParams(5, logit_bias=((contract.stop_token_id, 100.0),))
    end_token_id = renderer.tokenizer.eos_token_id
    other = SamplingParams(5, logit_bias=((end_token_id, 100.0),))
    [stopped, going_on] = generate_all(engine, PROMPTS[:2], [stop, other])
    assert (stopped.token_ids, stopped.finish_reason) == ([], "stop")
    assert (going_on.token_ids, going_on.finish_reason) == ([end_token_id] * 5, "length")


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, {"logit_bias": ((7, 100.0),)}], ids=str)
def test_log_probabilities_are_those_of_the_model(
    engine: Engine, next_logits: Callable[[Sequence[int]], torch.Tensor], settings: dict[str, object]
) -> None:
    params = [SamplingParams(5, num_top_log_probs=number, **settings) for number in (3, 0, 20, 3)]
    for prompt, sampling, completion in zip(PROMPTS, params, generate_all(engine, PROMPTS, params), strict=True):
        token_ids = list(prompt)
        assert len(completion.tokens) == 5
        for token in completion.tokens:
            expected = torch.log_softmax(next_logits(token_ids), dim=-1)
            assert token.log_probs is not None
            assert token.log_probs.chosen == pytest.approx(float(expected[token.id]), abs=1e-3)
            values, ids = expected.topk(sampling.num_top_log_probs)
            assert [value for _, value in token.log_probs.top] == pytest.approx(values.tolist(), abs=1e-3)
            assert [token_id for token_id, _ in token.log_probs.top][:1] == ids.tolist()[:1]
            token_ids.append(token.id)


def test_each_request_of_a_batch_has_its_own_limit(engine: Engine) -> None:
    limits = [2, 5, 1, 9, 3, 4]
    completions = generate_all(engine, [PROMPTS[0]] * 6, [SamplingParams(limit) for limit in limits])
    assert [len(one.tokens) for one in completions] == limits


def test_seed_gives_the_same_completion_whatever_shares_the_batch(engine: Engine) -> None:
    seeded = SamplingParams(8, temperature=1.0, seed=-7)
    [alone] = generate_all(engine, PROMPTS[:1], seeded)
    others = [SamplingParams(8), SamplingParams(6, temperature=1.3, top_p=0.9), SamplingParams(8, presence_penalty=1.0)]
    [together, greedy, *_] = generate_all(engine, PROMPTS, [seeded, *others])
    assert together == alone and len(alone.tokens) > 1
    assert greedy == generate_all(engine, [PROMPTS[1]], SamplingParams(8))[0]
    assert generate_all(engine, PROMPTS[:1], replace(seeded, seed=8)) != [alone]


def test_requests_without_a_seed_differ(engine: Engine) -> None:
    completions = generate_all(engine, [PROMPTS[0]] * 4, SamplingParams(12, temperature=2.0))
    assert len({tuple(one.token_ids) for one in completions}) > 1


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
def test_tiny_top_p_keeps_the_most_likely_token(engine: Engine, decode: Callable[..., list[int]], top_p: float) -> None:
    [completion] = generate_all(engine, PROMPTS[:1], SamplingParams(6, temperature=1.0, top_p=top_p))
    assert completion.token_ids == decode(PROMPTS[0], SamplingParams(6))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_answers_outside_the_choices_can_not_happen(
    engine: Engine, renderer: Renderer, contract: PromptContract, temperature: float
) -> None:
    sampling = SamplingParams(40, temperature=temperature, grammar=choice_grammar(contract, LABELS))
    completions = generate_all(engine, PROMPTS * 6, sampling)
    answers = {renderer.decode(completion.token_ids) for completion in completions}
    assert answers <= set(LABELS) and {one.finish_reason for one in completions} == {"stop"}
    if temperature:
        assert len(answers) > 1


def test_json_follows_its_schema(engine: Engine, renderer: Renderer, contract: PromptContract) -> None:
    schema = {
        "type": "object",
        "properties": {
            "severity": {"enum": ["High", "Low"]},
            "hours": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["severity", "hours"],
        "additionalProperties": False,
    }
    free, bound = SamplingParams(5), SamplingParams(200, temperature=1.0, grammar=json_grammar(contract, schema))
    completions = generate_all(engine, [*PROMPTS, *PROMPTS], [free, bound, bound, bound] * 2)
    for completion in [*completions[1:4], *completions[5:]]:
        assert completion.finish_reason == "stop"
        jsonschema.validate(json.loads(renderer.decode(completion.token_ids)), schema)


def test_cancelled_requests_end_and_free_their_places(engine: Engine) -> None:
    long = SamplingParams(CONTEXT - 10)
    cancels_itself = Recorder(PROMPTS[0], long, cancels_itself=True)
    # More than fit the batch, so some of them wait.
    others = [Recorder(PROMPTS[0], long) for _ in range(8)]
    cancelled_before = Recorder(PROMPTS[0], long)
    cancelled_before.request.cancelled.set()
    for one in (cancels_itself, *others, cancelled_before):
        engine.submit(one.request)
    for one in others:
        one.request.cancelled.set()
    for one in (cancels_itself, *others, cancelled_before):
        assert one.finished.wait(60)
        assert one.reasons == ["cancelled"]
    assert len(cancels_itself.tokens) == 1
    assert not cancelled_before.tokens
    assert len(generate_all(engine, PROMPTS[:1], SamplingParams(2))[0].tokens) == 2


def test_failed_request_ends_alone(engine: Engine) -> None:
    going_on = Recorder(PROMPTS[0], SamplingParams(100))
    engine.submit(going_on.request)
    # Prompts that are read together may fail together.
    assert going_on.started.wait(60)
    for prompt, sampling in [
        ([10**9], SamplingParams(2)),
        (PROMPTS[1], SamplingParams(2, grammar="start: undefined_rule")),
    ]:
        failed = Recorder(prompt, sampling)
        engine.submit(failed.request)
        assert failed.finished.wait(60)
        assert failed.reasons == ["error"] and failed.request.error
    assert going_on.finished.wait(60)
    assert going_on.reasons == ["length"] and len(going_on.tokens) == 100
    assert engine.is_alive


def test_context_is_that_of_the_model(engine: Engine, decode: Callable[..., list[int]]) -> None:
    assert engine.max_context == CONTEXT
    prompt = [5 + number % 90 for number in range(CONTEXT - 4)]
    [completion] = generate_all(engine, [prompt], SamplingParams(4))
    assert completion.token_ids == decode(prompt, SamplingParams(4))
