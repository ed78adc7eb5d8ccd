"""The operator's desk: what is looked at or decided by hand."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from instruct_ray.config import Config, load
from instruct_ray.errors import exit_codes
from instruct_ray.registry.versions import Registry
from instruct_ray.tracking import existing_registry


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `instruct-ray`."""
    parser = argparse.ArgumentParser(prog="instruct-ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("schema", help="print the JSON schema of the config file, for editors")
    for name, text in (("promote", "point the alias to a version"), ("rollback", "point it to the one before")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, required=True)
        if name == "promote":
            command.add_argument("version", help="number of the version")
    chosen = parser.parse_args(arguments)
    with exit_codes():
        if chosen.command == "schema":
            print(json.dumps(Config.model_json_schema(), indent=2))
            return
        config = load(chosen.config)
        registry, name, alias = Registry(existing_registry(config)), config.registry.name, config.registry.alias
        if chosen.command == "promote":
            registry.promote(name, alias, chosen.version)
        else:
            registry.rollback(name, alias)
        print(f"models:/{name}@{alias} is version {registry.aliases(name)[alias]}")
