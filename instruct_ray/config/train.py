"""The `train` section: optimizer, parallelism, checkpoints and validation."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from instruct_ray.config.label_selector import LabelSelector
from instruct_ray.config.section import Section


class ValidationConfig(Section):
    """Validation of each checkpoint on held-out rows: the workers compute the loss, a task generates answers."""

    num_rows: PositiveInt = 256
    """Number of validation rows (see `data.validation_fraction`) whose loss is computed; training waits meanwhile."""
    num_answers: int = Field(default=32, ge=0)
    """For this many of these rows, also generate the output and compare it with the expected one. Slow; 0 disables
    it."""
    metric: Literal["loss", "accuracy"] = "loss"
    """Metric that selects the best checkpoint, which becomes the model."""
    patience: PositiveInt | None = None
    """Early stopping: stop after this many consecutive checkpoints that are no better than the best one; null
    disables it."""
    max_new_tokens: PositiveInt = 64
    """Maximum length of a generated output, in tokens."""
    max_wait_seconds: PositiveFloat = 3600
    """Longest wait at a checkpoint for the task of the one before. Then the task is cancelled, and training continues
    without its answers."""
    num_cpus: PositiveFloat = 1
    """CPUs of the validation task."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of the validation task, in addition to those of the workers."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Labels of the nodes that may run the validation task, as in `train.label_selector`. None by default."""

    @model_validator(mode="after")
    def _check_metric(self) -> "ValidationConfig":
        if self.metric == "accuracy" and not self.num_answers:
            raise ValueError("metric: accuracy needs num_answers above 0")
        return self


class LossSpikeConfig(Section):
    """Detection of a sustained loss spike, which stops the run."""

    factor: float = Field(default=2.0, gt=1)
    """The loss of a step is high if it is at least this many times the mean loss of the steps before it."""
    num_steps: PositiveInt = 5
    """Number of consecutive steps with a high loss that stop the run."""
    window: PositiveInt = 100
    """Number of steps that the mean is computed over. No loss counts as high before that many steps."""


class OffloadConfig(Section):
    """What is kept in CPU memory instead of GPU memory. Saves GPU memory, but every step moves it both ways."""

    optimizer: bool = False
    """Offload the fp32 master weights and AdamW's moments, and compute the update on CPUs. Needs zero_stage 1, 2
    or 3."""
    parameters: bool = False
    """Offload the weights while they are not in use. Needs zero_stage 3."""


class TrainConfig(Section):
    """Optimizer, parallelism, checkpoints and validation."""

    epochs: PositiveInt = 1
    """Number of passes over the training rows."""
    examples_per_step: PositiveInt = 32
    """Batch size: average number of examples per optimizer step. It is converted to a fixed number of packs per
    step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the steps that increase the learning rate linearly to its peak, before `schedule` begins."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine or linear decay to zero, or constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, on all weights but norms and biases."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Stage of DeepSpeed ZeRO: 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the weights."""
    offload: OffloadConfig = OffloadConfig()
    """What is kept in CPU memory instead of GPU memory."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 computes in bfloat16, adds up gradients in fp32 and keeps fp32 master weights; fp32 does everything in
    fp32. A CPU without bf16 instructions takes many times as long in bf16: `instruct-ray doctor` says so."""
    packed: bool = True
    """Train on packs, after a check that this changes nothing. `false` trains with padding, which is slower: for a base
    model for which the check can't be run."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and recompute the rest. Needs less memory, but a third
    more time."""
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Number of Ray Train workers. Each is one rank, with one GPU if `use_gpu` is set. `[min, max]` is elastic: as many
    workers as fit the cluster; when a node is lost or added, training resumes from the newest checkpoint with fewer or
    more workers."""
    cpus_per_worker: PositiveInt = 1
    """CPUs per worker; without a GPU also its number of compute threads. With GPUs, an offloaded optimizer computes on
    all CPUs of the node, divided by its workers."""
    use_gpu: bool = False
    """Train on GPUs, one per worker, with NCCL. Otherwise on CPUs, with gloo."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Labels of the nodes that may run workers, as Ray writes them: `{market: on-demand}`, `{market: "!spot"}`,
    `{ray.io/accelerator-type: "in(H100, H200)"}`. All nodes by default. Labels are given to a node by `ray start
    --labels` or by `labels` of a KubeRay worker group; some, such as `ray.io/accelerator-type`, by Ray."""
    wait_for_nodes: int = Field(default=0, ge=0)
    """Seconds to wait for an autoscaler to add nodes; 0 fails immediately if the cluster is too small."""
    max_failures: int = Field(default=3, ge=0)
    """Maximum number of automatic restarts after a worker failed. Each resumes from the newest checkpoint."""
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints. There is always one after the last step."""
    num_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep."""
    validation: ValidationConfig | None = None
    """Validate each checkpoint on held-out rows; `{}` uses the defaults, null disables it."""
    compile: bool = False
    """Compile the model with torch.compile: faster steps on GPUs, after some minutes at the start. Needs a C++ compiler
    on every node and zero_stage 0, 1 or 2."""
    max_nonfinite_steps: PositiveInt = 3
    """Consecutive steps with a non-finite loss or gradient that stop the run; no model is exported then. Each such step
    is skipped, and its rows are reported."""
    loss_spike: LossSpikeConfig | None = None
    """Stop the run at a sustained loss spike; `{}` uses the defaults, null disables it."""

    @model_validator(mode="after")
    def _check_options_together(self) -> "TrainConfig":
        if self.offload.optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload.optimizer needs zero_stage 1, 2 or 3: stage 0 has no sharded optimizer to offload"
            )
        if self.offload.parameters and self.zero_stage != 3:
            raise ValueError("offload.parameters needs zero_stage 3: at lower stages every worker keeps all weights")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile needs zero_stage 0, 1 or 2: stage 3 gathers and releases the weights per layer")
        if self.validation is not None and self.num_checkpoints < 2:
            raise ValueError("validation needs num_checkpoints above 1: one is validated while the next is written")
        return self

    @field_validator("num_workers")
    @classmethod
    def _check_order(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if not isinstance(value, int) and value[0] > value[1]:
            raise ValueError(f"must be [min, max], but {value[0]} is more than {value[1]}")
        return value

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change with the cluster."""
        return not isinstance(self.num_workers, int)

    @property
    def min_workers(self) -> int:
        """The minimum number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The maximum number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
