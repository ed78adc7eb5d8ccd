"""Every option of the system, by section, with its meaning and its limits."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator


def _absolute(path: Path) -> Path:
    if ":/" in str(path):
        raise ValueError("needs a folder that every node sees under the same path (NFS, EFS, Filestore), not a URI")
    return path.expanduser().absolute()


ColumnName = Literal["id", "instruction", "input", "output", "system", "history", "messages", "conversations"]
# Ray workers change their working directory, so paths are made absolute once, here.
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about unknown keys, each field described by the text below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


def _is_uri(path: str) -> bool:
    return "://" in path or path.startswith("hub:")


class SourceConfig(Section):
    """Where rows come from, and what they look like; a plain string in `data.sources` is its `path`."""

    path: str = Field(min_length=1)
    """A file (`.jsonl`, `.json`, `.csv`, each also with `.gz` or `.zst`, or `.parquet`), a folder or glob (`**` stands
    for folders in folders) of such files, a folder that `datasets` saved, the same on an object store (`s3://…`,
    `gs://…`), or `hub:NAME` for a hub data set. Keys come from the environment of every node (`AWS_ACCESS_KEY_ID`, …)
    or a role; another server than Amazon's is named by `AWS_ENDPOINT_URL`, or in the URI, where it reaches all nodes:
    `s3://bucket/key?endpoint_override=http://host:9000&region=us-east-1`."""
    format: Literal["auto", "triples", "messages", "sharegpt"] = "auto"
    """What a row is; `auto` decides by its columns."""
    columns: dict[ColumnName, str] = {}
    """Names of the source's columns, where they are not ours: `{instruction: question, output: answer}`."""
    weight: PositiveFloat = 1.0
    """Copies of each training row: 2.5 trains every row twice and half of them a third time, chosen by the seed."""
    split: str = "train"
    """Split of a data set of `datasets`."""
    subset: str | None = None
    """Named configuration of a hub data set."""

    @field_validator("path")
    @classmethod
    def _absolute_path(cls, path: str) -> str:
        return path if _is_uri(path) else str(Path(path).expanduser().absolute())


def _as_source(value: object) -> object:
    return {"path": str(value)} if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Triples and how they become packs."""

    sources: tuple[Annotated[SourceConfig, BeforeValidator(_as_source)], ...] = Field(min_length=1)
    """Where the rows come from: paths, or `{path, format, columns, weight, …}`."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out for evidence, chosen by a hash of the input."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows held out for `train.validation`, chosen alike: no part of the evidence, which a choice between
    checkpoints would flatter."""
    system_prompt: str | None = None
    """System message of every prompt, in training and serving; null leaves it to the base's chat template."""
    max_tokens: PositiveInt = 2048
    """Longest row, in tokens."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a longer row: it is left out, or its input is cut at the end; the answer never is. Counted."""
    pack_tokens: PositiveInt = 2048
    """Tokens of one pack: what one forward pass computes."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of rows that may be unusable and are set aside; more stops the preparation and shows why."""
    max_row_bytes: PositiveInt = 8 * 1024 * 1024
    """Longest line or field of a source, in bytes; a longer one is set aside unread."""
    near_duplicates: float | None = Field(default=0.8, gt=0, lt=1)
    """Training rows whose input resembles a held-out one this much (Jaccard similarity of its 5-character pieces) are
    left out, so that the evidence is not about rows seen in training; null does not look for them."""

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction together leave no row to train on")
        return self


class ValidationConfig(Section):
    """How checkpoints are compared while the training goes on, by a task beside it."""

    num_rows: PositiveInt = 256
    """Rows whose loss is computed, of those that `data.validation_fraction` holds out."""
    num_answers: int = Field(default=32, ge=0)
    """Of these, rows whose answers are generated and compared with the expected ones: slower."""
    metric: Literal["loss", "accuracy"] = "loss"
    """What makes a checkpoint the best; the best one becomes the model."""
    patience: PositiveInt | None = None
    """Checkpoints in a row that are no better than the best before training stops early; null never does."""
    max_new_tokens: PositiveInt = 64
    """Longest generated answer, in tokens."""
    num_cpus: PositiveFloat = 1
    """CPUs of the task."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of the task; none of the workers'."""

    @model_validator(mode="after")
    def _has_what_it_compares(self) -> "ValidationConfig":
        if self.metric == "accuracy" and not self.num_answers:
            raise ValueError("metric: accuracy needs num_answers above 0")
        return self


class LossSpikeConfig(Section):
    """When a rising loss ends a run."""

    factor: float = Field(default=2.0, gt=1)
    """A step spikes if its loss is at least this many times the mean of the steps before it."""
    num_steps: PositiveInt = 5
    """Spiking steps in a row that end the run."""
    window: PositiveInt = 100
    """Steps that the mean is over; the first ones of a run are never spikes."""


class OffloadConfig(Section):
    """What waits in the nodes' memory instead of the GPUs'. Slower: each step moves it back and forth."""

    optimizer: bool = False
    """Master weights and AdamW's moments, and the update itself is computed by CPUs; from zero_stage 1 on."""
    parameters: bool = False
    """Weights between their uses; zero_stage 3 only."""


class TrainConfig(Section):
    """How the packs are trained on."""

    epochs: PositiveInt = 1
    """How often every row is trained on."""
    examples_per_step: PositiveInt = 32
    """Examples behind one optimizer step; becomes a fixed number of packs per step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a linearly rising learning rate; the schedule follows."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate behind the warm-up: a cosine or a line down to zero, or level."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 shards nothing, 1 the optimizer, 2 also the gradients, 3 also the weights."""
    offload: OffloadConfig = OffloadConfig()
    """What is kept outside the GPUs."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 computes in bfloat16 over fp32 master weights."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Ray Train workers; each is one rank and holds one GPU if use_gpu. `[min, max]` is elastic: as many as there is
    room for, fewer from the newest checkpoint on when a node is lost, more when one comes."""
    cpus_per_worker: PositiveInt = 1
    """CPUs of each worker, and the threads it computes with where it has no GPU."""
    use_gpu: bool = False
    """Give each worker a GPU (NCCL); otherwise CPUs (gloo)."""
    wait_for_nodes: int = Field(default=0, ge=0)
    """Seconds to wait for nodes that an autoscaler starts; 0 refuses at once what the cluster can't hold."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run restarts by itself from its newest checkpoint when a worker dies."""
    checkpoint_every: PositiveInt = 100
    """Steps between two checkpoints; the last step always makes one."""
    num_checkpoints: PositiveInt = 2
    """Checkpoints kept."""
    validation: ValidationConfig | None = None
    """Score each checkpoint beside the training; `{}` takes the defaults, null does not."""
    compile: bool = False
    """Compile the model (torch.compile; a C++ compiler on every node, minutes at the start): faster steps on a GPU. Not
    at zero_stage 3, whose weights come and go between the layers."""
    max_nonfinite_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient may be no number; each is left out and its rows named. At so many the run
    stops, and is neither exported nor registered."""
    loss_spike: LossSpikeConfig | None = None
    """Stop as well when the loss shoots up and stays there; `{}` takes the defaults, null never stops for it."""

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainConfig":
        if self.offload.optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload.optimizer needs zero_stage 1, 2 or 3: stage 0 has no optimizer of its own to move"
            )
        if self.offload.parameters and self.zero_stage != 3:
            raise ValueError("offload.parameters needs zero_stage 3: below it every worker keeps all weights")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile needs zero_stage 0, 1 or 2: at 3 the weights come and go between the layers")
        if self.validation is not None and self.num_checkpoints < 2:
            raise ValueError("validation needs num_checkpoints above 1: one is scored while the next is made")
        return self

    @field_validator("num_workers")
    @classmethod
    def _from_fewest_to_most(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if not isinstance(value, int) and value[0] > value[1]:
            raise ValueError(f"is [min, max], and {value[0]} is more than {value[1]}")
        return value

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers follows the cluster."""
        return not isinstance(self.num_workers, int)

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


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
