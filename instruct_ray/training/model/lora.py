"""worker, all ranks: puts LoRA adapters on a model, new ones or those of an earlier run.

The driver checks beforehand that the config matches the earlier adapter.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model

from instruct_ray.base_model.untrained_tokens import find_untrained_rows, read_adapter_token_ids
from instruct_ray.config.schema import LoraConfig
from instruct_ray.errors import InputError
from instruct_ray.training.model.token_rows import (
    check_rows_are_wrapped,
    check_rows_trainable,
    collect_rows_on_any_device,
    start_untrained_rows,
)
from instruct_ray.training.model.trained_parts import unadaptable_layer_names


def add_new_adapter(
    model: torch.nn.Module, lora: LoraConfig, token_ids: Sequence[int] = (), base_dir: Path | None = None
) -> torch.nn.Module:
    """Add randomly initialized adapters to a model and freeze its own weights.

    The rows of `token_ids` in the embedding and the output head are trained too (token_rows.py). They start from the
    rows in `base_dir`; None is for models without weights.

    Raises:
        InputError: the rows of this architecture can't be trained.
    """
    layers = check_rows_trainable(model) if token_ids else {}
    peft_config: Any = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        exclude_modules=sorted(unadaptable_layer_names(model)) or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
        trainable_token_indices={layer: list(token_ids) for layer in layers} or None,
    )
    with collect_rows_on_any_device():
        # In the precision of the base: DeepSpeed casts parameters below stage 3, but not at stage 3.
        adapted: torch.nn.Module = get_peft_model(model, peft_config, autocast_adapter_dtype=False)
    if token_ids:
        check_rows_are_wrapped(model)
        if base_dir is not None:
            start_untrained_rows(model, find_untrained_rows(base_dir, layers, token_ids), token_ids)
    return adapted


def load_adapter_for_training(model: torch.nn.Module, adapter_dir: Path, lora: LoraConfig) -> torch.nn.Module:
    """Load an existing adapter to train it further. Of `lora` only the dropout is used."""
    peft_config: Any = PeftLoraConfig.from_pretrained(str(adapter_dir))
    peft_config.lora_dropout = lora.dropout
    peft_config.inference_mode = False
    # The base may have moved since the adapter was saved.
    peft_config.base_model_name_or_path = model.name_or_path
    with collect_rows_on_any_device():
        adapted: torch.nn.Module = PeftModel.from_pretrained(
            model,
            str(adapter_dir),
            is_trainable=True,
            config=peft_config,
            torch_device="cpu",
            autocast_adapter_dtype=False,
        )
    return adapted


def check_adapter_matches(adapter_dir: Path, lora: LoraConfig | None, linear_layers: set[str]) -> None:
    """Check that `model.lora` describes the adapter that is to be trained further.

    Raises:
        InputError: it does not; names the first key that differs.
    """
    if lora is None:
        raise InputError(
            f"model.lora: model.base is the adapter {adapter_dir}, so set model.lora to that adapter's values; to "
            "train all weights instead, use a run with model.lora.merge=true as the base"
        )
    saved: Any = PeftLoraConfig.from_pretrained(str(adapter_dir))
    values = {
        "rank": (lora.rank, saved.r),
        "alpha": (lora.alpha, saved.lora_alpha),
        "rslora": (lora.rslora, saved.use_rslora),
        "dora": (lora.dora, saved.use_dora),
    }
    for key, (configured_value, saved_value) in values.items():
        if configured_value != saved_value:
            raise InputError(
                f"model.lora.{key}: {configured_value} here, {saved_value} in the adapter {adapter_dir}; set it to "
                f"{saved_value}"
            )
    if read_adapter_token_ids(adapter_dir) and not lora.train_untrained_tokens:
        raise InputError(
            f"model.lora.train_untrained_tokens: false here, but the adapter {adapter_dir} holds rows of tokens; set "
            "it to true"
        )
    configured_layers = linear_layers if lora.targets is None else _find_targets(linear_layers, lora.targets)
    if different := sorted(configured_layers ^ _find_targets(linear_layers, saved.target_modules)):
        raise InputError(
            f"model.lora.targets: {len(different)} layers are adapted either here or in the adapter {adapter_dir}, but "
            f"not in both, such as {different[0]}; set the same targets"
        )


def _find_targets(layers: set[str], targets: Iterable[str]) -> set[str]:
    """The layers that peft adapts: a target is the full name of a layer or its last parts."""
    return {layer for layer in layers if any(layer == name or layer.endswith(f".{name}") for name in targets)}
