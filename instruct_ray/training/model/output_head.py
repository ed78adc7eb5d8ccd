"""worker, all ranks: the loss of target tokens from their hidden states, without storing all their logits.

torch's `linear_cross_entropy` multiplies a few rows with the head's weights at a time, and computes their gradient at
once. It runs as the forward pass of the output head, so that ZeRO-3 gathers the head's weights for it. This needs a
head that is a linear layer, and a model that returns its output unchanged. For other models all logits are computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from instruct_ray.errors import one_line

# Rows whose logits are stored at a time. A smaller chunk reads and writes the weights and their gradient more often.
# On a GPU, chunks cost a second computation of the logits: they only bound the memory of very long outputs.
CPU_CHUNK_ROWS, GPU_CHUNK_ROWS = 256, 4096

# N = target tokens, F = hidden size, V = vocabulary


def find_unchunkable_head(hf_config: Any, model: nn.Module) -> str | None:
    """Why the loss of a model needs all logits at once; None if it can be computed in chunks.

    `model` is the transformers or peft model that is trained, `hf_config` the config of its base.
    """
    if find_linear_head(model) is None:
        return f"the output head of {hf_config.model_type} is not a plain linear layer"
    return _find_changed_logits(hf_config)


def find_linear_head(model: Any) -> nn.Linear | None:
    """The linear layer that computes a model's logits; None if there is more to it, such as an adapter."""
    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        # peft's trained copy of the head.
        head = head.modules_to_save[head.active_adapter]
    return head if type(head) is nn.Linear else None


def is_chunked(num_targets: int, head: nn.Linear, *, use_gpu: bool) -> bool:
    """Whether chunks are worth it: with fewer rows than columns, torch says, computing all logits is cheaper."""
    chunk_rows = GPU_CHUNK_ROWS if use_gpu else CPU_CHUNK_ROWS
    return num_targets > max(chunk_rows, head.in_features)


def chunk_bytes(model: nn.Module, num_targets: int) -> int:
    """Bytes of the logits of one chunk on a CPU; 0 if this number of targets is not computed in chunks.

    Operators that are traced without computing them do not show this memory.
    """
    head = find_linear_head(model)
    if head is None or not is_chunked(num_targets, head, use_gpu=False):
        return 0
    return 4 * CPU_CHUNK_ROWS * head.out_features


def compute_target_loss(
    model: nn.Module,
    labels_N: Tensor,
    forward: Callable[[], Any],
    *,
    in_chunks: bool,
    reduction: Literal["sum", "none"] = "sum",
) -> tuple[Tensor, Any]:
    """(cross entropy of the target tokens in fp32, the model's output).

    Args:
        model: the model, or its DeepSpeed engine.
        labels_N: the target tokens; at least one.
        forward: calls the model so that the head runs on the positions of the targets, in the order of `labels_N`.
        in_chunks: whether the head allows chunks (`find_unchunkable_head`).
        reduction: the sum, or one number for each target.
    """
    head = find_linear_head(model) if in_chunks else None
    if head is not None and is_chunked(len(labels_N), head, use_gpu=labels_N.is_cuda):
        with _head_returns_loss(head, labels_N, reduction):
            output = forward()
        loss: Tensor = output.logits
        return loss, output
    output = forward()
    cross_entropy = _fused_cross_entropy() if labels_N.is_cuda else _cross_entropy
    losses_N = cross_entropy(output.logits.flatten(0, -2), labels_N)
    return losses_N if reduction == "none" else losses_N.sum(), output


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


@cache
def _fused_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    """One kernel that never stores the logits in fp32, which would be the largest tensor of a step."""
    # Compiled on first use: torch's compiler takes a second to import.
    return torch.compile(_cross_entropy, dynamic=True)


@contextmanager
def _head_returns_loss(head: nn.Linear, labels_N: Tensor, reduction: Literal["sum", "none"]) -> Iterator[None]:
    """Inside the block the head returns the loss of its rows instead of their logits."""

    def forward(hidden: Tensor) -> Tensor:
        loss: Tensor = chunked_cross_entropy(hidden.flatten(0, -2), head, labels_N, reduction)
        return loss

    # An attribute of the instance, which hides the method of the class.
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(
    hidden_NF: Tensor, head: nn.Linear, labels_N: Tensor, reduction: Literal["sum", "none"] = "sum"
) -> Tensor:
    """The cross entropy of the rows' logits, in fp32. The backward pass of a sum can be run once."""
    weight_VF, bias_V = head.weight, head.bias
    if hidden_NF.is_cuda:
        options = LinearCrossEntropyOptions(batch_chunk_size=GPU_CHUNK_ROWS, chunking_method=None)
        # Summed here: torch would sum in the precision of the rows, and bf16 is too coarse.
        losses_N = F.linear_cross_entropy(
            hidden_NF, weight_VF, labels_N, linear_bias=bias_V, reduction="none", options=options
        ).float()
        return losses_N if reduction == "none" else losses_N.sum()
    options = LinearCrossEntropyOptions(batch_chunk_size=CPU_CHUNK_ROWS, chunking_method=None, acc_policy="compact")
    # In fp32, as torch multiplies here anyway on a CPU: so loss and gradients are also summed over the chunks in fp32.
    return F.linear_cross_entropy(
        hidden_NF.float(),
        weight_VF.float(),
        labels_N,
        linear_bias=None if bias_V is None else bias_V.float(),
        reduction=reduction,
        options=options,
    )


def _find_changed_logits(hf_config: Any) -> str | None:
    """Why a model's logits are not what its head returns; None if they are.

    Found by running the head and what follows it, on the meta device.
    """
    head_outputs: list[Tensor] = []
    try:
        with torch.device("meta"), torch.no_grad():
            # In bf16, where a conversion to fp32 shows.
            model: Any = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16, trust_remote_code=False)
            head = model.get_output_embeddings()
            hidden_states = torch.zeros(1, 2, head.in_features, dtype=torch.bfloat16)
            model.base_model.forward = lambda *args, **kwargs: _HiddenStates(last_hidden_state=hidden_states)
            head.register_forward_hook(lambda *call: head_outputs.append(call[-1]))
            logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        return f"the output head of {hf_config.model_type} could not be examined ({one_line(error, 200)})"
    if len(head_outputs) == 1 and logits is head_outputs[0]:
        return None
    return f"{hf_config.model_type} changes the output of its head (by a soft cap or a scale)"


@dataclass
class _HiddenStates(BaseModelOutputWithPast):
    """What the layers of a model return; everything else that its class reads there, such as router logits, is None."""

    def __getattr__(self, name: str) -> None:
        return None
