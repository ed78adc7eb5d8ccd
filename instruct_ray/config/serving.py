"""The `serving` section: resources, limits and keys of the endpoint."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from instruct_ray.config.label_selector import LabelSelector
from instruct_ray.config.registry_names import check_further_model
from instruct_ray.config.section import AbsolutePath, Section, UriWithoutPassword


class CanaryConfig(Section):
    """A new version gets a share of the requests first, and all of them once it has shown that it answers them."""

    share: float = Field(default=0.1, ge=0.01, le=0.5)
    """Share of the requests that the new version gets, of those that name no exact version."""
    min_requests: PositiveInt = 100
    """Number of requests to the new version, in each replica, after which it is judged."""
    max_error_increase: float = Field(default=0.02, ge=0, lt=1)
    """By how much the share of failed requests may exceed that of the old version. One that exceeds it earlier than
    after `min_requests`, whatever the others would be, is rejected at once."""
    max_latency_ratio: float | None = Field(default=2.0, gt=1)
    """How many times longer than with the old version the median request may take; null does not compare."""


class AutoscalingConfig(Section):
    """How many replicas there are depends on the number of requests."""

    min_replicas: NonNegativeInt = 1
    """Minimum number of replicas. With 0 the next request waits until a replica has loaded the model; once one has
    run, `/health`, `/metrics` and `/v1/models` start none."""
    max_replicas: PositiveInt
    """Maximum number of replicas."""
    target_ongoing_requests: PositiveFloat | None = None
    """Mean number of requests per replica above which replicas are added; null is `max_batch_size`."""
    upscale_delay_seconds: NonNegativeFloat = 10.0
    """How long more replicas must have been needed before they are started, in seconds."""
    downscale_delay_seconds: NonNegativeFloat = 600.0
    """How long fewer replicas must have been enough before they are stopped, in seconds."""

    @model_validator(mode="after")
    def _check_range(self) -> "AutoscalingConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self


class TracingConfig(Section):
    """A trace of each request, sent to MLflow in the background; needs `pip install 'instruct-ray[tracing]'`."""

    uri: UriWithoutPassword = Field(pattern=r"^https?://\S+$")
    """Address of an MLflow server. User and password, or a token, are taken from MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. While it does not respond, traces are dropped."""
    experiment: str = Field(default="instruct_ray_endpoint", min_length=1)
    """Name of the experiment that gets the traces; it is made if there is none."""
    sample_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the requests that are traced."""
    record_text: bool = False
    """Whether traces hold prompts and answers, up to 20,000 characters of each."""


class ServingConfig(Section):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port that the endpoint listens on."""
    num_replicas: PositiveInt = 1
    """Number of replicas, each with its own copy of the model. With `autoscaling` the number at the start."""
    autoscaling: AutoscalingConfig | None = None
    """Whether the number of replicas follows the requests, and within which limits. Null keeps `num_replicas`."""
    num_cpus: PositiveFloat = 1
    """CPUs per replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs per replica."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Labels of the nodes that may run replicas, and the engines of `evaluate`, `register`, `benchmark` and `generate`,
    as in `train.label_selector`. None by default."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What generates: `transformers` runs on any CPU or GPU, `vllm` needs the package `vllm`. `auto` is `vllm` where a
    replica has a GPU and the package is installed, and `transformers` elsewhere: on a CPU vLLM is no faster."""
    tensor_parallel: PositiveInt = 1
    """Number of GPUs that vLLM splits each copy of the model over; `num_gpus` must be the same number."""
    gpu_memory_utilization: float = Field(default=0.45, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes for weights, keys and values. With more than 0.5 no second version
    fits beside the first, so a replica can't change to a new version; set `follow_seconds` to null then."""
    kv_cache_bytes: PositiveInt | None = None
    """Memory in which vLLM keeps keys and values, in bytes per GPU; null is what `gpu_memory_utilization` leaves, and
    1 GiB on a CPU."""
    max_batch_size: PositiveInt = 16
    """Maximum number of requests that a replica processes in one batch."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of a generated output, in tokens. Also the default of a request without a limit."""
    prefix_cache_tokens: NonNegativeInt = 4096
    """Number of tokens whose keys and values are kept because later prompts may begin with them, such as an
    instruction; 0 keeps none. It counts for each loaded model. vLLM keeps as many as its memory holds, unless this is
    0."""
    only_labels: bool = False
    """Whether every answer is one of the labels of the version's contract, see `data.labels`."""
    max_queued_requests: PositiveInt = 128
    """Maximum number of waiting requests; further ones get HTTP status 429."""
    max_seconds: PositiveFloat = 300.0
    """Maximum duration of a request, in seconds. A longer one gets HTTP status 504, or an error event in its stream."""
    max_body_bytes: PositiveInt = 4 * 2**20
    """Maximum size of the body of a request; a larger one gets HTTP status 413."""
    follow_seconds: PositiveFloat | None = 10.0
    """How often the endpoint looks which version a decision has put under `registry.alias`; null keeps the version that
    it started with."""
    canary: CanaryConfig | None = None
    """Whether a new version gets a share of the requests first, and which. With more errors or a higher latency than
    allowed it is rejected and gets none, until another decision; `/health` says why. Null moves all requests to it once
    it is loaded and checked. Each replica judges by its own requests. One that starts beside others begins with the
    version that they serve; an endpoint that starts serves the version under the alias at once."""
    also_serve: tuple[Annotated[str, BeforeValidator(check_further_model)], ...] = ()
    """Models that are loaded beside the followed version, for requests that name them: aliases such as `previous` and
    `candidate` (`NAME@previous`), version numbers (`NAME/3`), and `base`, the base model of the followed version
    (`NAME@base`). Each full model takes memory of its own; versions that are adapters of one base model share it with
    the `transformers` engine. With `vllm` each takes `gpu_memory_utilization` of the GPUs."""
    api_keys_file: AbsolutePath | None = None
    """YAML file with the API keys that requests need, as `instruct-ray new-key` prints them. Changes of the file apply
    within seconds. Without it, keys are taken from the environment variable INSTRUCT_RAY_API_KEYS, which holds the same
    YAML; without both, the endpoint answers only this machine."""
    allow_without_key: bool = False
    """Whether the endpoint answers other machines although it has no API keys."""
    tracing: TracingConfig | None = None
    """Whether requests are traced, and where the traces go: version, tokens, times and errors of each."""
    playground: bool = True
    """Whether the endpoint has a playground at `/`. Its page is static and needs no API key; what it asks for does."""
    feedback_file: AbsolutePath | None = None
    """JSONL file to which the playground's `Better here` appends triples, with what they came from under `provenance`;
    it can be a source of `data.sources`. The gateway must see its folder. Without it the browser downloads them."""
    max_feedback_bytes: PositiveInt = 256 * 2**20
    """Maximum size of `feedback_file`; a triple that it has no room for gets HTTP status 507."""

    @model_validator(mode="after")
    def _check_playground(self) -> "ServingConfig":
        if self.feedback_file is not None and not self.playground:
            raise ValueError("feedback_file is written by the playground alone; set playground: true")
        return self

    @model_validator(mode="after")
    def _check_tensor_parallel(self) -> "ServingConfig":
        if self.tensor_parallel > 1 and self.num_gpus != self.tensor_parallel:
            raise ValueError(f"serving.tensor_parallel={self.tensor_parallel} needs serving.num_gpus to be the same")
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError(f"serving.tensor_parallel={self.tensor_parallel} needs serving.engine=vllm")
        return self

    @model_validator(mode="after")
    def _check_gpu_memory(self) -> "ServingConfig":
        num_models = self.num_models
        if self.engine == "vllm" and self.num_gpus > 0 and num_models > self.num_models_that_fit:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization:g} is too much for {num_models} models (the "
                f"followed version, {len(self.also_serve)} of also_serve, and the next version unless follow_seconds "
                f"is null); set at most {1 / num_models:.2f}"
            )
        return self

    @model_validator(mode="after")
    def _check_num_replicas(self) -> "ServingConfig":
        limits = self.autoscaling
        if limits is not None and not limits.min_replicas <= self.num_replicas <= limits.max_replicas:
            raise ValueError(
                f"num_replicas={self.num_replicas} is not between autoscaling.min_replicas={limits.min_replicas} and "
                f"autoscaling.max_replicas={limits.max_replicas}"
            )
        return self

    @property
    def num_models(self) -> int:
        """The models that a replica needs room for; the next version is loaded beside the present one."""
        return 1 + len(self.also_serve) + (self.follow_seconds is not None)

    @property
    def num_models_that_fit(self) -> int:
        """The models that fit the GPUs with vLLM."""
        return int(1 / self.gpu_memory_utilization + 1e-9)

    @property
    def max_replicas(self) -> int:
        """The most replicas that there may be."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas
