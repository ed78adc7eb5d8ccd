"""Every option of the system, by section, with its meaning and its limits."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
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


class ModelConfig(Section):
    """Which base model is tuned, and how much of it."""

    base: str = Field(min_length=1)
    """A folder in Hugging Face format, a hub id, or `package:NAME`: the GGUF model inside an installed package."""
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
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 computes in bfloat16 over fp32 master weights."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    num_workers: PositiveInt = 1
    """Ray Train workers; each is one rank and holds one GPU if use_gpu."""
    cpus_per_worker: PositiveInt = 1
    """CPUs of each worker, and the threads it computes with where it has no GPU."""
    use_gpu: bool = False
    """Give each worker a GPU (NCCL); otherwise CPUs (gloo)."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run restarts by itself from its newest checkpoint when a worker dies."""
    checkpoint_every: PositiveInt = 100
    """Steps between two checkpoints; the last step always makes one."""
    num_checkpoints: PositiveInt = 2
    """Checkpoints kept."""
    max_nonfinite_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient may be no number; each is left out and its rows named. At so many the run
    stops, and is neither exported nor registered."""


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
