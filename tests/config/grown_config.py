"""The config and the prompt contract of a later version, with a new option in every section that decides a result."""

from dataclasses import dataclass

from instruct_ray.config.data import DataConfig, SourceConfig
from instruct_ray.config.evidence import BenchmarksConfig, EvidenceConfig, RivalConfig
from instruct_ray.config.gate import GateConfig
from instruct_ray.config.schema import (
    Config,
    LoraConfig,
    ModelConfig,
    RegistryConfig,
    RunConfig,
)
from instruct_ray.config.train import LossSpikeConfig, OffloadConfig, TrainConfig, ValidationConfig
from instruct_ray.data.rendering.contract import PromptContract


class GrownRun(RunConfig):
    new_option: int = 0


class GrownLora(LoraConfig):
    new_option: int = 0


class GrownModel(ModelConfig):
    lora: GrownLora | None = None
    new_option: int = 0


class GrownSource(SourceConfig):
    new_option: int = 0


class GrownData(DataConfig):
    sources: tuple[GrownSource, ...]
    new_option: int = 0


class GrownOffload(OffloadConfig):
    new_option: int = 0


class GrownValidation(ValidationConfig):
    new_option: int = 0


class GrownLossSpike(LossSpikeConfig):
    new_option: int = 0


class GrownTrain(TrainConfig):
    offload: GrownOffload = GrownOffload()
    validation: GrownValidation | None = None
    loss_spike: GrownLossSpike | None = None
    new_option: int = 0


class GrownRival(RivalConfig):
    new_option: int = 0


class GrownBenchmarks(BenchmarksConfig):
    new_option: int = 0


class GrownEvidence(EvidenceConfig):
    arms: tuple[GrownRival, ...] = ()
    benchmarks: GrownBenchmarks = GrownBenchmarks()
    new_option: int = 0


class GrownGate(GateConfig):
    new_option: int = 0


class GrownRegistry(RegistryConfig):
    gate: GrownGate | None = None
    new_option: int = 0


class GrownConfig(Config):
    """The config of a later version, with a new option in every section that decides a result."""

    run: GrownRun
    model: GrownModel
    data: GrownData
    train: GrownTrain = GrownTrain()
    evidence: GrownEvidence = GrownEvidence()
    registry: GrownRegistry


@dataclass(frozen=True)
class GrownContract(PromptContract):
    """The prompt contract of a later version."""

    new_field: str = ""
