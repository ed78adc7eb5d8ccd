"""The operator's desk: what is looked at or decided by hand."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from instruct_ray.config import Config
from instruct_ray.config_file import load
from instruct_ray.errors import EXIT_FAILED, exit_codes

DEFAULT_ROWS = 5
PLAIN_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `instruct-ray`."""
    chosen = _parser().parse_args(arguments)
    with exit_codes():
        if chosen.command == "schema":
            print(json.dumps(Config.model_json_schema(), indent=2))
        elif chosen.command == "preview":
            _preview(load(chosen.config, chosen.overrides), chosen.num_rows)
        elif chosen.command == "doctor":
            _doctor(load(chosen.config, chosen.overrides), is_timed=chosen.timed)
        elif chosen.command == "drill":
            _drill(load(chosen.config, chosen.overrides))
        else:
            _move_alias(load(chosen.config), chosen.version if chosen.command == "promote" else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instruct-ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("schema", help="print the JSON schema of the config file, for editors")
    preview = commands.add_parser("preview", help="show rows as the model will see them, and how they are packed")
    preview.add_argument("-n", dest="num_rows", type=int, default=DEFAULT_ROWS, metavar="ROWS", help="rows to show")
    doctor = commands.add_parser("doctor", help="check before training: placement, memory, storage, disk, packs")
    doctor.add_argument("--timed", action="store_true", help="also train a few steps of a copy, to tell the time")
    drill = commands.add_parser("drill", help="kill a worker of a short copy of the run; exit code 1 if it shows")
    for command in (preview, doctor, drill):
        command.add_argument("--config", type=Path, required=True, help="YAML file, see jobs/configs")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    for name, text in (("promote", "point the alias to a version"), ("rollback", "point it to the one before")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, required=True)
        if name == "promote":
            command.add_argument("version", help="number of the version")
    return parser


def _preview(config: Config, num_rows: int) -> None:
    """Show the first rows of the sources."""
    # All heavy, and only for this.
    from rich.console import Console  # noqa: PLC0415

    from instruct_ray.console import Status  # noqa: PLC0415

    with Status("preview") as status:
        status("loading libraries")
        from instruct_ray.data.inspection.drawing import draw  # noqa: PLC0415
        from instruct_ray.data.inspection.preview import preview  # noqa: PLC0415

        status(f"reading {len(config.data.sources)} source(s)")
        found = preview(config, num_rows)
    console = Console(highlight=False)
    # Lines of a file have no width to be broken at, only trees need one.
    draw(found, console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=PLAIN_WIDTH))


def _doctor(config: Config, *, is_timed: bool) -> None:
    """Show what training would meet; exit code 2 if it can't work."""
    # All heavy, and only for this.
    from rich.console import Console  # noqa: PLC0415

    from instruct_ray.console import Status  # noqa: PLC0415
    from jobs import runner  # noqa: PLC0415

    runner.quiet()
    try:
        with Status("doctor") as status:
            status("loading libraries")
            from instruct_ray.training.preflight.checks import refuse  # noqa: PLC0415
            from instruct_ray.training.preflight.doctor import draw, examine  # noqa: PLC0415

            start_ray = partial(runner.connect_for_training, config.train)
            findings = examine(config, status, start_ray, is_timed=is_timed)
    finally:
        runner.disconnect()
    console = Console(highlight=False)
    draw(findings, console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH))
    refuse(findings)


def _drill(config: Config) -> None:
    """Kill a worker of a short copy of the run, and say what became of it."""
    # All heavy, and only for this.
    from instruct_ray.console import Status  # noqa: PLC0415
    from jobs import runner  # noqa: PLC0415

    runner.quiet()
    try:
        with Status("drill") as status:
            status("loading libraries")
            from instruct_ray.training.faults.drill import drill  # noqa: PLC0415

            found = drill(config, status, partial(runner.connect_for_training, config.train))
    finally:
        runner.disconnect()
    rows = "every step trained on its planned rows" if found.has_same_rows else "ROWS DIFFER FROM THE PLAN"
    is_equal = found.largest_difference == 0
    weights = "equal to the bit" if is_equal else f"WEIGHTS DIFFER, by {found.largest_difference:.1e} at most"
    print(f"{found.num_steps} steps, {found.num_rows} rows: {rows}; {weights}")
    print(f"next step {found.seconds:.1f} s after the kill, {found.num_wasted} step(s) done again")
    if not found.passed:
        sys.exit(EXIT_FAILED)


def _move_alias(config: Config, version: str | None) -> None:
    """Point the alias to a version, or to the one before."""
    # Seconds of libraries: the other commands answer at once.
    from instruct_ray.registry.versions import Registry  # noqa: PLC0415
    from instruct_ray.tracking.client import existing_registry  # noqa: PLC0415

    registry, name, alias = Registry(existing_registry(config)), config.registry.name, config.registry.alias
    if version is None:
        registry.rollback(name, alias)
    else:
        registry.promote(name, alias, version)
    print(f"models:/{name}@{alias} is version {registry.aliases(name)[alias]}")
