"""worker, all ranks: trains single rows of the embedding and the output head beside LoRA, by peft's trainable tokens.

For tokens that the base model was never trained on: LoRA does not change the embedding or the head, so a model whose
stop token has no trained row would never learn to stop.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from instruct_ray.base_model.untrained_tokens import UntrainedRows, vocabulary_layers
from instruct_ray.errors import InputError


def check_rows_trainable(model: Any) -> dict[str, tuple[int, int]]:
    """Check that peft can train rows of a model; returns its `vocabulary_layers`.

    Raises:
        InputError: the embedding is of another kind, or the head has a bias, which peft would drop.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or not isinstance(embedding, nn.Embedding):
        raise _not_trainable(model, "its embedding or output head is not a plain matrix")
    return vocabulary_layers(model)


def check_rows_are_wrapped(model: Any) -> None:
    """Check that peft trains the rows of both layers of the base model, which share them if they are tied.

    Raises:
        InputError: it left one out.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    if not all(isinstance(layer, TrainableTokensWrapper) for layer in layers):
        raise _not_trainable(model, "peft does not see that its embedding and output head are tied")


@torch.no_grad()
def start_untrained_rows(model: Any, untrained: Sequence[UntrainedRows], token_ids: Sequence[int]) -> None:
    """Start the untrained rows like ones that were trained: drawn from the normal distribution of those.

    A row of zeros would get gradients of extreme size, and equal rows would have to be told apart first. Every rank
    draws the same rows.
    """
    for name, module in model.named_modules():
        for rows in untrained:
            if name == rows.layer:
                delta_ND = module.token_adapter.trainable_tokens_delta["default"]
                for token_id in rows.token_ids:
                    row_D = torch.normal(rows.mean_D, rows.std_D)
                    delta_ND[token_ids.index(token_id)] = row_D.to(delta_ND)


@contextmanager
def collect_rows_on_any_device() -> Iterator[None]:
    """Make peft copy rows from weights that ZeRO-3 has sharded, inside the block. Its own way needs a GPU."""
    with patch.object(TrainableTokensLayer, "_collect_token_weights", _collect_token_weights):
        yield


def _collect_token_weights(layer: Any, weight: Tensor, rows: Sequence[int], embed_dim: int) -> Tensor:
    with gather_params_ctx([weight], modifier_rank=None):
        return weight.detach()[list(rows)].clone()


def _not_trainable(model: Any, reason: str) -> InputError:
    return InputError(
        f"model.lora.train_untrained_tokens: single rows of {model.config.model_type} can't be trained, {reason}; "
        "train all weights (model.lora: null), or set it to false if the model need not learn the template's tokens"
    )
