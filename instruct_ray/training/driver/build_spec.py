"""driver: an open run -> the spec of its workers, after checking that the base model can be trained on its packs."""

from typing import Any

from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan, make_plan
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.trained_tokens import resolve_trained_tokens
from instruct_ray.training.model.lora import check_adapter_matches
from instruct_ray.training.model.requirements import (
    check_lora_targets,
    check_quantization_available,
    check_trainable,
    find_packing_incompatibility,
)
from instruct_ray.training.model.trained_parts import adaptable_layer_names
from instruct_ray.training.validation.task import ValidationSpec
from instruct_ray.training.worker.spec import (
    EXPORT_CHECK_FILE,
    PACKING_CHECK_FILE,
    STOP_FILE,
    WEIGHTS_DIR,
    WorkerSpec,
)


def build_plan(config: Config, packs: PackedDataset) -> BatchPlan:
    """The plan of a run: which packs each of its steps trains on."""
    train = config.train
    return make_plan(packs.row_groups, packs.num_examples, train.examples_per_step, train.epochs, config.run.seed)


def build_worker_spec(run: OpenRun, config: Config, folder: RunFolder, plan: BatchPlan) -> WorkerSpec:
    """Build the spec of a run's workers.

    `config`, `folder` and `plan` are the run's own, or those of a trial run on the same packs.

    Raises:
        InputError: the base model can't be trained on these packs.
    """
    check_base_trainable(run)
    check_contract(run)
    token_ids = resolve_trained_tokens(run)
    return WorkerSpec(
        base_dir=run.base_model.folder,
        adapter_dir=run.base_model.adapter,
        packs_dir=run.packs.path,
        packing_incompatibility=packing_incompatibility(run.hf_config, config),
        packing_check_file=folder.path / PACKING_CHECK_FILE,
        metrics_file=folder.metrics_file,
        events_file=folder.events_file,
        checkpoints_file=folder.checkpoints_file,
        checkpoint_dir=folder.ray_train_dir,
        validation=_build_validation_spec(config, run.base_model, folder, token_ids),
        stop_file=folder.path / STOP_FILE,
        weights_dir=folder.path / WEIGHTS_DIR,
        export_check_file=folder.path / EXPORT_CHECK_FILE,
        plan=plan,
        lora=config.model.lora,
        token_ids=token_ids,
        train=config.train,
    )


def packing_incompatibility(hf_config: Any, config: Config) -> str | None:
    """Why a run is trained with padding without a packing check; None if the check decides."""
    if not config.train.packed:
        return "train.packed=false"
    return find_packing_incompatibility(hf_config, config.data.max_tokens)


def check_base_trainable(run: OpenRun) -> None:
    """Check that the base model can be trained with the config's method: fully or with LoRA, quantized or not.

    Raises:
        InputError: it can't. The message gives the reason.
    """
    lora, adapter = run.config.model.lora, run.base_model.adapter
    check_trainable(run.hf_config)
    if lora is not None:
        check_lora_targets(run.hf_config, lora.targets or ())
        check_quantization_available(lora)
    if adapter is not None:
        check_adapter_matches(adapter, lora, adaptable_layer_names(run.hf_config))


def check_contract(run: OpenRun) -> None:
    """Check that the packs were rendered with the contract that the base model has now.

    Raises:
        InputError: the contracts differ. The message names both.
    """
    current, expected = run.renderer.contract.digest, run.packs.manifest["contract_digest"]
    if current != expected:
        raise InputError(
            f"{run.packs.path} was rendered with contract {expected[:12]}, but {run.base_model.name} now has contract "
            f"{current[:12]}; prepare again under another run.name"
        )


def _build_validation_spec(
    config: Config, base_model: BaseModelInfo, folder: RunFolder, token_ids: tuple[int, ...]
) -> ValidationSpec | None:
    if config.train.validation is None:
        return None
    return ValidationSpec(
        base_dir=base_model.folder,
        adapter_dir=base_model.adapter,
        contract_file=folder.contract_file,
        rows_file=folder.validation_rows_file,
        lora=config.model.lora,
        token_ids=token_ids,
        train=config.train,
        validation=config.train.validation,
        seed=config.run.seed,
        validation_dir=folder.validation_dir,
    )
