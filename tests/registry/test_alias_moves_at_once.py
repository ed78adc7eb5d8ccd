"""Promotions at the same time, in one process and in two."""

import multiprocessing
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import pytest

from instruct_ray.errors import RunFailedError
from instruct_ray.registry.alias_moves import Champion, finish_decision, mark_candidate, move_alias
from instruct_ray.registry.model_registry import ModelRegistry
from tests.registry.fake_runs import NAME, InterruptedClient
from tests.registry.moves import ALIAS, PROMOTE, moves, promote, roll_back


@pytest.mark.parametrize("num_writes", range(4))
def test_of_two_promotions_at_the_same_time_one_counts_and_the_other_says_so(
    three: ModelRegistry, num_writes: int
) -> None:
    promote(three, "2")
    mark_candidate(three, three.get(NAME, "3"))
    client, other = three.client, ModelRegistry(three.uri)
    # Before the record, `previous`, the alias, and the removal of `candidate` of the promotion of 3.
    three.client = InterruptedClient(client, num_writes, lambda: promote(other, "1"))
    with pytest.raises(RunFailedError, match=r"tiny@champion is version 1: \S+@\S+ decided at the same time"):
        promote(three, "3")
    aliases = other.aliases(NAME)
    assert aliases["champion"] == other.history(NAME).champions(ALIAS)[-1] == "1"
    assert aliases.get("previous") == "2" or num_writes == 3
    # Nothing is left that a later command would complete.
    assert promote(other, "1").to_version == "1"
    promote(other, "3")
    assert roll_back(other, NAME, ALIAS, "x").to_version == "1"


def test_decision_that_gave_way_is_not_taken_for_an_interrupted_one(three: ModelRegistry) -> None:
    promote(three, "2")
    other = ModelRegistry(three.uri)
    three.client = InterruptedClient(three.client, 0, lambda: promote(other, "1"))
    with pytest.raises(RunFailedError):
        promote(three, "3")
    history = other.history(NAME)
    [withdrawn] = history.overtaken
    assert history.decisions[-1].id == withdrawn or history.decisions[-2].id == withdrawn
    assert finish_decision(other, ALIAS, other.get(NAME, "3")) is None
    assert roll_back(other, NAME, ALIAS, "x").to_version == "2"


def test_same_promotion_twice_at_the_same_time_is_no_conflict(three: ModelRegistry) -> None:
    other = ModelRegistry(three.uri)
    three.client = InterruptedClient(three.client, 0, lambda: promote(other, "2"))
    assert promote(three, "2").to_version == "2"
    assert other.aliases(NAME) == {"champion": "2", "previous": "1"}


def test_version_that_was_judged_against_an_earlier_champion_is_not_promoted(three: ModelRegistry) -> None:
    promote(three, "2")
    with pytest.raises(RunFailedError, match="tiny@champion moved from 1 to 2 while version 3 was judged"):
        move_alias(three, ALIAS, three.get(NAME, "3"), PROMOTE, Champion("1"))
    assert len(moves(three)) == 2


def promote_in_process(uri: str, number: str, barrier: Barrier, results: "SimpleQueue[tuple[str, str]]") -> None:
    registry = ModelRegistry(uri)
    version = registry.get(NAME, number)
    barrier.wait()
    try:
        move_alias(registry, ALIAS, version, PROMOTE)
        results.put((number, "moved"))
    except RunFailedError:
        results.put((number, "gave way"))
    except Exception as error:  # the test would wait for ever
        results.put((number, repr(error)))


def test_processes_that_promote_at_once_end_with_what_the_records_say(three: ModelRegistry) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=promote_in_process, args=(three.uri, number, barrier, results)) for number in "23"
    ]
    for process in processes:
        process.start()
    outcomes = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    assert {*outcomes.values()} <= {"moved", "gave way"}
    history, aliases = three.history(NAME), three.aliases(NAME)
    assert aliases["champion"] == history.champions(ALIAS)[-1]
    # Who was told that it moved the alias did so, and who moved it last was told.
    assert outcomes[aliases["champion"]] == "moved" or "moved" not in outcomes.values()
    if {*outcomes.values()} == {"moved"}:
        assert aliases["previous"] in "23"
    else:
        assert len(history.moves(ALIAS)) == 2
