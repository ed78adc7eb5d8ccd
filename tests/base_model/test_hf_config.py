"""What the configuration of a model says about its context length and its positions."""

import pytest
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    PreTrainedConfig,
)

from instruct_ray.base_model.hf_config import UNLIMITED_CONTEXT, context_length, max_positions


@pytest.mark.parametrize(
    ("hf_config", "length"),
    [
        (LlamaConfig(max_position_embeddings=96), 96),
        (GPT2Config(n_positions=96), 96),
        (MptConfig(max_seq_len=96), 96),
        # A composite config has it in the config of its text model.
        (Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=96).to_dict()), 96),
        (MambaConfig(), UNLIMITED_CONTEXT),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_context_length_is_found(hf_config: PreTrainedConfig, length: int) -> None:
    assert context_length(hf_config) == length


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("gpt2", {"n_positions": 96}, 96),
        ("opt", {"max_position_embeddings": 128}, 128),
        ("gptj", {"n_positions": 64}, 64),
        ("gpt_neo", {"max_position_embeddings": 32}, 32),
        ("llama", {"max_position_embeddings": 64}, None),
        ("gpt_neox", {"max_position_embeddings": 64}, None),
        ("bloom", {}, None),
        ("mamba", {}, None),
        ("gemma3", {}, None),
    ],
)
def test_only_tables_of_positions_limit_a_model(model_type: str, options: dict[str, int], expected: int | None) -> None:
    assert max_positions(AutoConfig.for_model(model_type, **options)) == expected
