"""`instruct-ray versions`, `promote`, `rollback` and `trace`: read the registry and move its alias."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.config.gate import GateConfig
from instruct_ray.config.load import load_config
from instruct_ray.config.schema import RegistryConfig
from instruct_ray.errors import EXIT_REFUSED, InputError
from instruct_ray.tracking.mlflow_client import missing_database, require_registry_uri

if TYPE_CHECKING:
    from instruct_ray.registry.model_registry import ModelRegistry
    from instruct_ray.tracking.decision_records import Decision

# Forbidden in names; they would end the name in a query or reference.
SEPARATORS = "@/:'\"`"


@dataclass(frozen=True)
class RegistrySettings:
    """Where the registry is, which alias is moved in it, and by which rules."""

    uri: str
    alias: str
    gate: GateConfig | None


@dataclass(frozen=True)
class RegistryPlace:
    """Which registry a command works on: that of a config file, or one given by its URI."""

    config_file: Path | None
    uri: str | None

    def read(self) -> RegistrySettings:
        """Read the settings: those of the config file, or the URI with the defaults of alias and rules.

        Raises:
            InputError: not exactly one of both is given, or the registry does not exist.
        """
        if self.config_file is not None and self.uri is None:
            config = load_config(self.config_file)
            return RegistrySettings(require_registry_uri(config), config.registry.alias, config.registry.gate)
        if self.config_file is not None or self.uri is None:
            raise InputError("give the registry: --config FILE, or --registry URI")
        if missing_database(self.uri) is not None:
            raise InputError(f"--registry: no database {self.uri}")
        defaults = RegistryConfig(name="any")
        return RegistrySettings(self.uri, defaults.alias, defaults.gate)


def check_name(name: str) -> None:
    """Check the name of a registered model.

    Raises:
        InputError: it is a reference to a version, or has a quote, which would end it in a query.
    """
    if any(character in name for character in SEPARATORS):
        raise InputError(f"{name!r} is not the name of a registered model; write NAME, without alias or number")


def run_versions(place: RegistryPlace, name: str) -> None:
    """Print the versions of a registered model and the decisions about them, newest first."""
    check_name(name)
    settings = place.read()
    registry = open_registry(settings.uri)
    aliases, versions, history = registry.aliases(name), registry.versions(name), registry.history(name)
    print(f"{name}: {len(versions)} version(s)")
    print(f"  {'version':<8} {'accuracy':<9} {'aliases':<22} run")
    for version in reversed(versions):
        names = ", ".join(sorted(alias for alias, number in aliases.items() if number == version.number))
        accuracy = version.tags.get("accuracy", "–")
        print(f"  {version.number:<8} {accuracy:<9} {names or '–':<22} {version.tags.get('run', '–')}")
    print("decisions, newest first" if history.decisions else "no decisions are recorded")
    for decision in reversed(history.decisions):
        note = " [does not count: overtaken by another at the same time]" if decision.id in history.overtaken else ""
        print(f"  {describe_decision(decision)}{note}")
    last, current = history.last_move(settings.alias), aliases.get(settings.alias)
    if last and last.to_version != current:
        print(
            f"note: {settings.alias} points to {current or 'no version'}, the last decision says {last.to_version}: it "
            "was moved without a record, or a command was killed; run that command again"
        )


def run_promote(place: RegistryPlace, name: str, number: str, reason: str | None, *, is_forced: bool) -> None:
    """Point the alias to a version if the gate lets it pass, or by force; exit with 3 if the gate refuses it."""
    check_name(name)
    settings = place.read()
    from instruct_ray.registry.decisions import check_reason  # noqa: PLC0415  (takes seconds, like the imports below)
    from instruct_ray.registry.promote import decide, force  # noqa: PLC0415

    if is_forced != (reason is not None):
        raise InputError(
            "--force needs --reason TEXT" if is_forced else "--reason is for --force: the gate has its own"
        )
    why = None if reason is None else check_reason(reason)
    registry = open_registry(settings.uri)
    version = registry.get(name, number)
    if why is None:
        decision = decide(registry, settings.alias, version, settings.gate, "promote")
    else:
        decision = force(registry, settings.alias, version, why)
    print_decision(name, decision)


def run_rollback(place: RegistryPlace, name: str, reason: str) -> None:
    """Point the alias to the version that it pointed to before."""
    check_name(name)
    settings = place.read()
    from instruct_ray.registry.alias_moves import mark_reported, roll_back  # noqa: PLC0415  (takes seconds)
    from instruct_ray.registry.decisions import check_reason  # noqa: PLC0415

    why = check_reason(reason)
    registry = open_registry(settings.uri)
    known = {decision.id for decision in registry.history(name).decisions}
    decision = roll_back(registry, name, settings.alias, why)
    print_decision(name, decision)
    if decision.id in known:
        print(
            f"note: this is the rollback of {decision.when[:19]}Z, whose command was interrupted; run it again to go "
            "back further"
        )
    sys.stdout.flush()
    mark_reported(registry, decision)


def print_decision(name: str, decision: "Decision") -> None:
    """Print a decision and the rules behind it; exit with 3 if it refused the version."""
    print_rules(decision)
    exit_if_refused(decision)
    print(f"models:/{name}@{decision.alias} is version {decision.to_version}")


def print_rules(decision: "Decision") -> None:
    """Print what each rule of the gate found, with its numbers."""
    for rule in decision.rules:
        status = rule.status.replace("_", " ")
        print(f"  {rule.name:<13} {status:<17} {rule.sentence}")


def exit_if_refused(decision: "Decision") -> None:
    """Exit with 3 and one line if a decision refused its version."""
    if decision.is_accepted:
        return
    stays = "unset" if decision.from_version is None else f"version {decision.from_version}"
    print(f"to override: instruct-ray promote {decision.model} {decision.to_version} --force --reason TEXT")
    print(
        f"error: models:/{decision.model}/{decision.to_version} is refused by the gate; {decision.alias} stays {stays}",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(EXIT_REFUSED)


def describe_decision(decision: "Decision") -> str:
    """Who decided what, when, why and on which evidence, in one line."""
    kind = decision.kind if decision.is_accepted else f"{decision.kind} refused"
    evidence = "" if decision.evidence_digest is None else f" (evidence {decision.evidence_digest[:12]})"
    return (
        f"{decision.when[:19]}Z {decision.who} {kind}: {decision.alias} {decision.from_version or '–'} -> "
        f"{decision.to_version}: {decision.why}{evidence}"
    )


def open_registry(uri: str) -> "ModelRegistry":
    """Open a registry for reading and writing."""
    from instruct_ray.registry.model_registry import ModelRegistry  # noqa: PLC0415  (takes seconds)

    return ModelRegistry(uri)
