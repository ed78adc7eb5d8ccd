"""Every option of the system, by section, with its meaning and its limits."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instruct_ray.config.data import DataConfig
from instruct_ray.config.section import AbsolutePath, Section
from instruct_ray.config.train import TrainConfig


class RunConfig(Section):
    """Which run this is and where it lives."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run; the same name and storage continue it."""
    storage: AbsolutePath
    """Folder for all runs, visible under the same path from every node."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random: order of the data, LoRA initialisation, dropout."""


class LoraConfig(Section):
    """Train low-rank adapters instead of all weights."""

    rank: PositiveInt = 16
    """Rank of the adapter matrices."""
    alpha: PositiveFloat = 32
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that get adapters, such as q_proj; null adapts all but the output head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that a higher rank learns no slower (rank-stabilised LoRA)."""
    dora: bool = False
    """Train the weights' magnitudes as well (weight-decomposed LoRA): closer to full tuning, slower."""
    merge: bool = False
    """Leave the base with the adapters merged into it, a model on its own, instead of an adapter that needs the base
    beside it. In the precision of the base: in bf16 each weight is rounded once more."""
    quantize: Literal["4bit"] | None = None
    """Keep the base in 4 bits (NF4, QLoRA) under the adapters: a quarter of its memory, slower steps. Needs the
    package bitsandbytes, made for GPUs; zero_stage 0 to 2."""


class ModelConfig(Section):
    """Which base model is tuned, and how much of it."""

    base: str = Field(min_length=1)
    """A folder in Hugging Face format, a hub id, or `package:NAME`: the GGUF model inside an installed package. To go
    on from a run of one's own: its `model` folder (an adapter is trained on), or its version, `models:/NAME@alias` or
    `models:/NAME/3`."""
    random_init: dict[str, int] | None = None
    """Replace the base's weights by random ones of its architecture with these config values, to try things out."""
    lora: LoraConfig | None = None
    """Adapters to train; null trains all weights."""


class EvidenceConfig(Section):
    """How the tuned model is compared with its base."""

    num_few_shot: PositiveInt = 3
    """Training rows shown before the question in the few-shot arm."""
    num_latency_rows: PositiveInt = 20
    """Held-out rows answered one at a time to measure latency."""
    max_new_tokens: PositiveInt = 16
    """Longest answer, in tokens."""


class RegistryConfig(Section):
    """Where versions are registered."""

    uri: str | None = Field(default=None, pattern=r"^(https?|sqlite|postgresql|mysql)[+a-z0-9]*://")
    """MLflow tracking and registry URI; null keeps a SQLite file and the artifacts under `run.storage`."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the registered model; also the model name of the endpoint."""
    alias: str = Field(default="champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")
    """Alias that marks the version to serve."""


class ServingConfig(Section):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxy listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the endpoint."""
    num_replicas: PositiveInt = 1
    """Engine replicas, each with a copy of the model."""
    num_cpus: PositiveFloat = 1
    """CPUs of one replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of one replica."""
    max_batch_size: PositiveInt = 16
    """Requests answered in one batch."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of one answer; also the default when a request names none."""
    max_queued_requests: PositiveInt = 128
    """Requests that may wait; one more is answered 429."""


class Config(Section):
    """All of it."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    registry: RegistryConfig
    serving: ServingConfig = ServingConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> "Config":
        if self.train.validation is not None and not self.data.validation_fraction:
            raise ValueError("train.validation needs data.validation_fraction above 0, such as 0.05")
        if self.model.lora is not None and self.model.lora.quantize and self.train.zero_stage == 3:
            raise ValueError("model.lora.quantize needs train.zero_stage 0, 1 or 2: 4-bit weights can't be sharded")
        return self
