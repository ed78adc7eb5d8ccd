"""The `train` section: optimizer, parallelism, checkpoints and validation."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from instruct_ray.config.section import Section


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
