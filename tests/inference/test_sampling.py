"""How tokens are chosen: sampling, penalties, bias, log-probabilities, grammars; each request of a batch by its own."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers.generation import TopPLogitsWarper

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.tool_format import CallSyntax
from instruct_ray.inference.engine import Engine, GenerationRequest, SamplingParams, Token, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.grammars import json_grammar
from instruct_ray.inference.row_sampler import RowSampler
from instruct_ray.inference.tool_grammar import CallRules, tool_grammar

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13], [20], [21, 22, 23, 24]]


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


@pytest.fixture(scope="module")
def engine(base_folder: Path, renderer: Renderer) -> Iterator[Engine]:
    engine = create_engine(base_folder, renderer.contract, ServingConfig(max_batch_size=8))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ('{"a":1,"b":[1,2]}', True),
        ('{"a": 1, "b": [1, 2]}', True),
        ('{"a": 1,\n  "b": [1,\n    2]}', True),
        ('{"a":' + " " * 2, False),
        ('{"a": 1,' + " " * 17, False),
        ("{" + " " * 2, False),
        ('{"a": 1 ', False),
    ],
)
def test_white_space_of_json_is_bounded(text: str, is_allowed: bool, renderer: Renderer) -> None:
    properties = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}}
    grammar = json_grammar(renderer.contract, {"type": "object", "properties": properties, "required": ["a", "b"]})
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    token_ids = LLTokenizer("byte").tokenize_str(renderer.contract.answer_prefix + text)
    assert (matcher.validate_tokens(token_ids) == len(token_ids)) is is_allowed


@pytest.mark.parametrize("top_p", [1e-300, 1e-45, 1e-9])
def test_tiny_top_p_keeps_the_most_likely_token(top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3))
    assert draw(SamplingParams(1, temperature=1.0, top_p=top_p), logits, 20).keys() == {int(logits.argmax())}


def test_failure_of_one_row_ends_it_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = RowSampler.choose

    def fail_if_sampled(self: RowSampler, logits: torch.Tensor) -> Token:
        if self._sampling.temperature == 0.7:
            raise RuntimeError("a broken sampler")
        return choose(self, logits)

    monkeypatch.setattr(RowSampler, "choose", fail_if_sampled)
    reasons: dict[float, str] = {}
    finished = threading.Semaphore(0)

    def submit(temperature: float) -> None:
        def finish(reason: str) -> None:
            reasons[temperature] = reason
            finished.release()

        engine.submit(GenerationRequest(PROMPTS[0], SamplingParams(4, temperature=temperature), lambda _: None, finish))

    for temperature in (0.5, 0.7, 0.9):
        submit(temperature)
    for _ in range(3):
        assert finished.acquire(timeout=60)
    assert reasons.pop(0.7) == "error"
    assert set(reasons.values()) <= {"stop", "length"}


def draw(sampling: SamplingParams, logits: torch.Tensor, count: int) -> Counter[int]:
    """How often each token is chosen first."""
    sampler = RowSampler(sampling, None, CPU)
    return Counter(sampler._choose_id(logits) for _ in range(count))


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9, 1.0])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2
    expected = torch.softmax(TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None])[0], -1)
    counts = draw(SamplingParams(1, temperature=1.0, top_p=top_p, seed=0), logits, 4000)
    assert set(counts) <= set(expected.nonzero().flatten().tolist())
    shares = torch.tensor([counts[token_id] / 4000 for token_id in range(50)])
    assert (shares - expected).abs().max() < 0.03


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0])
    cold, warm = (draw(SamplingParams(1, temperature=t, seed=0), logits, 4000)[0] / 4000 for t in (0.5, 2.0))
    assert cold == pytest.approx(1 / (1 + 2.718281828**-2), abs=0.03)
    assert warm == pytest.approx(1 / (1 + 2.718281828**-0.5), abs=0.03)


def test_penalties_and_bias_change_logits_as_openai_defines() -> None:
    sampling = SamplingParams(8, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((2, -100.0), (3, 0.5)))
    sampler = RowSampler(sampling, None, CPU)
    logits = torch.tensor([1.0, 0.9, 5.0, 0.0])
    # 0: 1.0; then 0.25 after one, 1: 0.9, then 0.15; 3: 0.5; 0 again: 0.25; …
    assert [sampler.choose(logits).id for _ in range(5)] == [0, 1, 3, 0, 1]
    assert logits.tolist() == [1.0, pytest.approx(0.9), 5.0, 0.0]


def test_schema_of_arguments_that_can_not_be_used_is_refused(renderer: Renderer) -> None:
    syntax = CallSyntax("", '{"name": "', '", "arguments": ', "}", "", None, "arguments")
    few, many = (
        {
            "name": "f",
            "parameters": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(size)}},
        }
        for size in (20, 600)
    )
    assert tool_grammar(renderer.contract, syntax, {}, CallRules([few]))
    with pytest.raises(ValueError, match="items; max is"):
        tool_grammar(renderer.contract, syntax, {}, CallRules([few, many]))


def test_schema_that_can_not_be_used_is_refused(engine: Engine, renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="no such type"):
        json_grammar(renderer.contract, {"type": "no such type"})
    for schema in ({"$ref": "#"}, {"allOf": [{"$ref": "#"}]}):
        with pytest.raises(ValueError, match="no text follows the grammar"):
            json_grammar(renderer.contract, schema)
    properties = {f"property{number}": {"type": "string"} for number in range(1000)}
    with pytest.raises(ValueError, match="items; max is"):
        json_grammar(renderer.contract, {"type": "object", "properties": properties, "additionalProperties": False})
    # In the engine such a grammar ends its own request only.
    with pytest.raises(RuntimeError, match="the engine failed on 1 of 2 prompts: the grammar can't be used"):
        generate_all(engine, PROMPTS[:2], [SamplingParams(2), SamplingParams(2, grammar="start: undefined_rule")])
