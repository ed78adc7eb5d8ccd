"""pure: evidence -> figures and tables of the page."""

from collections.abc import Mapping
from dataclasses import dataclass

from instruct_ray.evidence.report.evidence_file import ComparisonResult, EvidenceFile, SliceOfRows
from instruct_ray.evidence.report.formatting import NARROW

MAX_SLICES = 60
HEADLINES = {"tune": "Tune", "prompt instead": "Prompt instead", "not settled": "Not settled"}
# Names of measures as a person says them.
MEASURE_NAMES = {
    "exact_match": "exact match",
    "macro_f1": "macro F1",
    "valid_json": "valid JSON",
    "field_accuracy": "field accuracy",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
}


@dataclass(frozen=True)
class Summary:
    """The figures on top."""

    headline: str
    sentence: str
    """The verdict without its headline."""
    best_difference: ComparisonResult | None
    """Tuned minus the best prompting arm."""
    saved_token_share: float | None
    """Prompt tokens that the tuned model saves against the best prompting arm, as a share."""


@dataclass(frozen=True)
class MeasureTable:
    """Comparisons by one measure other than exact match."""

    name: str
    comparisons: Mapping[str, ComparisonResult]
    """By arm: tuned minus this arm."""


@dataclass(frozen=True)
class SliceTable:
    """The slices of one kind."""

    kind: str
    slices: tuple[SliceOfRows, ...]
    num_others: int


def summarize(evidence: EvidenceFile) -> Summary:
    """The figures on top of the page."""
    verdict, tuned, best = evidence.verdict, evidence.tuned, evidence.best
    headline = HEADLINES[verdict.outcome]
    sentence = verdict.sentence.removeprefix(f"{headline}:").strip().replace(" %", f"{NARROW}%")
    difference = own_comparisons(evidence).get(verdict.best_arm or "")
    saved = None
    if tuned and best and tuned.prompt_tokens is not None and best.prompt_tokens:
        saved = 1 - tuned.prompt_tokens / best.prompt_tokens
    return Summary(headline, sentence[:1].upper() + sentence[1:], difference, saved)


def own_comparisons(evidence: EvidenceFile) -> dict[str, ComparisonResult]:
    """Comparisons of the tuned model by the other arm, in the order of the arms."""
    return _by_other_arm(evidence.comparisons, evidence)


def measure_tables(evidence: EvidenceFile) -> list[MeasureTable]:
    """The comparisons of the tuned model by the other measures."""
    return [
        MeasureTable(measure_name(measure), by_arm)
        for measure, comparisons in evidence.score_comparisons.items()
        if (by_arm := _by_other_arm(comparisons, evidence))
    ]


def measure_name(measure: str) -> str:
    """The name of a measure as a person says it; a measure of the user has its own name."""
    return MEASURE_NAMES.get(measure, measure)


def group_slices(evidence: EvidenceFile) -> list[SliceTable]:
    """The slices by kind: those that were judged first, the worst of them first."""

    def order(one: SliceOfRows) -> tuple[bool, float]:
        estimate = one.comparison.estimate if one.comparison is not None else None
        return not one.judged, 0.0 if estimate is None else estimate

    kinds = dict.fromkeys(one.kind for one in evidence.slices)
    by_kind = {kind: sorted((one for one in evidence.slices if one.kind == kind), key=order) for kind in kinds}
    return [SliceTable(kind, tuple(of[:MAX_SLICES]), max(len(of) - MAX_SLICES, 0)) for kind, of in by_kind.items()]


def _by_other_arm(comparisons: Mapping[str, ComparisonResult], evidence: EvidenceFile) -> dict[str, ComparisonResult]:
    own = evidence.verdict.tuned_arm
    return {name: comparisons[key] for name in evidence.arms if (key := f"{own} - {name}") in comparisons}
