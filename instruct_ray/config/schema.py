"""All options of the config, by section, with their meaning and limits."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from instruct_ray.config.data import DataConfig
from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.config.gate import GateConfig
from instruct_ray.config.registry_names import check_alias, check_model_name
from instruct_ray.config.section import AbsolutePath, Section, UriWithoutPassword
from instruct_ray.config.serving import ServingConfig
from instruct_ray.config.train import TrainConfig


class RunConfig(Section):
    """Name, location and seed of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run. The same name and storage resume the run."""
    storage: AbsolutePath
    """Folder of all runs. Every node must see it under the same path."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Random seed of the order of the data, LoRA initialization and dropout."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA), trained instead of all weights."""

    rank: PositiveInt = 16
    """Rank of the adapter matrices."""
    alpha: PositiveFloat = 32
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapters' input."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that get an adapter, such as q_proj; null adapts all except the output head."""
    rslora: bool = False
    """Rank-stabilized LoRA: scale by alpha / sqrt(rank), so that a higher rank does not learn more slowly."""
    dora: bool = False
    """Weight-decomposed LoRA (DoRA): also train the magnitudes of the weights. Closer to full fine-tuning, but
    slower."""
    train_untrained_tokens: bool = True
    """Where tokens of the chat template were never trained by the base model, also train their rows of the embedding
    and the output head; without them the model can't learn to stop. Most base models have no such tokens. An engine
    that can't load an adapter with such rows (vLLM) needs `merge`."""
    merge: bool = False
    """Export the base model with the adapters merged into it, instead of an adapter that needs its base model. The
    merged weights have the precision of the base model, so in bf16 each is rounded once more."""
    quantize: Literal["4bit"] | None = None
    """Load the base model in 4 bits (NF4, QLoRA): a quarter of the memory, but slower steps. Needs the package
    bitsandbytes, which is made for GPUs, and zero_stage 0, 1 or 2. Null does not quantize."""


class ModelConfig(Section):
    """The base model, and which of its weights are trained."""

    base: str = Field(min_length=1)
    """Base model: a folder in Hugging Face format, a hub id, or `package:NAME` for the GGUF model inside an installed
    package. To continue from an earlier run: its `model` folder, or its registered version `models:/NAME@ALIAS` or
    `models:/NAME/NUMBER`; if that is an adapter, the adapter is trained further."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a hub model; null is its default branch. Downloaded once: a branch or tag that moves
    later changes no run."""
    random_init: dict[str, int] | None = None
    """Replace the base model by one with random weights, whose architecture differs in these values of its config. For
    tests; null keeps the weights."""
    lora: LoraConfig | None = None
    """Adapters to train; null trains all weights."""


class RegistryConfig(Section):
    """The MLflow registry of the tuned models."""

    uri: UriWithoutPassword | None = Field(default=None, pattern=r"^(https?|sqlite|postgresql|mysql)[+a-z0-9]*://")
    """MLflow tracking and registry URI, without a password, which is passed in the environment. Null uses a SQLite file
    and an artifact folder in `run.storage`."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the registered model, and of the model that the endpoint serves."""
    alias: str = Field(default="champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")
    """Alias of the version to serve, which the gate moves. `candidate` and `previous` are set beside it."""
    gate: GateConfig | None = GateConfig()
    """What a version must show before the alias moves to it. Null moves the alias to every registered version."""

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: object) -> object:
        return check_model_name(name)

    @field_validator("alias", mode="before")
    @classmethod
    def _check_alias(cls, alias: object) -> object:
        return check_alias(alias)


class Config(Section):
    """The config of a run and its endpoint."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    registry: RegistryConfig
    serving: ServingConfig = ServingConfig()

    @model_validator(mode="after")
    def _check_sections_together(self) -> "Config":
        if self.train.validation is not None and not self.data.validation_fraction:
            raise ValueError("train.validation needs data.validation_fraction above 0, such as 0.05")
        if self.model.lora is not None and self.model.lora.quantize and self.train.zero_stage == 3:
            raise ValueError("model.lora.quantize needs train.zero_stage 0, 1 or 2: 4-bit weights can't be sharded")
        if self.data.labels is None and (self.evidence.only_labels or self.serving.only_labels):
            raise ValueError("evidence.only_labels and serving.only_labels need data.labels")
        check_served_models(self.registry, self.serving)
        return self

    @property
    def evidence_labels(self) -> tuple[str, ...] | None:
        """The labels that answers are limited to in the evidence; None if they are free."""
        return self.data.labels if self.evidence.only_labels else None


def check_served_models(registry: RegistryConfig, serving: ServingConfig) -> None:
    """Check that no name stands for two models at the endpoint.

    Raises:
        ValueError: one does.
    """
    if registry.alias in serving.also_serve:
        raise ValueError(f"serving.also_serve: {registry.alias} is registry.alias, which is served anyway; remove it")
