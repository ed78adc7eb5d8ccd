"""Whether a CPU is said to be fast in bf16, against measured products of matrices."""

import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.inference import loading
from tests.training.tiny_models import make_model


def measure_product_seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def test_cpu_is_slow_in_bf16_where_products_take_many_times_as_long() -> None:
    ratio = measure_product_seconds(torch.bfloat16) / measure_product_seconds(torch.float32)
    assert is_bf16_fast() == (ratio < 4), f"bf16 takes {ratio:.1f} times as long as fp32"


@pytest.mark.parametrize(("is_fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_model_is_computed_in_fp32_where_bf16_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool, dtype: torch.dtype
) -> None:
    if torch.cuda.is_available():
        pytest.skip("models are computed on the GPU here")
    make_model(LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)).bfloat16().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "is_bf16_fast", lambda: is_fast)
    assert loading.load_for_inference(tmp_path).dtype == dtype
