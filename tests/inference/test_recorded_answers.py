"""Recorded answers: log-probabilities of real models, and the check of an endpoint against them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.log_probabilities import ScoredTokens, answer_greedily, score_answers
from instruct_ray.inference.recorded_answers import (
    LiveAnswer,
    RecordedAnswer,
    RecordedAnswers,
    RecordedRow,
    check_live_answers,
)


def make_row(
    tuned: tuple[int, ...], base: tuple[int, ...], shift: float = 1.0, gaps: tuple[float, ...] = (2.0, 2.0, 2.0)
) -> RecordedRow:
    """A row whose log-probabilities are -1 by the tuned model and lower by `shift` by the base model."""
    lower = tuple(-1.0 - shift for _ in tuned)
    return RecordedRow(
        row_id="0:1",
        prompt_ids=(1, 2),
        tuned=RecordedAnswer(token_ids=tuned, log_probs=tuple(-1.0 for _ in tuned), gaps=gaps),
        base=RecordedAnswer(token_ids=base, log_probs=tuple(-1.0 - shift for _ in base), gaps=gaps),
        base_log_probs=lower,
    )


def make_recorded(*rows: RecordedRow) -> RecordedAnswers:
    return RecordedAnswers(model_digest="m", contract_digest="c", max_new_tokens=3, dtype="float32", rows=rows)


TWO = make_recorded(make_row((5, 6, 7), (5, 9)), make_row((4, 4, 4), (8,)))
# As earlier versions recorded it, with the whole answer of the base model.
TWO_WHOLE = make_recorded(make_row((5, 6, 7), (5, 9, 9)), make_row((4, 4, 4), (8, 8, 8)))
SAME_TOKENS = make_recorded(make_row((5, 6, 7), (5, 6, 7)), make_row((4, 4, 4), (4, 4, 4)))
NO_EFFECT = make_recorded(make_row((5, 6, 7), (5, 6, 7), shift=0.0))


def live(*token_ids: int, log_prob: float = -1.0) -> LiveAnswer:
    return LiveAnswer(token_ids, [log_prob] * len(token_ids))


@pytest.mark.parametrize(
    ("recorded", "answers", "outcome"),
    [
        (TWO, [live(5, 6, 7), live(4, 4, 4)], "reproduced"),
        (TWO, [live(5, 6, 7, log_prob=-1.05), live(4, 4, 4)], "reproduced"),
        (TWO, [live(5, 6, 7, log_prob=-1.6), live(4, 4, 4)], "different"),
        (TWO, [live(5, 6, 6), live(4, 4, 4)], "different"),
        (TWO, [live(5, 6), live(4, 4, 4)], "different"),
        (TWO, [live(5, 9, 9, log_prob=-2.0), live(8, 8, 8, log_prob=-2.0)], "base"),
        (TWO_WHOLE, [live(5, 9, 9, log_prob=-2.0), live(8, 8, 8, log_prob=-2.0)], "base"),
        (TWO, [live(3, 9, 9), live(3, 8, 8)], "different"),
        # The base model gives the same tokens, but is less sure of them.
        (SAME_TOKENS, [live(5, 6, 7), live(4, 4, 4)], "reproduced"),
        (SAME_TOKENS, [live(5, 6, 7, log_prob=-2.0), live(4, 4, 4, log_prob=-2.0)], "base"),
        (NO_EFFECT, [live(5, 6, 7)], "no_effect"),
        (NO_EFFECT, [live(5, 5, 5)], "different"),
    ],
)
def test_live_check(recorded: RecordedAnswers, answers: list[LiveAnswer], outcome: str) -> None:
    check = check_live_answers(recorded, answers)
    assert (check.outcome, check.is_passed) == (outcome, outcome in ("reproduced", "no_effect")), check.sentence


def test_sentences_say_what_was_found() -> None:
    assert check_live_answers(TWO, [live(5, 9, 9), live(8, 8, 8)]).sentence.endswith("the adapter has no effect")
    assert "1 of 2 answers have other tokens" in check_live_answers(TWO, [live(5, 6, 6), live(4, 4, 4)]).sentence
    assert check_live_answers(NO_EFFECT, [live(5, 6, 7)]).sentence.endswith("tuning has no effect")


def test_tokens_that_rounding_decides_may_differ() -> None:
    recorded = make_recorded(make_row((5, 6, 7), (1, 1, 1), gaps=(2.0, 0.01, 2.0)))
    check = check_live_answers(recorded, [LiveAnswer((5, 3, 3), (-1.02, -1.0, -4.0))])
    assert check.outcome == "reproduced"
    # No other model's answer: its token is far from the two that are close.
    for log_prob in (-50.0, -0.001, math.nan):
        assert check_live_answers(recorded, [LiveAnswer((5, 3, 3), (-1.0, log_prob, -4.0))]).outcome == "different"
    assert check_live_answers(recorded, [LiveAnswer((5, 6, 7), (-1.0, math.nan, -1.0))]).outcome == "different"
    assert check.largest_difference == pytest.approx(0.02)


@pytest.mark.parametrize(("gap", "outcome"), [(0.5, "reproduced"), (1.0, "reproduced"), (1.125, "different")])
def test_other_token_is_allowed_where_both_may_have_moved_by_the_tolerance(gap: float, outcome: str) -> None:
    # In bf16, gaps are multiples of 1/8.
    recorded = make_recorded(make_row((5, 6, 7), (1, 1, 1), gaps=(2.0, gap, 2.0)))
    answers = [LiveAnswer((5, 9, 9), (-1.0, -1.5, -3.0))]
    assert check_live_answers(recorded, answers, tolerance=0.5).outcome == outcome


def test_less_likely_token_may_have_moved_further() -> None:
    # As between transformers and vLLM in bf16: the answered token was recorded at -1.5 or less.
    recorded = make_recorded(make_row((33, 7), (1, 1), gaps=(0.5, 2.0)))
    assert check_live_answers(recorded, [LiveAnswer((40, 29), (-0.91, -3.0))]).outcome == "reproduced"
    assert check_live_answers(recorded, [LiveAnswer((40, 29), (-0.4, -3.0))]).outcome == "different"


def test_tolerance_is_adjustable() -> None:
    answers = [live(5, 6, 7, log_prob=-1.05), live(4, 4, 4)]
    assert check_live_answers(TWO, answers, tolerance=0.01).outcome == "different"


def test_answers_of_a_base_that_was_gone_are_not_compared() -> None:
    row = TWO.rows[0].model_copy(update={"base": None, "base_log_probs": None})
    recorded = make_recorded(row)
    assert not recorded.has_base and not recorded.is_like_base
    assert check_live_answers(recorded, [live(5, 6, 7)]).outcome == "reproduced"


def test_log_probabilities_are_those_of_each_step(base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model, contract = load_causal_lm(base_folder, "auto"), derive_renderer(base_folder, None).contract
    # A shared prefix that is long enough to be computed once, and prompts of different lengths.
    shared = "all data was deleted " * 20
    prompts = [tokenizer(shared + end)["input_ids"] for end in ("the shop is down", "search is slow in room 3", "a")]
    answers = answer_greedily(model, prompts, contract, 5)
    alone = [answer.token_ids for prompt in prompts for answer in answer_greedily(model, [prompt], contract, 5)]
    assert [answer.token_ids for answer in answers] == alone
    answers[2] = answers[2].first(3)
    given = [answer.token_ids for answer in answers]
    # Of another answer the tokens count, not those that the model would have given.
    given[1] = [7, *given[1][1:]]
    scored = score_answers(model, prompts, given, contract)
    for index, (prompt, answer, scores) in enumerate(zip(prompts, answers, scored, strict=True)):
        steps = [log_probs_after(model, [*prompt, *given[index][:length]]) for length in range(len(given[index]))]
        assert scores.log_probs == pytest.approx(
            [float(step[token_id]) for step, token_id in zip(steps, given[index], strict=True)], abs=1e-5
        )
        check_favourites(scores.favourites, steps)
        if index != 1:
            check_favourites(answer, steps)


def test_equal_prompts_and_answers_are_scored_apart(base_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model, contract = load_causal_lm(base_folder, "auto"), derive_renderer(base_folder, None).contract
    prompt = tokenizer("all data was deleted " * 20)["input_ids"]
    [alone] = score_answers(model, [prompt], [[7, 8, 9]], contract)
    for scores in score_answers(model, [prompt, prompt], [[7, 8, 9], [7, 8, 9]], contract):
        assert scores.log_probs == pytest.approx(alone.log_probs, abs=1e-5)


def log_probs_after(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        log_probs: torch.Tensor = model(torch.tensor([token_ids])).logits[0, -1].float().log_softmax(-1)
    return log_probs


def check_favourites(found: ScoredTokens, steps: list[torch.Tensor]) -> None:
    top = [step.topk(2) for step in steps]
    assert found.token_ids == [int(one.indices[0]) for one in top]
    assert found.log_probs == pytest.approx([float(one.values[0]) for one in top], abs=1e-5)
    assert found.gaps == pytest.approx([float(one.values[0] - one.values[1]) for one in top], abs=1e-5)
