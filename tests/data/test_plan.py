"""The order: every pack once per epoch, the same for every number of ranks, from any step."""

from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.data.plan import Plan, make_plan

plans = st.builds(Plan, st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))


@given(plans, st.sampled_from([1, 2, 3, 8]))
def test_every_pack_once_per_epoch_for_any_number_of_ranks(plan: Plan, world_size: int) -> None:
    for epoch in range(plan.num_epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        trained = [
            index
            for step in steps
            for rank in range(world_size)
            for index in plan.share(step, rank, world_size)
            if index is not None
        ]
        assert sorted(trained) == list(range(plan.num_packs))


@given(plans, st.sampled_from([2, 3, 8]))
def test_a_step_holds_the_same_packs_for_any_number_of_ranks(plan: Plan, world_size: int) -> None:
    for step in range(plan.num_steps):
        shares = [plan.share(step, rank, world_size) for rank in range(world_size)]
        assert sorted(i for share in shares for i in share if i is not None) == sorted(plan.packs(step))
        assert {len(share) for share in shares} == {plan.packs_per_rank(world_size)}


@given(plans, st.data())
def test_a_stream_from_any_step_is_the_rest_of_the_whole(plan: Plan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    whole = list(plan.stream(0, 0, 2))
    assert list(plan.stream(start, 0, 2)) == whole[start * plan.packs_per_rank(2) :]


def test_epochs_and_seeds_differ() -> None:
    plan = Plan(50, 50, 2, 0)
    assert plan.packs(0) != plan.packs(1)
    assert plan.packs(0) != Plan(50, 50, 2, 1).packs(0)


def test_examples_per_step_becomes_whole_packs() -> None:
    assert make_plan(num_packs=10, num_examples=100, examples_per_step=32, num_epochs=1, seed=0).packs_per_step == 3
    assert make_plan(num_packs=10, num_examples=1000, examples_per_step=1, num_epochs=1, seed=0).packs_per_step == 1
    assert make_plan(num_packs=2, num_examples=4, examples_per_step=32, num_epochs=1, seed=0).packs_per_step == 2
