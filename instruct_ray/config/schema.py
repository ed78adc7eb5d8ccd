"""All options of the config, by section, with their meaning and limits."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instruct_ray.config.data import DataConfig
from instruct_ray.config.section import AbsolutePath, Section
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
    random_init: dict[str, int] | None = None
    """Replace the base model by one with random weights, whose architecture differs in these values of its config. For
    tests; null keeps the weights."""
    lora: LoraConfig | None = None
    """Adapters to train; null trains all weights."""


class EvidenceConfig(Section):
    """The comparison of the tuned model with its base model on the test rows."""

    num_few_shot: PositiveInt = 3
    """Number of training rows in the prompt of the few-shot arm."""
    num_latency_rows: PositiveInt = 20
    """Number of test rows that are answered one at a time to measure latency."""
    max_new_tokens: PositiveInt = 16
    """Maximum length of a generated output, in tokens."""


class RegistryConfig(Section):
    """The MLflow registry of the tuned models."""

    uri: str | None = Field(default=None, pattern=r"^(https?|sqlite|postgresql|mysql)[+a-z0-9]*://")
    """MLflow tracking and registry URI. Null uses a SQLite file and an artifact folder in `run.storage`."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the registered model, and of the model that the endpoint serves."""
    alias: str = Field(default="champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")
    """Alias of the version to serve."""


class ServingConfig(Section):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port that the endpoint listens on."""
    num_replicas: PositiveInt = 1
    """Number of replicas, each with its own copy of the model."""
    num_cpus: PositiveFloat = 1
    """CPUs per replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs per replica."""
    max_batch_size: PositiveInt = 16
    """Maximum number of requests that a replica processes in one batch."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of a generated output, in tokens. Also the default of a request without a limit."""
    max_queued_requests: PositiveInt = 128
    """Maximum number of waiting requests; further ones get HTTP status 429."""


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
        return self
