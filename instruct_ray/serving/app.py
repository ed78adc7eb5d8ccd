"""The Ray Serve application: a gateway and model replicas. Serve config files import `build_app` from here."""

from pydantic import field_validator
from ray import serve
from ray.serve import Application

from instruct_ray.config.schema import RegistryConfig, ServingConfig
from instruct_ray.config.section import Section
from instruct_ray.runtime_env import worker_runtime_env
from instruct_ray.serving.gateway import Gateway, api
from instruct_ray.serving.replica import ModelReplica

# Longer than any completion takes, so that a replica that is replaced can finish its requests.
GRACEFUL_SHUTDOWN_SECONDS = 120
GATEWAY_CPUS = 0.1


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


def build_app(args: AppArgs) -> Application:
    """Build the application; its replicas serve the version that `registry.alias` points to."""
    serving = args.serving
    replica = serve.deployment(
        ModelReplica,
        num_replicas=serving.num_replicas,
        ray_actor_options={
            "num_cpus": serving.num_cpus,
            "num_gpus": serving.num_gpus,
            "runtime_env": worker_runtime_env(use_gpu=serving.num_gpus > 0),
        },
        # Enough for a running batch and the next one: the engine batches only the requests that a replica has.
        max_ongoing_requests=2 * serving.max_batch_size,
        max_queued_requests=serving.max_queued_requests,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_SECONDS,
    )
    gateway = serve.deployment(
        serve.ingress(api)(Gateway),
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        max_ongoing_requests=2 * serving.max_batch_size * serving.num_replicas + serving.max_queued_requests,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_SECONDS,
    )
    return gateway.bind(replica.bind(args.registry, serving))
