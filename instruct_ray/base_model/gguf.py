"""Converts a GGUF file to a Hugging Face folder with dequantized weights."""

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
    """Write the model of a GGUF file as bfloat16 safetensors, with its configuration and tokenizer.

    bfloat16 is the precision that checkpoints are usually published in.
    """
    source, name = str(file.parent), file.name
    # transformers draws a progress bar here that none of its settings disables.
    with _gguf_parsed_once(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
    # The weights are dequantized; with this entry every later load would treat them as quantized.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """Cache the parsed GGUF file and its tensor name map.

    transformers parses the file three times (tokenizer, configuration, weights) and rebuilds the name map for every
    module, which takes more than half of the time for a model of 135M weights.
    """
    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        yield
