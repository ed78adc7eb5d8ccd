"""TrainConfig -> DeepSpeed engine. The only importer of deepspeed."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.optimizer import uses_torch_optimizer


def build_deepspeed_config(
    train: TrainConfig, packs_per_rank: int, world_size: int, *, is_universal: bool = False
) -> dict[str, Any]:
    """The DeepSpeed settings of a run; `is_universal`: of one that continues from a universal checkpoint."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": packs_per_rank,
        "train_batch_size": packs_per_rank * world_size,
        "gradient_clipping": 0.0 if uses_torch_optimizer(train) else train.max_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {
            "stage": train.zero_stage,
            # Sum over ranks in the precision of the weights; overlapping needs streams that gloo does not have.
            "overlap_comm": train.use_gpu,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
            **_offload(train),
        },
        # torch's AdamW, also where the optimizer is offloaded: nothing is compiled at run time.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": is_universal},
        "steps_per_print": 2**31,
    }


def _offload(train: TrainConfig) -> dict[str, Any]:
    """Page-locked memory is for copies to a GPU; on a CPU there is none."""
    device = {"device": "cpu", "pin_memory": train.use_gpu}
    chosen = {"offload_optimizer": train.offload.optimizer, "offload_param": train.offload.parameters}
    return {name: device for name, is_chosen in chosen.items() if is_chosen}


class DeepSpeedEngine:
    """A model and its optimizer, sharded over the ranks by DeepSpeed."""

    def __init__(
        self,
        train: TrainConfig,
        packs_per_rank: int,
        world_size: int,
        load: Callable[[], nn.Module],
        *,
        is_universal: bool = False,
    ) -> None:
        deepspeed = _import_deepspeed(train.use_gpu)
        # On the process group that Ray made; ZeRO-3 needs it while the model is built.
        deepspeed.init_distributed()
        config = build_deepspeed_config(train, packs_per_rank, world_size, is_universal=is_universal)
        model = _load_sharded(load, config) if train.zero_stage == 3 else load()
        if train.compile:
            model.compile()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # What is not trained comes from the base again: no checkpoint carries it.
        self._has_frozen = len(trainable) < len(list(model.parameters()))
        # Fused: one pass over the memory, on CPU too.
        optimizer = torch.optim.AdamW(trainable, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        if world_size == 1 and train.zero_stage == 0:
            # One rank has nobody to add gradients with, yet they would be copied twice: 4 % of a step on a CPU.
            self._engine.enable_backward_allreduce = False
        self.world_size = world_size
        self._is_plain, self._max_grad_norm = uses_torch_optimizer(train), train.max_grad_norm
        self._plain_norm = torch.tensor(0.0)
        if train.zero_stage == 3:
            _patch_zero3_overflow_check(self._engine.optimizer)
        self.device: torch.device = self._engine.device

    @property
    def module(self) -> Any:
        """The plain transformers or peft model inside DeepSpeed's wrapper."""
        return self._engine.module

    @property
    def model(self) -> nn.Module:
        """The wrapped model; call it like the plain one."""
        engine: nn.Module = self._engine
        return engine

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a summed loss that is already divided by the step's trained tokens.

        DeepSpeed averages over the ranks, which the factor undoes; its own scaling by accumulation steps is off.
        """
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Count one micro-batch; the last one of a step updates the weights."""
        if self._is_plain and self._engine.is_gradient_accumulation_boundary():
            self._plain_norm = clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
            if not self._plain_norm.isfinite():
                # Without gradients the optimizer does nothing.
                self.module.zero_grad(set_to_none=True)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all parameters and ranks, before clipping."""
        return float(self._plain_norm if self._is_plain else self._engine.get_global_grad_norm())

    @property
    def was_applied(self) -> bool:
        """Whether the last step changed the weights: one whose gradient is no number does not, at any stage."""
        return bool(self._plain_norm.isfinite()) if self._is_plain else bool(self._engine.was_step_applied())

    def save(self, folder: Path, tag: str) -> None:
        """Write this rank's shards to a folder of its own; all ranks call it."""
        self._engine.save_checkpoint(folder, tag=tag, save_latest=False, exclude_frozen_parameters=self._has_frozen)

    def load(self, folder: Path, tag: str) -> None:
        """Restore from a folder with the shards of all ranks, or a universal one if the engine was made for that."""
        path, _ = self._engine.load_checkpoint(folder, tag=tag, load_module_strict=not self._has_frozen)
        if path is None:
            raise FileNotFoundError(f"{folder}: no checkpoint {tag}")

    def full_state_dict(self, *, only_trained: bool = False) -> dict[str, Tensor] | None:
        """The unsharded weights on rank 0, None elsewhere; all ranks call it. On request only those that are trained,
        without frozen ones and buffers."""
        if self._engine.zero_optimization_stage() == 3:
            state: dict[str, Tensor] | None = self._engine._zero3_consolidated_16bit_state_dict(only_trained)
        else:
            state = dict(self.module.state_dict()) if self._engine.global_rank == 0 else None
        if state is None or not only_trained:
            return state
        # Tied ones under each of their names.
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        return {name: tensor for name, tensor in state.items() if name in parameters and parameters[name].requires_grad}


def _load_sharded(load: Callable[[], nn.Module], config: dict[str, Any]) -> nn.Module:
    """Build a model so that no rank ever holds all of it."""
    from transformers.integrations import HfDeepSpeedConfig  # noqa: PLC0415  (imports deepspeed)

    # Found by weak reference: models that are loaded later are whole again.
    hf_config = HfDeepSpeedConfig(config)
    model = load()
    del hf_config
    return model


def load_checkpoint_weights(folder: Path, tag: str, zero_stage: int) -> dict[str, Tensor]:
    """The unsharded trained weights of a checkpoint, read by one process without an engine."""
    if zero_stage < 3:
        # Every rank wrote all weights: the first one's will do. Pickled by DeepSpeed, and signed for by this run.
        state = torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return dict(state["module"])
    _import_deepspeed(use_gpu=False)
    # Imports deepspeed.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # noqa: PLC0415

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True))


def _patch_zero3_overflow_check(optimizer: Any) -> None:
    """Let ZeRO-3 leave out steps whose gradient is no number, as the other stages do: it looks at fp16 ones only."""

    def check(update_scale: bool = True) -> bool:
        optimizer.check_overflow()
        return bool(optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else optimizer.overflow)

    optimizer._overflow_check_and_loss_scale_update = check


def _import_deepspeed(use_gpu: bool) -> Any:
    """Import DeepSpeed quietly, on the right accelerator, and without its build step for shared-memory collectives."""
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Deprecations inside DeepSpeed 0.19 with torch 2.13, harmless.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\..*")
    # Heavy, and picks the accelerator at import: only inside a training worker.
    import deepspeed  # noqa: PLC0415
    import deepspeed.ops  # noqa: PLC0415

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not use_gpu:
        # Its first collective would compile a C++ extension (over a minute) that is then not used.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
