"""pure: the answers that are stored with a version, and the check whether an endpoint gives the same ones.

An endpoint can load another model than it was told to, or leave an adapter out, without any error. So a version holds
answers of the tuned model and of its base; what an endpoint answers must be like the first and unlike the second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

RECORDED_ANSWERS_FILE = "recorded_answers.json"
NUM_ROWS, MAX_NEW_TOKENS = 16, 16
# Of log-probabilities. They may be recorded in fp32 and served in bf16, where numbers from 16 to 32, as logits often
# are, lie 0.125 apart.
TOLERANCE = 0.5
# Two models whose log-probabilities differ by less than this are one model.
SAME_MODEL = 1e-3

Outcome = Literal["reproduced", "base", "different", "no_effect"]


class RecordedAnswer(BaseModel):
    """A greedy answer of a model, with its stop token, or how one begins."""

    model_config = ConfigDict(frozen=True)

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    gaps: tuple[float, ...]
    """How much more likely the most likely token is than the second, at each position."""


class RecordedRow(BaseModel):
    """The answers to one held-out row."""

    model_config = ConfigDict(frozen=True)

    row_id: str
    prompt_ids: tuple[int, ...]
    tuned: RecordedAnswer
    base: RecordedAnswer | None
    """How the base model's greedy answer begins: up to the first token that is not the tuned model's. None if the base
    model was no longer there when the version was registered."""
    base_log_probs: tuple[float, ...] | None
    """What the base model thinks of the tokens of the tuned model's answer."""

    @property
    def effect(self) -> float:
        """How much tuning changed the log-probabilities of the answer, at the token where it changed them most."""
        return _largest_difference(self.tuned.log_probs, self.base_log_probs or ())


class RecordedAnswers(BaseModel):
    """The content of `recorded_answers.json`."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    model_digest: str
    """Of the model that answered, as `inference.loading.model_digest` computes it."""
    contract_digest: str
    max_new_tokens: int
    dtype: str
    """The precision in which the tuned model was computed."""
    rows: tuple[RecordedRow, ...]

    @property
    def has_base(self) -> bool:
        """Whether the base model's answers are recorded too."""
        return all(row.base is not None for row in self.rows)

    @property
    def is_like_base(self) -> bool:
        """Whether the tuned model answers as its base does: tuning, or the adapter, has no effect."""
        return bool(self.rows) and self.has_base and all(row.effect < SAME_MODEL for row in self.rows)

    @classmethod
    def load(cls, folder: Path) -> "RecordedAnswers | None":
        """Read the answers in the folder of a version; None if it was registered without."""
        path = folder / RECORDED_ANSWERS_FILE
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else None


@dataclass(frozen=True)
class LiveAnswer:
    """What an endpoint answered to a recorded prompt, greedily and with the recorded limit."""

    token_ids: Sequence[int]
    log_probs: Sequence[float]
    """Of its own tokens."""


@dataclass(frozen=True)
class LiveCheck:
    """Whether an endpoint serves the version."""

    outcome: Outcome
    sentence: str
    largest_difference: float
    """Of log-probabilities, over the tokens that agree."""

    @property
    def is_passed(self) -> bool:
        """Whether traffic may go to the endpoint. A version that is like its base is no fault of the endpoint."""
        return self.outcome in ("reproduced", "no_effect")


def check_live_answers(
    recorded: RecordedAnswers, answers: Sequence[LiveAnswer], tolerance: float = TOLERANCE
) -> LiveCheck:
    """Compare what an endpoint answered with what is recorded.

    Args:
        recorded: the recorded answers.
        answers: one per recorded row, in their order.
        tolerance: by how much log-probabilities of answered tokens may differ, and half of what those of others may.
            Tokens may differ where that can have made another one the most likely; the rest of such an answer is not
            compared.
    """
    pairs = list(zip(recorded.rows, answers, strict=True))
    num_tokens = [_num_equal_tokens(row, live, tolerance) for row, live in pairs]
    largest = 0.0
    for (row, live), num in zip(pairs, num_tokens, strict=True):
        largest = max(largest, _largest_difference(row.tuned.log_probs[: num or 0], live.log_probs))
    num_other = num_tokens.count(None)
    if recorded.has_base and not recorded.is_like_base and _is_closer_to_base(pairs):
        return LiveCheck("base", "the endpoint answers as the base model does: the adapter has no effect", largest)
    if num_other or largest > tolerance:
        return LiveCheck(
            "different",
            f"{num_other} of {len(pairs)} answers have other tokens than recorded; the log-probabilities of the others "
            f"differ by up to {largest:.3f} (allowed: {tolerance:g})",
            largest,
        )
    if recorded.is_like_base:
        return LiveCheck(
            "no_effect", "the answers are as recorded, but the base model gives the same: tuning has no effect", largest
        )
    return LiveCheck("reproduced", f"{len(pairs)} answers are as recorded (within {largest:.3f})", largest)


def _num_equal_tokens(row: RecordedRow, live: LiveAnswer, tolerance: float) -> int | None:
    """How many tokens agree with the recorded ones before the first that may differ; None if one may not."""
    expected = row.tuned.token_ids
    for index, (token, other) in enumerate(zip(expected, live.token_ids, strict=False)):
        if token != other:
            return index if _may_differ(row.tuned, live, index, tolerance) else None
    return len(expected) if len(expected) == len(live.token_ids) else None


def _may_differ(expected: RecordedAnswer, live: LiveAnswer, index: int, tolerance: float) -> bool:
    """Whether another token can be the most likely one.

    Less likely tokens move more: between engines in bf16, where answered tokens moved by 0.17 at most, another one
    moved by 0.59.
    """
    if expected.gaps[index] > 2 * tolerance:
        return False
    # The log-probability of a stop token is not known.
    if index >= min(len(live.log_probs), len(expected.log_probs)):
        return True
    most_likely = expected.log_probs[index]
    return most_likely - tolerance <= live.log_probs[index] <= most_likely - expected.gaps[index] + 2 * tolerance


def _is_closer_to_base(pairs: Sequence[tuple[RecordedRow, LiveAnswer]]) -> bool:
    """Whether more answers are nearer to those of the base model than to those of the tuned one."""
    distances = [(_distance(row, live, of_base=False), _distance(row, live, of_base=True)) for row, live in pairs]
    return sum(base < tuned for tuned, base in distances) > sum(tuned < base for tuned, base in distances)


def _distance(row: RecordedRow, live: LiveAnswer, *, of_base: bool) -> float:
    """How far an answer is from a recorded one: at its first other token, infinitely far."""
    token_ids = tuple(live.token_ids)
    if token_ids == row.tuned.token_ids:
        expected = row.base_log_probs if of_base else row.tuned.log_probs
        return float("inf") if expected is None else _largest_difference(expected, live.log_probs)
    if of_base and row.base is not None and token_ids[: len(row.base.token_ids)] == row.base.token_ids:
        return _largest_difference(row.base.log_probs, live.log_probs)
    return float("inf")


def _largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    differences = [abs(a - b) for a, b in zip(first, second, strict=False)]
    # NaN is no agreement, but max() may pass over it.
    return math.inf if any(map(math.isnan, differences)) else max(differences, default=0.0)
