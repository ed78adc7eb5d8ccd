"""`instruct-ray serve`: the serve stage, from version to endpoint."""

import signal
import socket
import threading
from collections.abc import Callable

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.console import StatusLine
from instruct_ray.errors import InputError
from instruct_ray.tracking.mlflow_client import require_registry_uri, tracking_uri


def run_serve(config: Config) -> None:
    """Serve the version under the alias: on this machine until it is stopped, on a cluster as an app that stays."""
    with StatusLine("serve") as status:
        url = start_endpoint(config, status)
    name = config.registry.name
    print(f"serving models:/{name}@{config.registry.alias} at {url} (model={name})")
    if not ray_session.names_cluster():
        print("stop it with Ctrl-C")
        _wait_for_stop()
        from ray import serve  # noqa: PLC0415  (takes seconds)

        serve.delete(name)


def start_endpoint(config: Config, status: Callable[[str], None]) -> str:
    """Start the endpoint and return its base URL.

    Raises:
        InputError: nothing is registered under the alias, the port is in use, serving.feedback_file can't be written,
            or other machines could use the endpoint without an API key.
    """
    status("loading libraries")
    from ray import serve  # noqa: PLC0415  (takes seconds)

    from instruct_ray.registry.model_registry import ModelRegistry  # noqa: PLC0415
    from instruct_ray.serving.api_keys import ApiKeys  # noqa: PLC0415
    from instruct_ray.serving.app import AppArgs, build_app  # noqa: PLC0415
    from instruct_ray.serving.playground.triples_file import TriplesFile  # noqa: PLC0415

    _check_access(config.serving, has_keys=ApiKeys(config.serving.api_keys_file).are_required)
    if config.serving.feedback_file is not None:
        TriplesFile(config.serving.feedback_file, config.serving.max_feedback_bytes)
    args = AppArgs(registry=config.registry.model_copy(update={"uri": tracking_uri(config)}), serving=config.serving)
    status("looking up the version")
    ModelRegistry(require_registry_uri(config)).resolve(f"models:/{config.registry.name}@{config.registry.alias}")
    if not ray_session.names_cluster():
        _check_port(config.serving.host, config.serving.port)
    ray_session.init_ray()
    status("starting Ray Serve and loading the model")
    serve.start(http_options={"host": config.serving.host, "port": config.serving.port})
    serve.run(build_app(args), name=config.registry.name)
    return f"http://{config.serving.host}:{config.serving.port}/v1"


def _wait_for_stop() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


def _check_access(serving: ServingConfig, *, has_keys: bool) -> None:
    if has_keys or serving.allow_without_key or serving.host in ("localhost", "127.0.0.1", "::1"):
        return
    raise InputError(
        f"serving.host: {serving.host} can be reached from other machines, and the endpoint has no API keys; set "
        "serving.api_keys_file (make a key with `instruct-ray new-key NAME`), or serving.allow_without_key=true"
    )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"serving.port: {host}:{port} can't be used ({error.strerror})") from None
