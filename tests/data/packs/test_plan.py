"""The batch plan: every pack once per epoch, independent of the number of ranks, from any step."""

import bisect
import itertools
import pickle
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.data.packs.plan import BatchPlan, make_plan

row_groups = st.lists(st.integers(1, 12), min_size=1, max_size=6).map(tuple)
plans = st.builds(BatchPlan, row_groups, st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))


@given(plans, st.sampled_from([1, 2, 3, 8]))
def test_every_pack_once_per_epoch_for_any_number_of_ranks(plan: BatchPlan, world_size: int) -> None:
    for epoch in range(plan.num_epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        indices = [
            index
            for step in steps
            for rank in range(world_size)
            for index in plan.rank_packs(step, rank, world_size)
            if index is not None
        ]
        assert sorted(indices) == list(range(plan.num_packs))


@given(plans, st.sampled_from([2, 3, 8]))
def test_a_step_has_the_same_packs_for_any_number_of_ranks(plan: BatchPlan, world_size: int) -> None:
    for step in range(plan.num_steps):
        by_rank = [plan.rank_packs(step, rank, world_size) for rank in range(world_size)]
        indices = [index for packs in by_rank for index in packs if index is not None]
        assert sorted(indices) == sorted(plan.step_packs(step))
        assert {len(packs) for packs in by_rank} == {plan.packs_per_rank(world_size)}


@given(plans, st.data())
def test_iteration_from_a_step_is_the_rest_of_the_full_iteration(plan: BatchPlan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    all_packs = list(plan.iter_rank_packs(0, 0, 2))
    assert list(plan.iter_rank_packs(start, 0, 2)) == all_packs[start * plan.packs_per_rank(2) :]


def test_epochs_and_seeds_have_different_orders() -> None:
    plan = BatchPlan((30, 20), 50, 2, 0)
    assert plan.step_packs(0) != plan.step_packs(1)
    assert plan.step_packs(0) != BatchPlan((30, 20), 50, 2, 1).step_packs(0)


def test_examples_per_step_is_rounded_to_whole_packs() -> None:
    assert (
        make_plan(row_groups=(4, 6), num_examples=100, examples_per_step=32, num_epochs=1, seed=0).packs_per_step == 3
    )
    assert (
        make_plan(row_groups=(4, 6), num_examples=1000, examples_per_step=1, num_epochs=1, seed=0).packs_per_step == 1
    )
    assert make_plan(row_groups=(2,), num_examples=4, examples_per_step=32, num_epochs=1, seed=0).packs_per_step == 2


@given(plans)
def test_steps_of_an_epoch_differ_by_one_pack_at_most(plan: BatchPlan) -> None:
    sizes = [len(plan.step_packs(step)) for step in range(plan.steps_per_epoch)]
    assert max(sizes) - min(sizes) <= 1


def test_a_rank_reads_at_most_twice_what_it_uses() -> None:
    plan = BatchPlan((64,) * 200, packs_per_step=16, num_epochs=1, seed=0)
    starts = [0, *itertools.accumulate(plan.row_groups)]
    for world_size in (1, 2, 3, 8):
        for rank in range(world_size):
            num_read = num_used = 0
            for slot in range(rank, plan.packs_per_step, world_size):
                used = [plan.pack_at(step, slot) for step in range(plan.steps_per_epoch)]
                groups = {bisect.bisect_right(starts, index) - 1 for index in used if index is not None}
                num_read += sum(plan.row_groups[group] for group in groups)
                num_used += sum(index is not None for index in used)
            assert num_read <= 2 * num_used


class CountedGroups(tuple[int, ...]):
    """Row groups that count how often all of them are read."""

    num_reads = 0

    def __iter__(self) -> Iterator[int]:
        type(self).num_reads += 1
        return super().__iter__()

    def __hash__(self) -> int:
        type(self).num_reads += 1
        return super().__hash__()


def test_steps_of_a_huge_run_are_looked_up() -> None:
    """Reading 200,000 row groups takes milliseconds, and a step has hundreds of packs."""
    plan = BatchPlan(CountedGroups((64,) * 200_000), packs_per_step=512, num_epochs=3, seed=0)
    last_step = plan.num_steps - 1
    assert len(plan.step_packs(last_step)) == 512
    CountedGroups.num_reads = 0
    for step in range(last_step - 20, last_step):
        packs = plan.step_packs(step)
        by_rank = [index for rank in range(3) for index in plan.rank_packs(step, rank, 3) if index is not None]
        assert sorted(packs) == sorted(by_rank)
    assert CountedGroups.num_reads == 0
    # Another epoch is shuffled once.
    plan.step_packs(0)
    plan.step_packs(1)
    assert 0 < CountedGroups.num_reads < 10


def test_plan_can_be_sent_to_other_processes() -> None:
    plan = BatchPlan((30, 20), 7, 2, 0)
    expected = [plan.step_packs(step) for step in range(plan.num_steps)]
    received = pickle.loads(pickle.dumps(plan))
    assert received == plan
    assert [received.step_packs(step) for step in range(plan.num_steps)] == expected
