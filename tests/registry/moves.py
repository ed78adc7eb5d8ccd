"""Promotions and rollbacks as tests write them."""

from instruct_ray.registry import alias_moves
from instruct_ray.registry.alias_moves import mark_reported, move_alias
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.decision_records import Decision
from tests.registry.fake_runs import NAME

ALIAS = "champion"
PROMOTE = Reason("promote", "better")


def promote(registry: ModelRegistry, number: str, reason: Reason = PROMOTE) -> Decision:
    return move_alias(registry, ALIAS, registry.get(NAME, number), reason)


def roll_back(registry: ModelRegistry, name: str, alias: str, why: str) -> Decision:
    """As the command does it."""
    decision = alias_moves.roll_back(registry, name, alias, why)
    mark_reported(registry, decision)
    return decision


def moves(registry: ModelRegistry) -> list[tuple[str, str | None, str]]:
    return [(one.kind, one.from_version, one.to_version) for one in registry.history(NAME).decisions]
