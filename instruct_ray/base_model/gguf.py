"""A GGUF file -> a Hugging Face folder with the same weights, no longer quantized."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from unittest.mock import patch

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert_gguf(file: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, the precision that published checkpoints come in, configuration and tokenizer."""
    source, name = str(file.parent), file.name
    # transformers draws a progress bar here that no setting of it turns off.
    with _parsed_once(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    # The weights are plain now; a left-over entry would make every later load treat them as quantized.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses the file for the tokenizer, for the configuration and for the weights, and makes the table of
    tensor names anew for every module: more than half of the time for a model of 135M weights."""
    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        yield
