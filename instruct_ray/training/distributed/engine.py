"""worker, all ranks: a model and its optimizer, sharded by DeepSpeed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.deepspeed_config import (
    bucket_elements,
    build_deepspeed_config,
    uses_torch_optimizer,
)
from instruct_ray.training.distributed.deepspeed_internals import (
    gather_zero3_weights,
    import_deepspeed,
    keep_fp32_gradients,
    patch_offload_reset,
    patch_zero3_overflow_check,
    unsharded_ndim,
    unsharded_numel,
    zero_optimizer_at_stage_1,
)


class DeepSpeedEngine:
    """Computes gradients, updates the weights, and saves, restores and gathers them.

    Every public method is collective: DeepSpeed communicates in nearly all of them.
    """

    def __init__(
        self,
        train: TrainConfig,
        packs_per_rank: int,
        world_size: int,
        load_model: Callable[[], nn.Module],
        *,
        is_universal: bool = False,
        decays_all: bool = False,
    ) -> None:
        """Load and shard the model, on the process group that Ray Train made.

        Args:
            train: ZeRO stage, precision, offloading and the optimizer.
            packs_per_rank: packs that each rank computes per step.
            world_size: number of ranks.
            load_model: loads the model that is trained.
            is_universal: whether the engine will load a universal checkpoint.
            decays_all: whether weight decay includes norms and biases, as in checkpoints of earlier versions.
        """
        deepspeed = import_deepspeed(train.use_gpu)
        # ZeRO-3 needs the process group while the model is built.
        deepspeed.init_distributed()
        config = build_deepspeed_config(train, packs_per_rank, world_size, is_universal=is_universal)
        model = _load_sharded(load_model, config) if train.zero_stage == 3 else load_model()
        if train.compile:
            model.compile()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Checkpoints hold no frozen weights: they are loaded from the base model again.
        self._has_frozen = len(trainable) < len(list(model.parameters()))
        num_trainable = sum(unsharded_numel(parameter) for parameter in trainable)
        config["zero_optimization"]["reduce_bucket_size"] = bucket_elements(train, num_trainable)
        # Fused: one pass over the memory, on CPU too.
        groups = _parameter_groups(trainable, 0.0 if decays_all else train.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        with zero_optimizer_at_stage_1():
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        if train.zero_stage == 0:
            keep_fp32_gradients(self.module)
        if world_size == 1 and train.zero_stage == 0:
            # A single rank has no gradients to add, but DeepSpeed would copy its own twice: 4 % of a step on a CPU.
            self._engine.enable_backward_allreduce = False
        if train.zero_stage == 3:
            patch_zero3_overflow_check(self._engine.optimizer)
        if train.zero_stage in (1, 2) and train.offload.optimizer:
            patch_offload_reset(self._engine.optimizer)
        self._world_size, self.decays_all = world_size, decays_all
        self._uses_torch_optimizer, self._max_grad_norm = uses_torch_optimizer(train), train.max_grad_norm
        # Only with torch's optimizer.
        self._clipped_norm = torch.tensor(0.0)
        self.device: torch.device = self._engine.device

    @property
    def module(self) -> Any:
        """The transformers or peft model inside DeepSpeed's wrapper."""
        return self._engine.module

    @property
    def model(self) -> nn.Module:
        """The wrapped model. Call it for a forward pass, with the arguments of the plain model."""
        engine: nn.Module = self._engine
        return engine

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a summed loss that is already divided by the step's number of target tokens."""
        # DeepSpeed averages over the ranks, which the factor undoes; its scaling by accumulation steps is off.
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Finish a micro-batch; after the last one of a step, update the weights."""
        if self._uses_torch_optimizer and self._engine.is_gradient_accumulation_boundary():
            self._clipped_norm = clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
            if not self._clipped_norm.isfinite():
                # Without gradients the optimizer does nothing.
                self.module.zero_grad(set_to_none=True)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all parameters and ranks, before clipping."""
        return float(self._clipped_norm if self._uses_torch_optimizer else self._engine.get_global_grad_norm())

    @property
    def was_applied(self) -> bool:
        """Whether the last step changed the weights; a step with a non-finite gradient does not, at any stage."""
        if self._uses_torch_optimizer:
            return bool(self._clipped_norm.isfinite())
        return bool(self._engine.was_step_applied())

    def save(self, folder: Path, tag: str) -> None:
        """Write this rank's shards to a folder of its own."""
        self._engine.save_checkpoint(folder, tag=tag, save_latest=False, exclude_frozen_parameters=self._has_frozen)

    def load(self, folder: Path, tag: str) -> None:
        """Restore weights and optimizer from a folder with the shards of all ranks, or from a universal checkpoint.

        Raises:
            FileNotFoundError: the folder holds no checkpoint with this tag.
        """
        path, _ = self._engine.load_checkpoint(folder, tag=tag, load_module_strict=not self._has_frozen)
        if path is None:
            raise FileNotFoundError(f"{folder}: no checkpoint {tag}")

    def full_state_dict(self, *, only_trained: bool = False) -> dict[str, Tensor] | None:
        """Gather the unsharded weights on rank 0; None on the other ranks.

        `only_trained` leaves out frozen weights and buffers.
        """
        if self._engine.zero_optimization_stage() == 3:
            state = gather_zero3_weights(self._engine, exclude_frozen=only_trained)
        else:
            state = dict(self.module.state_dict()) if self._engine.global_rank == 0 else None
        if state is None or not only_trained:
            return state
        # A tied weight is listed under each of its names.
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        return {name: tensor for name, tensor in state.items() if name in parameters and parameters[name].requires_grad}


def _parameter_groups(trainable: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: weight decay leaves norms and biases alone, which are vectors.

    A single group where that makes no difference: the groups are part of a checkpoint.
    """
    vectors = [parameter for parameter in trainable if unsharded_ndim(parameter) < 2]
    matrices = [parameter for parameter in trainable if unsharded_ndim(parameter) >= 2]
    if not (weight_decay and vectors and matrices):
        return [{"params": trainable} | ({} if matrices or not weight_decay else {"weight_decay": 0.0})]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def _load_sharded(load_model: Callable[[], nn.Module], config: dict[str, Any]) -> nn.Module:
    """Load a model so that no rank ever holds all of it."""
    from transformers.integrations import HfDeepSpeedConfig  # noqa: PLC0415  (imports deepspeed)

    # transformers keeps a weak reference: models that are loaded after this function are not sharded.
    hf_deepspeed_config = HfDeepSpeedConfig(config)
    model = load_model()
    del hf_deepspeed_config
    return model
