"""driver: reads `evidence.json` for the report, and says which field of it can't be used."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError

FORMAT = 2
TUNED = "tuned"

ArmKind = Literal["prompting", "tuned", "champion", "rival"]


class _Part(BaseModel):
    """A part of `evidence.json`; keys that the report does not show are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class QuantileResult(_Part):
    """A quantile of latencies in seconds."""

    value: float | None
    lower: float | None
    upper: float | None
    num_needed: int
    """Requests that an interval needs."""


class Latency(_Part):
    """Latency of single requests."""

    num_requests: int
    p50: QuantileResult
    p95: QuantileResult


class ConfusionCounts(_Part):
    """Rows by expected label and answer."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Shape [labels, labels], or [labels, labels + 1] with "none of the labels" as the last column."""


class ArmResult(_Part):
    """The result of one arm."""

    kind: ArmKind
    description: str
    accuracy: float | None
    accuracy_lower: float | None
    accuracy_upper: float | None
    label_found: float | None
    scores: dict[str, float | None]
    num_cut: int
    num_refused: int
    num_failed: int
    prompt_tokens: float | None
    completion_tokens: float | None
    tokens_per_right_answer: float | None
    latency: Latency | None
    requests_per_second_at_8: float | None
    confusion: ConfusionCounts | None

    @property
    def tokens(self) -> float | None:
        """Prompt and completion tokens of a request."""
        if self.prompt_tokens is None:
            return None
        return self.prompt_tokens + (self.completion_tokens or 0.0)


class ComparisonResult(_Part):
    """Arm A minus arm B on the same rows."""

    estimate: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    num_rows: int
    num_groups: int | None = None
    num_discordant: int | None = None
    design_effect: float | None = None
    method: str = ""


class VerdictResult(_Part):
    """Whether tuning was worth it."""

    outcome: Literal["tune", "prompt instead", "not settled"]
    sentence: str
    margin: float
    alpha: float
    confidence: float | None = None
    """Of the intervals of differences; null in evidence of earlier versions: 1 - alpha."""
    tuned_arm: str = TUNED
    """The arm of the tuned model that the verdict is about."""
    best_arm: str | None
    detectable: float | None
    rows_to_settle: int | None


class SliceOfRows(_Part):
    """Tuned against the best prompting arm on some of the rows."""

    kind: str
    name: str
    num_rows: int
    accuracies: dict[str, float | None]
    judged: bool
    judgement: str
    comparison: ComparisonResult | None


class SuspiciousLabel(_Part):
    """A row whose expected output may be wrong."""

    id: str
    expected: str
    answer: str


class Cost(_Part):
    """When the tokens that tuning cost are paid back."""

    rule: str
    trained_tokens: float | None
    saved_tokens_per_request: float | None
    break_even_requests: float | None


class EvidenceFile(_Part):
    """The content of `evidence.json`."""

    num_test: int
    num_held_out: int
    test_digest: str
    contract_digest: str
    max_new_tokens: int
    normalisation: str
    notes: tuple[str, ...]
    measures: tuple[str, ...]
    arms: dict[str, ArmResult]
    comparisons: dict[str, ComparisonResult]
    score_comparisons: dict[str, dict[str, ComparisonResult]]
    verdict: VerdictResult
    slices: tuple[SliceOfRows, ...]
    suspicious_rows: tuple[SuspiciousLabel, ...]
    cost: Cost | None
    champion_version: str | None

    @property
    def tuned(self) -> ArmResult | None:
        """The arm of the tuned model that the verdict is about."""
        return self.arms.get(self.verdict.tuned_arm)

    @property
    def best(self) -> ArmResult | None:
        """The best prompting arm."""
        return None if self.verdict.best_arm is None else self.arms.get(self.verdict.best_arm)


def read_evidence_file(path: Path) -> EvidenceFile:
    """Read `evidence.json`.

    Raises:
        InputError: it is missing, of an earlier version, or a field is missing or of another type.
    """
    if not path.is_file():
        raise InputError(f"{path}: no evidence; run `instruct-ray evaluate` with this config first")
    try:
        values: Any = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it and run `instruct-ray evaluate` again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InputError(
            f"{path}: has format {found or 1} of another version of instruct_ray, and the report needs {FORMAT}; "
            "remove it and run `instruct-ray evaluate` again"
        )
    try:
        return EvidenceFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {field}: {first['msg'].lower()}; remove it and run `instruct-ray evaluate` again"
        ) from error
