"""The Ray Serve application: a gateway and model replicas. Serve config files import `build_app` from here."""

from typing import Any

from pydantic import field_validator, model_validator
from ray import serve
from ray.serve import Application

from instruct_ray.config.schema import RegistryConfig, check_served_models
from instruct_ray.config.section import Section
from instruct_ray.config.serving import ServingConfig
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.serving.gateway import Gateway
from instruct_ray.serving.replica import ModelReplica
from instruct_ray.serving.trace_exporter import check_exporter_installed

GATEWAY_CPUS = 0.1
GATEWAY_MARGIN = 64


class AppArgs(Section):
    """Arguments of `build_app`, with the names and defaults of the run config."""

    registry: RegistryConfig
    serving: ServingConfig = ServingConfig()

    @field_validator("registry")
    @classmethod
    def _check_uri(cls, registry: RegistryConfig) -> RegistryConfig:
        if registry.uri is None:
            raise ValueError("an application needs registry.uri")
        return registry

    @model_validator(mode="after")
    def _check_models(self) -> "AppArgs":
        check_served_models(self.registry, self.serving)
        return self


def build_app(args: AppArgs) -> Application:
    """Build the application; its replicas serve the version that `registry.alias` points to.

    Raises:
        InputError: a package that `serving.tracing` needs is not installed.
    """
    serving = args.serving
    if serving.tracing is not None:
        check_exporter_installed()
    replica = serve.deployment(
        ModelReplica,
        **_replica_options(serving),
        ray_actor_options={
            "num_cpus": serving.num_cpus,
            "num_gpus": serving.num_gpus,
            "label_selector": serving.label_selector,
            "runtime_env": worker_runtime_env(use_gpu=serving.num_gpus > 0),
        },
        # Enough for a running batch and the next one: the engine batches only the requests that a replica has.
        max_ongoing_requests=2 * serving.max_batch_size,
        max_queued_requests=serving.max_queued_requests,
        # So that a replica that is replaced can finish its requests.
        graceful_shutdown_timeout_s=serving.max_seconds,
    )
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        # Of answers as many as replicas take and queue, so that more are refused, and of other requests some.
        max_ongoing_requests=2 * serving.max_batch_size * serving.max_replicas
        + serving.max_queued_requests
        + GATEWAY_MARGIN,
        graceful_shutdown_timeout_s=serving.max_seconds,
    )
    return gateway.bind(replica.bind(args.registry, serving), serving)


def _replica_options(serving: ServingConfig) -> dict[str, Any]:
    """How many replicas there are, as options of a Serve deployment."""
    limits = serving.autoscaling
    if limits is None:
        return {"num_replicas": serving.num_replicas}
    autoscaling = {
        "min_replicas": limits.min_replicas,
        "initial_replicas": serving.num_replicas,
        "max_replicas": limits.max_replicas,
        "target_ongoing_requests": limits.target_ongoing_requests or serving.max_batch_size,
        "upscale_delay_s": limits.upscale_delay_seconds,
        "downscale_delay_s": limits.downscale_delay_seconds,
    }
    return {"autoscaling_config": autoscaling}
