"""The settings of vLLM for a model folder: which files it loads, in which precision, with how much memory.

An adapter is loaded by vLLM beside its base model, from its folder. One that vLLM would refuse, or apply without parts
of it, is merged into its base model before. Runs in the process of the engine.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from instruct_ray.base_model.check import ADAPTER_WEIGHTS
from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.info import ADAPTER_CONFIG
from instruct_ray.config.serving import ServingConfig
from instruct_ray.files import sha256_file
from instruct_ray.inference.loading import check_base_unchanged, find_adapter_base, load_merged

GRAMMAR_PROCESSOR = "instruct_ray.inference.vllm_grammars:GrammarProcessor"
CPU_KV_CACHE_BYTES = 2**30
# Tokens whose keys and values are cached together. On a CPU the default is 128: most instructions are shorter.
CPU_BLOCK_TOKENS = 32
# The most that OpenAI's API allows.
MAX_TOP_LOG_PROBS = 20
LORA_RANKS: tuple[int, ...] = MaxLoRARanks.__args__
# Entries of an adapter's config that vLLM refuses or does not read, if they are set.
UNSUPPORTED_IN_ADAPTER = (
    "use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern", "trainable_token_indices",
    "target_parameters", "layer_replication",
)  # fmt: skip


@dataclass(frozen=True)
class LoadableModel:
    """What vLLM loads."""

    model_dir: Path
    """A full model."""
    tokenizer_dir: Path
    adapter: LoRARequest | None = None
    lora_rank: int = 0


@contextmanager
def open_model(model_dir: Path) -> Iterator[LoadableModel]:
    """Give what vLLM can load of a model folder or an adapter folder; a merged copy is removed at the end.

    Raises:
        InputError: the base model of the adapter was moved or changed since the adapter was trained.
    """
    base_dir = find_adapter_base(model_dir)
    if base_dir is None:
        yield LoadableModel(model_dir, model_dir)
        return
    adapter_config = json.loads((model_dir / ADAPTER_CONFIG).read_text())
    if _is_supported(adapter_config):
        check_base_unchanged(model_dir, base_dir)
        # vLLM takes two adapters of one name for the same.
        adapter = LoRARequest(sha256_file(model_dir / ADAPTER_WEIGHTS), 1, str(model_dir))
        yield LoadableModel(base_dir, model_dir, adapter, adapter_config["r"])
        return
    with tempfile.TemporaryDirectory() as merged_dir:
        load_merged(model_dir).save_pretrained(merged_dir)
        yield LoadableModel(Path(merged_dir), model_dir)


def make_engine_args(model: LoadableModel, stop_token_id: int, serving: ServingConfig) -> AsyncEngineArgs:
    """The settings of an engine. It gets no tokenizer, so nothing but token ids can reach the model."""
    args: dict[str, Any] = {}
    if model.adapter is not None:
        rank = min(rank for rank in LORA_RANKS if rank >= model.lora_rank)
        args |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": rank}
    kv_cache_bytes = serving.kv_cache_bytes
    if current_platform.is_cpu():
        # Compiling takes minutes on a CPU, and a C++ compiler.
        args |= {"block_size": CPU_BLOCK_TOKENS, "enforce_eager": True}
        kv_cache_bytes = kv_cache_bytes or CPU_KV_CACHE_BYTES
    return AsyncEngineArgs(
        model=str(model.model_dir),
        skip_tokenizer_init=True,
        # `auto` would apply the model's generation_config.json.
        generation_config="vllm",
        load_format="safetensors",
        dtype=_find_dtype(model.model_dir),
        # The context of the model, or less if its keys and values don't fit the memory.
        max_model_len=-1,
        max_num_seqs=serving.max_batch_size,
        max_logprobs=MAX_TOP_LOG_PROBS,
        enable_prefix_caching=serving.prefix_cache_tokens > 0,
        tensor_parallel_size=serving.tensor_parallel,
        gpu_memory_utilization=serving.gpu_memory_utilization,
        kv_cache_memory_bytes=kv_cache_bytes,
        logits_processors=[GRAMMAR_PROCESSOR],
        additional_config={
            "tokenizer_dir": str(model.tokenizer_dir),
            "stop_token_id": stop_token_id,
            "engine_pid": os.getpid(),
        },
        disable_log_stats=True,
        **args,
    )


def _is_supported(adapter_config: dict[str, Any]) -> bool:
    """Whether vLLM applies an adapter as peft does."""
    return (
        not any(adapter_config.get(name) for name in UNSUPPORTED_IN_ADAPTER)
        and adapter_config.get("bias", "none") == "none"
        and adapter_config["r"] <= max(LORA_RANKS)
    )


def _find_dtype(model_dir: Path) -> str:
    """The precision of the weights, as the transformers engine computes them: bf16 in fp32 where that is faster."""
    dtype = str(load_hf_config(model_dir).get_text_config(decoder=True).dtype or "float32").removeprefix("torch.")
    return "float32" if dtype == "bfloat16" and current_platform.is_cpu() and not is_bf16_fast() else dtype
