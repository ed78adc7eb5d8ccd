"""Tiny test inputs: a tokenizer trained on the spot, a random Llama with two layers, and 64 triples."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instruct_ray.config.schema import Config

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


def make_tokenizer() -> PreTrainedTokenizerFast:
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


def save_base(folder: Path, tokenizer: PreTrainedTokenizerFast, head_dim: int = 8) -> Path:
    """Save a random Llama with two layers as a Hugging Face folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_triples(path: Path) -> Path:
    """Write 64 triples with three instructions; some have no input."""
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


def configure(storage: Path, base: Path, triples: Path, **sections: dict[str, Any]) -> Config:
    """A config for the tiny model. Keyword arguments replace keys of its sections."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "storage": storage},
        "model": {"base": str(base)},
        "data": {
            "sources": [triples],
            "test_fraction": 0.25,
            "pack_tokens": 128,
            "max_tokens": 128,
            # The rows differ only in a number, so they would be dropped as near duplicates.
            "near_duplicates": None,
        },
        "train": {"examples_per_step": 16, "learning_rate": 1e-3, "zero_stage": 2, "max_failures": 0},
        "evidence": {"max_new_tokens": 4, "num_latency_rows": 2, "num_engines": 1},
        # A random model shows nothing.
        "registry": {"name": "tiny", "gate": None},
        "serving": {"max_new_tokens": 16},
    }
    for section, keys in sections.items():
        values[section] = values[section] | keys
    return Config.model_validate(values)
