"""The answers of the arms, as they are asked for, recorded and scored. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class ArmKind(StrEnum):
    """What an arm is, which decides what it is compared with."""

    PROMPTING = "prompting"
    TUNED = "tuned"
    CHAMPION = "champion"
    RIVAL = "rival"


# The finish reason of an answer that a rival's content filter refused.
REFUSED = "content_filter"


@dataclass(frozen=True)
class Answer:
    """An answer to a row. A refused one is empty, and counts as wrong."""

    text: str
    finish_reason: str
    """`stop`, `length` if it reached the limit of its length, or `content_filter`."""
    prompt_tokens: int | None
    """None where a rival does not say."""
    completion_tokens: int | None


@dataclass(frozen=True)
class FailedRequest:
    """A request that failed: it is in no figure."""

    error: str
    """One line."""


Outcome = Answer | FailedRequest


@dataclass(frozen=True)
class LatencySample:
    """What the latency rows of an arm took."""

    seconds: tuple[float, ...]
    """Of single requests."""
    requests_per_second_at_8: float | None
    """None with fewer than 8 requests."""


@dataclass(frozen=True)
class ArmAnswers:
    """All that is known of an arm once its rows are answered."""

    name: str
    kind: ArmKind
    description: str
    """One sentence."""
    outcomes: tuple[Outcome, ...]
    """One per row, in the order of the rows."""
    latency: LatencySample | None = None

    @property
    def num_cut(self) -> int:
        """Answers that reached the limit of their length."""
        return sum(isinstance(one, Answer) and one.finish_reason == "length" for one in self.outcomes)

    @property
    def num_failed(self) -> int:
        """Requests that failed."""
        return sum(isinstance(outcome, FailedRequest) for outcome in self.outcomes)


def dump_outcome(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values."""
    return asdict(outcome)


def load_outcome(values: Mapping[str, Any]) -> Outcome:
    """The inverse of `dump_outcome`."""
    return FailedRequest(**values) if "error" in values else Answer(**values)
