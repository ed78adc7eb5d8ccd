"""`instruct-ray register`: the register stage, from evidence to version."""

import shlex
from functools import partial
from typing import TYPE_CHECKING

from instruct_ray.cli import ray_session
from instruct_ray.cli.registry import describe_decision, exit_if_refused, print_rules
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.tracking.mlflow_client import tracking_uri

if TYPE_CHECKING:
    from instruct_ray.registry.register import Registration


def run_register(config: Config) -> None:
    """Register the tuned model of a run; exit with 3 if the gate refuses it."""
    with StatusLine("register") as status:
        status("loading libraries")
        from instruct_ray.registry.record_answers import record_answers  # noqa: PLC0415  (takes seconds)
        from instruct_ray.registry.register import register  # noqa: PLC0415

        # A Ray task where the models need a GPU or another machine's memory; here they are loaded without it sooner.
        in_task = config.serving.num_gpus > 0 or ray_session.names_cluster()
        record = partial(record_answers, start_ray=ray_session.init_ray if in_task else None)
        registration = register(config, status, record)
    report_registration(config, registration)


def report_registration(config: Config, registration: "Registration") -> None:
    """Print the version and the gate's decision; exit with 3 if it refused the version."""
    version, decision = registration.version, registration.decision
    print(f"{'already registered' if registration.already_done else 'registered'}: {version.reference}")
    print(f"browse it: {browse_command(config)}")
    if decision is not None:
        print_rules(decision)
        print(f"decision: {describe_decision(decision)}")
        exit_if_refused(decision)


def browse_command(config: Config) -> str:
    """How to open MLflow's web interface, which shows the versions."""
    uri = tracking_uri(config)
    return (
        f"open {uri}"
        if uri.startswith("http")
        else f".venv/bin/mlflow ui --backend-store-uri {shlex.quote(uri)} --port 5000"
    )
