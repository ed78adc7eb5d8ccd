"""`instruct-ray register`, `promote` and `rollback`: the register stage, from evidence to version, and its alias."""

from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.tracking.mlflow_client import require_registry_uri, tracking_uri


def run_register(config: Config) -> None:
    """Register the tuned model of a run."""
    with StatusLine("register") as status:
        status("loading libraries")
        from instruct_ray.registry.register import register  # noqa: PLC0415  (takes seconds)

        version, already_done = register(config, status)
    verb = "already registered" if already_done else "registered"
    print(f"{verb}: models:/{version.name}/{version.number}, alias {config.registry.alias}")
    print(f"browse it: {browse_command(config)}")


def run_promote(config: Config, version: str) -> None:
    """Point the alias to a version."""
    from instruct_ray.registry.model_registry import ModelRegistry  # noqa: PLC0415  (takes seconds)

    registry = ModelRegistry(require_registry_uri(config))
    registry.promote(config.registry.name, config.registry.alias, version)
    print(f"models:/{config.registry.name}@{config.registry.alias} is version {version}")


def run_rollback(config: Config) -> None:
    """Point the alias to its previous version."""
    from instruct_ray.registry.model_registry import ModelRegistry  # noqa: PLC0415  (takes seconds)

    registry = ModelRegistry(require_registry_uri(config))
    version = registry.rollback(config.registry.name, config.registry.alias)
    print(f"models:/{config.registry.name}@{config.registry.alias} is version {version}")


def browse_command(config: Config) -> str:
    """How to open MLflow's web interface, which shows the versions."""
    uri = tracking_uri(config)
    return f"open {uri}" if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {uri} --port 5000"
