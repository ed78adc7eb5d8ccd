"""Decisions and aliases on a real MLflow store: promotions, rollbacks and refusals."""

import pytest

from instruct_ray.errors import InputError
from instruct_ray.registry.alias_moves import mark_candidate, refuse_version
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.decision_records import RuleResult
from tests.registry.fake_runs import NAME, add_version
from tests.registry.moves import ALIAS, moves, promote, roll_back


def test_decision_records_who_when_why_and_on_what(three: ModelRegistry) -> None:
    decision = promote(three, "2", Reason("gate", "passed 6 rules", evidence_digest="e" * 64, test_digest="t" * 64))
    [_, stored] = three.history(NAME).decisions
    assert stored == decision
    assert (stored.kind, stored.from_version, stored.to_version, stored.why) == ("gate", "1", "2", "passed 6 rules")
    assert (stored.manifest_digest, stored.evidence_digest) == ("m" * 64, "e" * 64)
    assert "@" in stored.who and stored.when.endswith("+00:00")
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}


def test_rollback_goes_further_back_each_time(three: ModelRegistry) -> None:
    promote(three, "2")
    promote(three, "3")
    assert roll_back(three, NAME, ALIAS, "bad answers").to_version == "2"
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert roll_back(three, NAME, ALIAS, "bad answers").to_version == "1"
    assert three.aliases(NAME) == {"champion": "1"}
    with pytest.raises(InputError, match="version 1 is the first one"):
        roll_back(three, NAME, ALIAS, "bad answers")
    promote(three, "3")
    assert roll_back(three, NAME, ALIAS, "again").to_version == "1"


def test_rollback_returns_to_a_version_that_was_champion_twice(three: ModelRegistry) -> None:
    for number in ("2", "1", "3"):
        promote(three, number)
    assert [roll_back(three, NAME, ALIAS, "x").to_version for _ in range(3)] == ["1", "2", "1"]


def test_repeated_promotion_is_one_decision(three: ModelRegistry) -> None:
    assert promote(three, "2") == promote(three, "2")
    assert len(moves(three)) == 2


def test_alias_that_was_moved_without_a_record_returns_to_the_recorded_version(three: ModelRegistry) -> None:
    promote(three, "2")
    three.client.set_registered_model_alias(NAME, ALIAS, "3")
    assert roll_back(three, NAME, ALIAS, "not by hand").to_version == "2"
    assert moves(three)[-1] == ("rollback", "3", "2")
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}


def test_version_that_was_moved_there_by_hand_counts_once_a_decision_saw_it(three: ModelRegistry) -> None:
    three.client.set_registered_model_alias(NAME, ALIAS, "2")
    promote(three, "3")
    assert moves(three)[-1] == ("promote", "2", "3")
    assert roll_back(three, NAME, ALIAS, "x").to_version == "2"


def test_version_under_the_alias_can_be_recorded_afterwards(three: ModelRegistry) -> None:
    three.client.set_registered_model_alias(NAME, ALIAS, "2")
    promote(three, "2")
    assert moves(three)[-1] == ("promote", "1", "2")
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}


def test_registry_without_records_names_the_way_out(registry: ModelRegistry) -> None:
    add_version(registry)
    registry.client.set_registered_model_alias(NAME, ALIAS, "1")
    registry.client.set_registered_model_alias(NAME, "previous", "1")
    with pytest.raises(InputError, match=r"no decision is recorded for alias champion of tiny; name the version"):
        roll_back(registry, NAME, ALIAS, "x")


def test_deleted_version_is_not_rolled_back_to(three: ModelRegistry) -> None:
    promote(three, "2")
    three.client.delete_model_version(NAME, "1")
    with pytest.raises(InputError, match="tiny has no version 1"):
        roll_back(three, NAME, ALIAS, "x")
    assert three.aliases(NAME)["champion"] == "2"


def test_refusal_is_recorded_once_and_moves_nothing(three: ModelRegistry) -> None:
    rule = RuleResult(
        name="accuracy", status="failed", numbers={"accuracy": 0.5}, sentence="too low", is_accepted=False
    )
    reason = Reason("gate", "refused by 1 of 1 rules", is_accepted=False, rules=(rule,))
    mark_candidate(three, three.get(NAME, "2"))
    assert refuse_version(three, ALIAS, three.get(NAME, "2"), reason) == refuse_version(
        three, ALIAS, three.get(NAME, "2"), reason
    )
    assert three.aliases(NAME) == {"champion": "1", "candidate": "2"}
    [_, refusal] = three.history(NAME).decisions
    assert (refusal.is_accepted, refusal.rules) == (False, (rule,))
    with pytest.raises(InputError, match="version 1 is the first one"):
        roll_back(three, NAME, ALIAS, "x")


def test_copied_version_takes_no_decision_along(three: ModelRegistry) -> None:
    number = add_version(three, **three.get(NAME, "1").tags)
    assert number == "4" and len(three.history(NAME).decisions) == 1
    three.client.create_registered_model("other")
    tags = three.get(NAME, "1").tags
    assert three.client.create_model_version("other", source="file:///none", tags=tags).version in (1, "1")
    assert three.history("other").decisions == ()


def test_unreadable_record_is_named(three: ModelRegistry) -> None:
    three.client.set_model_version_tag(NAME, "2", "instruct_ray.decision.000009.x", "{")
    with pytest.raises(InputError, match=r"tag instruct_ray\.decision\.000009\.x can't be read"):
        three.history(NAME)
