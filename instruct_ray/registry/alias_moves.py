"""Moves the alias of a registered model. Each move is recorded first, so a kill between two writes is harmless.

The writes of a move: the record, `previous`, the alias, and the removal of `candidate`. Called again after a kill, a
function finds the record and makes the writes that are missing.

MLflow has no compare-and-swap. So a process reads the records again after it wrote its own, which it withdraws if there
is one that it did not know of, and again after it moved the alias, until the aliases are what the last record says. Of
processes that move an alias at the same time, the last to write sees all records; those that were overtaken say so.
"""

from dataclasses import dataclass

from instruct_ray.config.registry_names import CANDIDATE_ALIAS, PREVIOUS_ALIAS
from instruct_ray.errors import InputError, RunFailedError
from instruct_ray.registry.decisions import Reason, make_decision
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.decision_history import DecisionHistory
from instruct_ray.tracking.decision_records import Decision
from instruct_ray.tracking.registry_reader import ModelVersion


@dataclass(frozen=True)
class Champion:
    """What is under an alias."""

    number: str | None
    """None if there is nothing."""


def move_alias(
    registry: ModelRegistry, alias: str, version: ModelVersion, reason: Reason, judged_against: Champion | None = None
) -> Decision:
    """Record an accepted decision and point the alias to the version.

    Does nothing new if the alias is there by a decision already, and completes a move of the same kind that was
    interrupted.

    Args:
        registry: the registry.
        alias: the alias to move.
        version: the version that it moves to.
        reason: what the decision is based on.
        judged_against: what was under the alias when the version was judged; None if that does not matter.

    Raises:
        RunFailedError: another process moved the alias at the same time, or since the version was judged.
    """
    history, current = registry.history(version.name), registry.aliases(version.name).get(alias)
    if judged_against is not None and current not in (judged_against.number, version.number):
        raise RunFailedError(
            f"{version.name}@{alias} moved from {judged_against.number or 'nothing'} to {current or 'nothing'} while "
            f"version {version.number} was judged; run the command again"
        )
    last = history.last_move(alias)
    if last and last.to_version == version.number:
        is_pending = history.pending(alias, current) is not None and last.kind == reason.kind
        if current == version.number or is_pending:
            _settle(registry, version.name, alias)
            return last
    if current == version.number:
        # Moved without a record: what the records say was there before.
        champions = history.champions(alias)
        current = champions[-1] if champions else None
    return _record_and_apply(registry, alias, (current, version), reason, history)


def finish_decision(registry: ModelRegistry, alias: str, version: ModelVersion) -> Decision | None:
    """The last decision about a version, with the writes that are missing if its process was killed; None if undecided.

    A decision that others followed stays history: the alias does not return to it.
    """
    history = registry.history(version.name)
    decision = history.last_on(version.number)
    if decision and decision == history.last_move(alias):
        current = registry.aliases(version.name).get(alias)
        if current in (decision.from_version, decision.to_version):
            _settle(registry, version.name, alias)
    return decision


def refuse_version(registry: ModelRegistry, alias: str, version: ModelVersion, reason: Reason) -> Decision:
    """Record that a version was refused; the alias stays. Repeated for the same reasons, a refusal is one record."""
    history = registry.history(version.name)
    last = history.last_on(version.number)
    if last and (last.kind, last.alias, last.is_accepted, last.rules) == (reason.kind, alias, False, reason.rules):
        return last
    current = registry.aliases(version.name).get(alias)
    decision = make_decision(history, alias, current, version, reason)
    registry.add_decision(version.name, decision)
    return decision


def roll_back(registry: ModelRegistry, name: str, alias: str, why: str) -> Decision:
    """Point the alias to the version that it pointed to before, as the records say.

    A rollback that was interrupted before it was reported is completed instead: run again, a command does not go back
    twice. An alias that somebody moved without a record returns to the version of the last record.

    Raises:
        InputError: nothing is recorded for the alias, or there was no version before.
        RunFailedError: another process moved the alias at the same time.
    """
    history, current = registry.history(name), registry.aliases(name).get(alias)
    pending, last = history.pending(alias, current), history.last_move(alias)
    if last and last.kind == "rollback" and (pending or (current == last.to_version and last.is_reported is False)):
        _settle(registry, name, alias)
        return last
    champions = history.champions(alias)
    if not champions:
        raise InputError(
            f"no decision is recorded for alias {alias} of {name}; name the version: `instruct-ray promote {name} N`"
        )
    if pending is None and current != champions[-1]:
        source, target = current, champions[-1]
    elif len(champions) > 1:
        source, target = champions[-1], champions[-2]
    else:
        raise InputError(f"{name}@{alias}: version {champions[-1]} is the first one; there is none to roll back to")
    reason = Reason(kind="rollback", why=why)
    return _record_and_apply(registry, alias, (source, registry.get(name, target)), reason, history)


def mark_reported(registry: ModelRegistry, decision: Decision) -> None:
    """Record that the user knows of a rollback, so that the next one goes back further."""
    if decision.is_reported is False:
        registry.add_decision(decision.model, decision.model_copy(update={"is_reported": True}))


def mark_candidate(registry: ModelRegistry, version: ModelVersion) -> None:
    """Point the alias `candidate` to a version that was not decided on yet."""
    if registry.aliases(version.name).get(CANDIDATE_ALIAS) != version.number:
        registry.set_alias(version.name, CANDIDATE_ALIAS, version.number)


def _record_and_apply(
    registry: ModelRegistry,
    alias: str,
    versions: tuple[str | None, ModelVersion],
    reason: Reason,
    history: DecisionHistory,
) -> Decision:
    source, target = versions
    decision = make_decision(history, alias, source, target, reason)
    registry.add_decision(target.name, decision)
    current = registry.aliases(target.name).get(alias)
    overtaker = registry.history(target.name).overtaker(decision, current)
    if overtaker is not None:
        registry.add_decision(target.name, decision.model_copy(update={"overtaken_by": overtaker.id}))
    last = _settle(registry, target.name, alias).last_move(alias)
    if last is None or last.id == decision.id or last.to_version == target.number:
        return last or decision
    raise RunFailedError(
        f"{target.name}@{alias} is version {last.to_version}: {last.who} decided at the same time ({last.kind}: "
        f"{last.why}); see `instruct-ray versions {target.name}`, and run the command again if it is still right"
    )


def _settle(registry: ModelRegistry, name: str, alias: str) -> DecisionHistory:
    """Make the aliases what the records say, again if another process recorded a decision meanwhile."""
    history = registry.history(name)
    while decision := history.last_move(alias):
        _apply(registry, name, history, decision)
        applied, history = decision.id, registry.history(name)
        last = history.last_move(alias)
        if last and last.id == applied:
            break
    return history


def _apply(registry: ModelRegistry, name: str, history: DecisionHistory, decision: Decision) -> None:
    """Make the aliases what the records say. The alias itself moves after `previous`: only it shows what is pending."""
    aliases, champions = registry.aliases(name), history.champions(decision.alias)
    previous = champions[-2] if len(champions) > 1 else None
    if previous is None:
        if PREVIOUS_ALIAS in aliases:
            registry.delete_alias(name, PREVIOUS_ALIAS)
    elif aliases.get(PREVIOUS_ALIAS) != previous:
        registry.set_alias(name, PREVIOUS_ALIAS, previous)
    if aliases.get(decision.alias) != decision.to_version:
        registry.set_alias(name, decision.alias, decision.to_version)
    if aliases.get(CANDIDATE_ALIAS) == decision.to_version:
        registry.delete_alias(name, CANDIDATE_ALIAS)
