"""Shared pieces: a tokenizer trained in-process, tiny random models, triples, and a Ray cluster per session."""

import json
import os

# Before Ray is imported: no token is written to the home folder by a test.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instruct_ray.config import Config

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REPORTS = [
    "the shop is down",
    "search is slow",
    "a typo on the page",
    "all data was deleted",
    "printer jams",
    "nice logo",
]
LABELS = ["High", "Medium", "Low"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*REPORTS, *LABELS, "user assistant system How bad is it?"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random 2-layer Llama as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def triples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 triples with three instructions, some without input."""
    path = tmp_path_factory.mktemp("triples") / "triples.jsonl"
    rows = []
    for number in range(64):
        report = f"{REPORTS[number % len(REPORTS)]} in room {number}"
        instruction = ["How bad is it?", "Rate this.", f"Rate: {report}"][number % 3]
        rows.append(
            {
                "id": f"row-{number}",
                "instruction": instruction,
                "input": "" if number % 3 == 2 else report,
                "output": LABELS[number % len(LABELS)],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_config(tmp_path: Path, base_folder: Path, triples_file: Path) -> Callable[..., Config]:
    """A config for the tiny model; keyword arguments replace keys of its sections."""

    def make(**sections: dict[str, object]) -> Config:
        values: dict[str, dict[str, object]] = {
            "run": {"name": "tiny", "storage": tmp_path / "runs"},
            "model": {"base": str(base_folder)},
            "data": {
                "sources": [triples_file],
                "test_fraction": 0.25,
                "pack_tokens": 128,
                "max_tokens": 128,
                "near_duplicates": None,
            },
            "train": {
                "examples_per_step": 16,
                "learning_rate": 1e-3,
                "num_workers": 2,
                "zero_stage": 2,
                "max_failures": 0,
            },
            "evidence": {"max_new_tokens": 4, "num_latency_rows": 2},
            "registry": {"name": "tiny"},
            "serving": {"max_new_tokens": 16},
        }
        for section, replaced in sections.items():
            values[section] = values[section] | replaced
        return Config.model_validate(values)

    return make


@pytest.fixture(scope="session")
def ray_4_cpus() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
