"""A prompt gets the same completion in any batch as alone, whatever attention, positions and cache its model has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BloomConfig,
    FalconConfig,
    GPTJConfig,
    GPTNeoConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
)

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference import prompt_batch
from instruct_ray.inference.batch_rules import BatchRules
from instruct_ray.inference.engine import GenerationRequest, SamplingParams, generate_all
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.prompt_batch import PromptBatch
from instruct_ray.inference.running_batch import ModelVariant
from instruct_ray.inference.static_batch import StaticBatch
from instruct_ray.inference.transformers_engine import TransformersEngine
from tests.training.tiny_models import CONFIGS, SIZES

NEW_TOKENS = 8
PREFIX = [5 + 7 * number % 50 for number in range(24)]
# The first ones share more tokens than any window, and differ by more than one.
SHARED = [[*PREFIX, *([9, 30, 31] * 4)], [*PREFIX, 32], [*PREFIX, 33, 34, 9, 10], [*PREFIX, 40, 41]]
UNEQUAL = [[5, 6, 7], [*range(20, 45)], [9, *PREFIX]]

HEADS = {"n_embd": 32, "n_layer": 2, "n_head": 4}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama-trained-without-cache": LlamaConfig(**SIZES, use_cache=False),
    **{name: config for name, config in CONFIGS.items() if name not in ("llama", "qwen3")},
    "gpt-oss": GptOssConfig(**SIZES, sliding_window=4, num_local_experts=4, num_experts_per_tok=2),
    "llama4": Llama4TextConfig(
        **SIZES, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=48, interleave_moe_layer_step=2
    ),
    "gpt-neo": GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=6,
        attention_types=[[["local", "global"], 1]],
    ),
    "gptj": GPTJConfig(vocab_size=64, rotary_dim=4, **HEADS),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "falcon-alibi": FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, bos_token_id=1
    ),
    "mpt": MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
}


def make_engine(folder: Path, base_folder: Path, config: PreTrainedConfig) -> TransformersEngine:
    """An engine of a random model that never stops."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    renderer = derive_renderer(base_folder, None)
    renderer.tokenizer.save_pretrained(folder)
    contract = replace(renderer.contract, stop_token_id=-1, pad_token_id=2)
    return TransformersEngine(folder, contract, max_batch_size=8, prefix_cache_tokens=256)


def complete(engine: TransformersEngine, prompts: list[list[int]]) -> list[list[int]]:
    return [completion.token_ids for completion in generate_all(engine, prompts, SamplingParams(NEW_TOKENS))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completions_in_a_batch_are_those_alone(
    name: str, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    engine = make_engine(tmp_path, base_folder, ARCHITECTURES[name])
    add = engine._batch.add
    monkeypatch.setattr(engine._batch, "add", lambda rows: sizes.append(len(rows)) or add(rows))
    for prompts in (SHARED, UNEQUAL):
        alone = [complete(engine, [prompt])[0] for prompt in prompts]
        assert complete(engine, prompts) == alone
        assert sizes.pop() == len(prompts), "they were not answered in one batch"
    engine.close()
    assert PromptBatch(SHARED, 0).num_cached(PrefixCache(0)) == len(PREFIX)
    assert len({tuple(completion) for completion in alone}) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_requests_that_join_and_leave_change_no_completion(name: str, tmp_path: Path, base_folder: Path) -> None:
    engine = make_engine(tmp_path, base_folder, ARCHITECTURES[name])
    if not engine._rules.allows_joining:
        assert isinstance(engine._batch, StaticBatch)
        engine.close()
        return
    prompts = [*SHARED, *UNEQUAL, *SHARED, *UNEQUAL]
    lengths = [3 + 5 * number % 17 for number in range(len(prompts))]
    alone = [generate_all(engine, [ids], SamplingParams(size))[0] for ids, size in zip(prompts, lengths, strict=True)]
    num_running: list[int] = []
    step = engine._batch.step
    engine._batch.step = lambda: num_running.append(len(engine._batch.rows)) or step()
    together = generate_all(engine, prompts, [SamplingParams(size) for size in lengths], num_at_once=3)
    engine.close()
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    # They came and went one by one.
    assert {1, 2, 3} <= set(num_running)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completions_after_a_kept_prefix_are_those_without_it(
    name: str, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_batch, "MIN_TOKENS_SAVED", 8)
    engine = make_engine(tmp_path, base_folder, ARCHITECTURES[name])
    prefix = [5 + 11 * number % 53 for number in range(40)]
    # Alone, one inside another, and batches that begin with a part of what is kept or with more of it.
    batches = [
        [[*prefix, 9, 10]], [[*prefix, 30, 31, 32]], [[*prefix[:36], 8, 9]], [[*prefix, 40], [*prefix, 41, 42]],
        [[*prefix, *prefix, *prefix, 7]], [[*prefix, *prefix, 6], [*prefix, *prefix, 8, 9], [*prefix, *prefix, 10]],
        [[6, 7, 8]],
    ]  # fmt: skip
    kept = [complete(engine, prompts) for prompts in batches]
    if engine._rules.shares_prefix:
        assert 40 <= engine._variants[None].prefixes.num_tokens <= 256
    engine._variants[None] = ModelVariant(None, PrefixCache(0))
    assert kept == [complete(engine, prompts) for prompts in batches]
    assert engine._variants[None].prefixes.num_tokens == 0
    engine.close()


def rules_of(config: PreTrainedConfig) -> BatchRules:
    with torch.device("meta"):
        return BatchRules.from_model(AutoModelForCausalLM.from_config(config))


def request(num_tokens: int, max_new_tokens: int = 8) -> GenerationRequest:
    return GenerationRequest(
        [5] * num_tokens, SamplingParams(max_new_tokens), lambda token_id: None, lambda reason: None
    )


@pytest.mark.parametrize(
    "config",
    [
        # Learned positions by index in the input.
        BartConfig(vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32),
        # Convolutions read the padding.
        Lfm2Config(
            **{key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
            num_hidden_layers=2,
            layer_types=["conv", "full_attention"],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_prompts_are_not_padded_for_a_model_that_would_read_the_padding(config: PreTrainedConfig) -> None:
    rules = rules_of(config)
    assert rules.allow(request(5), request(5))
    assert not rules.allow(request(5), request(6))
    assert not rules.shares_prefix
    assert "only prompts of equal length share a batch" in rules.notices[0]


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
        Phi3Config(
            **SIZES | {"max_position_embeddings": 512},
            original_max_position_embeddings=128,
            rope_parameters=LONGROPE,
        ),
    ],
    ids=lambda config: config.rope_parameters["rope_type"],
)
def test_requests_above_the_length_that_scales_positions_run_alone(
    config: PreTrainedConfig, tmp_path: Path, base_folder: Path
) -> None:
    rules = rules_of(config)
    assert rules.allow(request(100), request(119))
    assert not rules.allow(request(100), request(120))
    assert rules_of(LlamaConfig(**SIZES)).allow(request(100), request(120))
    # An earlier longer request changes nothing either.
    engine = make_engine(tmp_path, base_folder, config)
    prompts = [[5 + number % 50 for number in range(size)] for size in (140, 10, 200)]
    first = complete(engine, prompts[:1])
    assert complete(engine, prompts)[:1] == first
    assert complete(engine, prompts[:1]) == first
    engine.close()
