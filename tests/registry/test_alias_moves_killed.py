"""Promotions and rollbacks that are killed after a write, and what a rerun makes of them."""

import pytest

from instruct_ray.errors import InputError
from instruct_ray.registry.alias_moves import finish_decision, mark_candidate
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.model_registry import ModelRegistry
from tests.registry.fake_runs import NAME, Killed, KillingClient, is_killed
from tests.registry.moves import ALIAS, moves, promote, roll_back


def test_promote_killed_after_any_write_is_completed_by_a_rerun(three: ModelRegistry) -> None:
    mark_candidate(three, three.get(NAME, "2"))
    # The record, `previous`, the alias, and the removal of `candidate`: a rerun makes only those that are missing.
    client, kills = three.client, 0
    while True:
        three.client = KillingClient(client, 1)
        if not is_killed(lambda: promote(three, "2")):
            break
        kills += 1
    three.client = client
    assert kills == 3
    assert moves(three) == [("promote", None, "1"), ("promote", "1", "2")]
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert roll_back(three, NAME, ALIAS, "x").to_version == "1"


@pytest.mark.parametrize("num_writes", [1, 2])
def test_rollback_of_a_promotion_that_was_killed_keeps_the_champion(three: ModelRegistry, num_writes: int) -> None:
    client = three.client
    three.client = KillingClient(client, num_writes)
    with pytest.raises(Killed):
        promote(three, "2")
    three.client = client
    assert three.aliases(NAME)["champion"] == "1"
    assert roll_back(three, NAME, ALIAS, "the promotion was a mistake").to_version == "1"
    assert three.aliases(NAME) == {"champion": "1"}
    with pytest.raises(InputError, match="version 1 is the first one"):
        roll_back(three, NAME, ALIAS, "x")


@pytest.mark.parametrize("num_writes", [1, 2])
def test_rollback_killed_after_any_write_is_completed_once(three: ModelRegistry, num_writes: int) -> None:
    promote(three, "2")
    promote(three, "3")
    client = three.client
    three.client = KillingClient(client, num_writes)
    with pytest.raises(Killed):
        roll_back(three, NAME, ALIAS, "bad answers")
    three.client = client
    assert three.aliases(NAME)["champion"] == "3"
    # The rerun completes it, and does not go back a second time.
    assert roll_back(three, NAME, ALIAS, "bad answers").to_version == "2"
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert moves(three)[-1] == ("rollback", "3", "2") and len(moves(three)) == 4


def test_promotion_after_a_killed_one_starts_from_the_real_champion(three: ModelRegistry) -> None:
    client = three.client
    three.client = KillingClient(client, 1)
    with pytest.raises(Killed):
        promote(three, "2")
    three.client = client
    promote(three, "3")
    assert moves(three)[-1] == ("promote", "1", "3")
    assert three.aliases(NAME) == {"champion": "3", "previous": "1"}
    assert roll_back(three, NAME, ALIAS, "x").to_version == "1"


def test_force_is_not_hidden_behind_a_killed_decision_of_the_gate(three: ModelRegistry) -> None:
    client = three.client
    three.client = KillingClient(client, 1)
    with pytest.raises(Killed):
        promote(three, "2", Reason("gate", "passed"))
    three.client = client
    promote(three, "2", Reason("force", "needed today"))
    assert [kind for kind, _, _ in moves(three)] == ["promote", "gate", "force"]
    assert roll_back(three, NAME, ALIAS, "x").to_version == "1"


def test_finished_decision_does_not_return_after_a_later_one(three: ModelRegistry) -> None:
    assert finish_decision(three, ALIAS, three.get(NAME, "2")) is None
    promote(three, "2")
    roll_back(three, NAME, ALIAS, "bad answers")
    assert finish_decision(three, ALIAS, three.get(NAME, "2")) is not None
    assert three.aliases(NAME)["champion"] == "1"


@pytest.mark.parametrize("num_writes", range(4))
def test_rollback_killed_before_it_was_reported_does_not_go_back_twice(three: ModelRegistry, num_writes: int) -> None:
    promote(three, "2")
    promote(three, "3")
    client = three.client
    three.client = KillingClient(client, num_writes)
    # After the last write of the move, 3, the process is killed while it reports.
    with pytest.raises(Killed):
        roll_back(three, NAME, ALIAS, "bad answers")
    three.client = client
    assert roll_back(three, NAME, ALIAS, "bad answers").to_version == "2"
    assert three.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert moves(three)[3:] == [("rollback", "3", "2")]
    assert roll_back(three, NAME, ALIAS, "still bad").to_version == "1"
