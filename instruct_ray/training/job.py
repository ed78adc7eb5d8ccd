"""Everything a training worker needs to know, made from a run's config, packs and base."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from instruct_ray.base import Base
from instruct_ray.config import Config, LoraConfig, TrainConfig
from instruct_ray.data.dataset import PackedDataset
from instruct_ray.data.plan import Plan, make_plan
from instruct_ray.data.rendering.templates import renderer_of
from instruct_ray.errors import InputError
from instruct_ray.run import RunFolder
from instruct_ray.training.modeling.adapters import check_same_adapter
from instruct_ray.training.modeling.model import (
    check_lora_targets,
    check_quantizable,
    check_trainable,
    linear_layers,
    packing_obstacle,
)
from instruct_ray.training.watching.validation import Validation

# In a run's folder: whether packs are computed as each example alone would be, and the way taken.
PACKING_PROOF = "packing_proof.json"
# That what the export writes was read back, and is the trained model.
EXPORT_CHECK = "export_check.json"
# What its workers decided by themselves.
NOTICES = "notices.jsonl"
STOP = ".stop"
# The trained weights, before they become a model.
WEIGHTS = ".weights"


class TrainJob(BaseModel):
    """A run as its workers see it; travels as the train loop's config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    adapter: Path | None
    """The adapter of the base that is trained on; None begins anew."""
    packs: Path
    obstacle: str | None
    """Why packs do not suit the base; None if they are to be proved."""
    proof: Path
    """Where rank 0 records which way is taken, and why."""
    metrics: Path
    notices: Path
    """Where rank 0 says what it decided by itself."""
    checkpoints: Path
    validation: Validation | None
    """How checkpoints are scored, if they are."""
    stop: Path
    """Exists once the run is to stop behind its current step."""
    weights: Path
    """Where rank 0 leaves the trained weights."""
    export_check: Path
    """Where rank 0 records that what the export writes is the trained model."""
    plan: Plan
    lora: LoraConfig | None
    train: TrainConfig

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint belongs behind so many steps."""
        return step % self.train.checkpoint_every == 0 or step == self.plan.num_steps


def plan_of(config: Config, dataset: PackedDataset) -> Plan:
    """The plan of a run over its packs."""
    train = config.train
    return make_plan(dataset.row_groups, dataset.num_train, train.examples_per_step, train.epochs, config.run.seed)


def job_of(config: Config, dataset: PackedDataset, model: Base, folder: RunFolder, plan: Plan) -> TrainJob:
    """What the workers of a run are told, its files in that folder.

    Raises:
        InputError: the base can't be trained on these packs.
    """
    obstacle = check_base(config, model)
    check_contract(config, dataset, model)
    return TrainJob(
        base=model.folder,
        adapter=model.adapter,
        packs=dataset.path,
        obstacle=obstacle,
        proof=folder.path / PACKING_PROOF,
        metrics=folder.metrics,
        notices=folder.path / NOTICES,
        checkpoints=folder.train,
        validation=_validation(config, model, folder),
        stop=folder.path / STOP,
        weights=folder.path / WEIGHTS,
        export_check=folder.path / EXPORT_CHECK,
        plan=plan,
        lora=config.model.lora,
        train=config.train,
    )


def check_base(config: Config, model: Base) -> str | None:
    """Returns why packs do not suit the base, if they don't.

    Raises:
        InputError: it can't be trained as the config says.
    """
    architecture, lora = check_trainable(model.folder), config.model.lora
    if lora is not None:
        check_lora_targets(architecture, lora.targets or ())
        check_quantizable(lora)
    if model.adapter is not None:
        check_same_adapter(model.adapter, lora, linear_layers(architecture))
    return packing_obstacle(architecture, config.data.max_tokens)


def check_contract(config: Config, dataset: PackedDataset, model: Base) -> None:
    """
    Raises:
        InputError: the base does not render as it did when the packs were made.
    """
    found = renderer_of(model, config.data.system_prompt).contract.digest
    expected = dataset.manifest["contract_digest"]
    if found != expected:
        raise InputError(
            f"{dataset.path} follows contract {expected[:12]}, {model.name} now {found[:12]}; prepare again"
        )


def _validation(config: Config, model: Base, folder: RunFolder) -> Validation | None:
    settings = config.train.validation
    if settings is None:
        return None
    return Validation(
        base=model.folder,
        adapter=model.adapter,
        contract=folder.contract,
        lora=config.model.lora,
        train=config.train,
        settings=settings,
        seed=config.run.seed,
        folder=folder.scores,
        notices=folder.path / NOTICES,
    )
