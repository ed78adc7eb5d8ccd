"""Which version an endpoint serves: that of its alias, as far as a recorded decision has put it there.

MLflow lets anyone who may edit a model move its aliases, and keeps no history. So an endpoint follows an alias only
onto a version whose record says that the alias was moved to it, with these files.
"""

from dataclasses import dataclass

from instruct_ray.config.registry_names import PREVIOUS_ALIAS
from instruct_ray.errors import InputError
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.decision_history import DecisionHistory
from instruct_ray.tracking.decision_records import Decision
from instruct_ray.tracking.registry_reader import ModelVersion


@dataclass(frozen=True)
class Target:
    """The version to serve."""

    version: ModelVersion
    note: str | None
    """Why it is not the one under the alias, if it is not."""
    decision_id: str
    """Of the decision that put it there."""
    is_rollback: bool
    """Whether that decision was a rollback."""


def find_target(registry: ModelRegistry, name: str, alias: str) -> Target:
    """Find the version that recorded decisions put under an alias.

    Raises:
        InputError: there is no such model or alias, no decision that can be followed, or the files of the version are
            not those that were decided on.
        UnavailableError: the registry does not respond.
    """
    aliases, history = registry.aliases(name), registry.history(name)
    last, current = history.last_move(alias), aliases.get(alias)
    if last is None:
        if current is None:
            raise InputError(f"registered model {name} has no alias {alias}; it has {sorted(aliases)}")
        raise InputError(
            f"no decision is recorded that put version {current} under {name}@{alias}; "
            f"use `instruct-ray promote {name} {current}`"
        )
    is_pending = history.pending(alias, current) is not None and not last.is_reported
    if current == last.to_version or is_pending:
        # While a decision is being carried out the alias is still where it was; one that is reported was carried out.
        number, note = current or last.to_version, None
    else:
        number = last.to_version
        note = (
            f"{name}@{alias} is version {current or 'none'}, but no decision put it there, so version {number} is "
            f"served; use `instruct-ray promote {name} {current}`"
        )
    version = registry.get(name, number)
    _check_files(version, last)
    return Target(version, note, last.id, last.kind == "rollback")


def find_decided_version(registry: ModelRegistry, name: str, alias: str, number: str) -> ModelVersion:
    """Find a version that a recorded decision has put under an alias, now or earlier.

    Raises:
        InputError: there is none, or its files are not those that were decided on.
        UnavailableError: the registry does not respond.
    """
    version = registry.get(name, number)
    decision = _last_move_to(registry.history(name), alias, number)
    if decision is None:
        raise InputError(f"no decision has put version {number} under {name}@{alias}")
    _check_files(version, decision)
    return version


def find_further_version(registry: ModelRegistry, name: str, followed_alias: str, model: str) -> ModelVersion:
    """Find the version of an entry of `serving.also_serve`, an alias or a number.

    `previous` is the version before the last one that decisions put under the followed alias. Of other aliases and of
    numbers no decision is asked for, so only the files, the contract and the recorded answers of the version are
    checked, when it is loaded.

    Raises:
        InputError: there is no such version, or its files are not those that were decided on.
        UnavailableError: the registry does not respond.
    """
    if model.isdecimal():
        return registry.get(name, model)
    if model != PREVIOUS_ALIAS:
        return registry.resolve(f"models:/{name}@{model}")
    history = registry.history(name)
    champions = history.champions(followed_alias)
    if len(champions) < 2:
        raise InputError(f"no version of {name}@{followed_alias} to go back to is recorded")
    version = registry.get(name, champions[-2])
    if (decision := _last_move_to(history, followed_alias, version.number)) is not None:
        _check_files(version, decision)
    return version


def _last_move_to(history: DecisionHistory, alias: str, number: str) -> Decision | None:
    """The decision that put a version under an alias last; None if it was put there without a record."""
    return next((move for move in reversed(history.moves(alias)) if move.to_version == number), None)


def _check_files(version: ModelVersion, decision: Decision) -> None:
    if decision.to_version == version.number and decision.manifest_digest != version.manifest_digest:
        raise InputError(
            f"{version.name}/{version.number}: its manifest is {version.manifest_digest}, but the decision of "
            f"{decision.when} was about {decision.manifest_digest}; the version was changed since"
        )
