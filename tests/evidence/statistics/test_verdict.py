"""The verdict's rule at its borders, and its sentence."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.evidence.statistics.verdict import Outcome, Verdict, decide

bools = st.booleans()
rows = st.lists(st.tuples(bools, bools, bools, st.integers(0, 60)), max_size=150)


def make_arm(num_rows: int, *wrong: int) -> list[bool]:
    """An arm that is wrong in the given ranges: start and stop, one after the other."""
    ranges = [range(start, stop) for start, stop in zip(wrong[::2], wrong[1::2], strict=True)]
    return [not any(index in found for found in ranges) for index in range(num_rows)]


def decide_alone(tuned: Sequence[bool], arm: Sequence[bool], margin: float = 0.02) -> Verdict:
    """The verdict against one prompting arm, with one row a group."""
    return decide({"tuned": tuned}, {"few_shot": arm}, range(len(tuned)), margin=margin)


def test_tune() -> None:
    verdict = decide_alone(make_arm(300, 0, 30), make_arm(300, 0, 90))
    assert verdict.outcome is Outcome.TUNE and verdict.rows_to_settle is None and verdict.best_arm == "few_shot"
    assert verdict.sentence == (
        "Tune: the tuned model is right on 90.0 % of 300 rows, 20.0 points more than few_shot, the best prompting arm "
        "(interval +15.9 to +24.9)."
    )


def test_tune_needs_every_arm_beaten_by_the_margin() -> None:
    tuned = make_arm(300, 0, 10)
    arms = {"base": make_arm(300, 0, 100), "few_shot": make_arm(300, 0, 20)}
    assert decide({"tuned": tuned}, {"base": arms["base"]}, range(300)).outcome is Outcome.TUNE
    both = decide({"tuned": tuned}, arms, range(300))
    assert both.outcome is Outcome.NOT_SETTLED and both.best_arm == "few_shot"
    assert both.rows_to_settle is not None and both.rows_to_settle > 300


def test_prompt_instead_where_tuning_is_worse_or_gains_too_little() -> None:
    worse = decide_alone(make_arm(300, 0, 90), make_arm(300, 0, 30))
    assert worse.outcome is Outcome.PROMPT_INSTEAD
    assert worse.sentence == (
        "Prompt instead: the tuned model is right less often than few_shot (interval -24.9 to -15.9, 300 rows)."
    )
    # Better beyond doubt, but by less than the margin.
    better = decide_alone(make_arm(2000, 0, 90), make_arm(2000, 0, 100), margin=0.05)
    assert better.comparisons[0].difference.lower is not None and better.comparisons[0].difference.lower > 0
    assert better.outcome is Outcome.PROMPT_INSTEAD and "gains less than 5.0 points over few_shot" in better.sentence


def test_arms_that_answer_alike_settle_for_prompting_with_enough_rows() -> None:
    assert decide_alone(make_arm(189), make_arm(189)).outcome is Outcome.PROMPT_INSTEAD
    few = decide_alone(make_arm(188), make_arm(188))
    assert few.outcome is Outcome.NOT_SETTLED
    assert few.rows_to_settle is not None and few.detectable is not None and 0.03 < few.detectable < 0.05


def test_more_arms_need_more_to_speak_for_prompting() -> None:
    tuned, arm = make_arm(200), make_arm(200)
    assert decide({"tuned": tuned}, {"few_shot": arm}, range(200)).outcome is Outcome.PROMPT_INSTEAD
    arms = {"few_shot": arm, "base": make_arm(200, 0, 50), "rag": make_arm(200, 0, 60)}
    assert decide({"tuned": tuned}, arms, range(200)).outcome is Outcome.NOT_SETTLED


def test_one_of_the_arms_of_the_tuned_model_is_enough() -> None:
    alone, with_passages, rag = make_arm(300, 0, 120), make_arm(300, 0, 30), make_arm(300, 0, 90)
    arms = {"zero_shot": make_arm(300, 0, 200), "rag": rag}
    verdict = decide({"tuned": alone, "tuned_rag": with_passages}, arms, range(300))
    assert (verdict.outcome, verdict.tuned_arm, verdict.best_arm) == (Outcome.TUNE, "tuned_rag", "rag")
    assert verdict.sentence.startswith("Tune: the tuned model (tuned_rag) is right on 90.0 % of 300 rows")
    # Each at half the level, so the interval is wider than that of one arm.
    [single] = decide({"tuned": with_passages}, {"rag": rag}, range(300)).comparisons
    double = verdict.comparisons[1].difference
    assert single.difference.lower is not None and double.lower is not None
    assert double.lower < single.difference.lower


def test_all_arms_of_the_tuned_model_must_fall_short_for_prompting() -> None:
    rag, worse = make_arm(300, 0, 30), make_arm(300, 0, 90)
    both = decide({"tuned": worse, "tuned_rag": worse}, {"rag": rag}, range(300))
    assert both.outcome is Outcome.PROMPT_INSTEAD
    one = decide({"tuned": worse, "tuned_rag": [*rag[:-1], False]}, {"rag": rag}, range(300))
    assert (one.outcome, one.tuned_arm) == (Outcome.PROMPT_INSTEAD, "tuned_rag")
    near = decide({"tuned": worse, "tuned_rag": make_arm(300, 0, 20)}, {"rag": rag}, range(300))
    assert (near.outcome, near.tuned_arm) == (Outcome.NOT_SETTLED, "tuned_rag")


def test_nothing_to_decide_on() -> None:
    assert decide({"tuned": []}, {"base": []}, []).sentence == "Not settled: there are no held-out rows."
    alone = decide({"tuned": [True] * 30}, {}, range(30))
    assert alone.outcome is Outcome.NOT_SETTLED and alone.best_arm is None and "no prompting arm" in alone.sentence
    few = decide({"tuned": [True] * 100}, {"base": [False] * 100}, [index // 10 for index in range(100)])
    assert few.outcome is Outcome.NOT_SETTLED and few.detectable is None and few.rows_to_settle is None
    assert few.sentence == (
        "Not settled: the 100 rows come in 10 groups of related rows, and a comparison needs at least 20."
    )


def test_a_gain_at_the_margin_is_never_settled() -> None:
    verdict = decide_alone(make_arm(100), make_arm(100, 0, 2))
    assert verdict.outcome is Outcome.NOT_SETTLED and verdict.rows_to_settle is None
    assert "no number of rows settles a gain that is equal to the margin of 2.0 points" in verdict.sentence


@pytest.mark.parametrize("margin", [-0.01, 1.0])
def test_margins_out_of_range(margin: float) -> None:
    with pytest.raises(ValueError, match="the margin lies in"):
        decide({"tuned": [True]}, {"base": [True]}, ["a"], margin=margin)


@given(rows, st.sampled_from([0.0, 0.02, 0.2]))
def test_outcomes_exclude_each_other(rows: list[tuple[bool, bool, bool, int]], margin: float) -> None:
    tuned, base, few_shot, groups = zip(*rows, strict=True) if rows else ((), (), (), ())
    verdict = decide({"tuned": tuned}, {"base": base, "few_shot": few_shot}, groups, margin=margin)
    lowers = [comparison.difference.lower for comparison in verdict.comparisons]
    uppers = [comparison.difference.upper for comparison in verdict.comparisons]
    tune = all(lower is not None and lower > margin for lower in lowers)
    below = any(upper is not None and upper < margin for upper in uppers)
    assert not (tune and below)
    assert (verdict.outcome is Outcome.TUNE) == tune
    # With Holm's correction not each of these is.
    assert verdict.outcome is not Outcome.PROMPT_INSTEAD or below
    if verdict.rows_to_settle is not None:
        assert verdict.outcome is Outcome.NOT_SETTLED and verdict.rows_to_settle > len(rows)
    assert verdict.sentence.endswith(".")


@given(rows)
def test_a_larger_margin_never_speaks_more_for_tuning(rows: list[tuple[bool, bool, bool, int]]) -> None:
    tuned, base, few_shot, groups = zip(*rows, strict=True) if rows else ((), (), (), ())
    order = [Outcome.TUNE, Outcome.NOT_SETTLED, Outcome.PROMPT_INSTEAD]
    outcomes = [
        decide({"tuned": tuned}, {"base": base, "few_shot": few_shot}, groups, margin=margin).outcome
        for margin in (0.0, 0.02, 0.1, 0.4)
    ]
    assert outcomes == sorted(outcomes, key=order.index)
