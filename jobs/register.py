"""evidence -> version.    python -m jobs.register --config jobs/configs/incidents.yaml"""

from instruct_ray.config import Config
from instruct_ray.console import Status
from instruct_ray.tracking.client import tracking_uri
from jobs import runner


def main(config: Config) -> None:
    """Register the tuned model of a run."""
    with Status("register") as status:
        status("loading libraries")
        from instruct_ray.registry.register import register  # noqa: PLC0415  (seconds: here it is not silent)

        version, already_done = register(config, status)
    verb = "already registered" if already_done else "registered"
    print(f"{verb}: models:/{version.name}/{version.number}, alias {config.registry.alias}")
    print(f"browse it: {browse_command(config)}")


def browse_command(config: Config) -> str:
    """How to see the version in MLflow's web interface."""
    uri = tracking_uri(config)
    return f"open {uri}" if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {uri} --port 5000"


if __name__ == "__main__":
    runner.run(main, __doc__)
