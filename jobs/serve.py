"""version -> endpoint.    python -m jobs.serve --config jobs/configs/incidents.yaml"""

import os
import signal
import socket
import threading

from instruct_ray.config import Config
from instruct_ray.console import Status
from instruct_ray.errors import InputError
from instruct_ray.registry.versions import Registry
from instruct_ray.tracking.client import existing_registry, tracking_uri
from jobs import runner


def main(config: Config) -> None:
    """Serve the version behind the alias; on this machine until stopped, on a cluster the application stays."""
    with Status("serve") as status:
        url = start(config, status)
    print(f"serving models:/{config.registry.name}@{config.registry.alias} at {url} (model={config.registry.name})")
    if not os.environ.get("RAY_ADDRESS"):
        print("stop it with Ctrl-C")
        _wait_for_stop()
        from ray import serve  # noqa: PLC0415  (see start)

        serve.delete(config.registry.name)


def _wait_for_stop() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


def start(config: Config, status: Status) -> str:
    """Bring the endpoint up and return its base URL.

    Raises:
        InputError: nothing is registered under the alias, or the port is taken.
    """
    status("loading libraries")
    from ray import serve  # noqa: PLC0415  (seconds: here they are not silent)

    from instruct_ray.serving.app import AppArgs, build_app  # noqa: PLC0415

    args = AppArgs(registry=config.registry.model_copy(update={"uri": tracking_uri(config)}), serving=config.serving)
    status("looking up the version")
    Registry(existing_registry(config)).resolve(f"models:/{config.registry.name}@{config.registry.alias}")
    if not os.environ.get("RAY_ADDRESS"):
        _check_port(config.serving.host, config.serving.port)
    runner.connect()
    status("starting Ray Serve and loading the model")
    serve.start(http_options={"host": config.serving.host, "port": config.serving.port})
    serve.run(build_app(args), name=config.registry.name)
    return f"http://{config.serving.host}:{config.serving.port}/v1"


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"serving.port: {host}:{port} can't be used ({error.strerror})") from None


if __name__ == "__main__":
    runner.run(main, __doc__)
