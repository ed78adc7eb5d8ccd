"""Answers of all arms -> the content of `evidence.json`. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instruct_ray.evidence.answers import ArmAnswers, ArmKind, FailedRequest
from instruct_ray.evidence.arms import TUNED
from instruct_ray.evidence.evaluated_rows import EvaluatedRow, EvaluatedRows
from instruct_ray.evidence.metrics import normalize
from instruct_ray.evidence.results.cost import cost_figures
from instruct_ray.evidence.results.figures import arm_figures, difference_figures
from instruct_ray.evidence.results.scores import ScoredArm, Scorer, compare_accuracies
from instruct_ray.evidence.scoring.measures import Measure
from instruct_ray.evidence.statistics.slices import (
    Judgement,
    Slice,
    SliceKind,
    judge_slices,
    slice_by_length,
    slice_by_value,
)
from instruct_ray.evidence.statistics.verdict import Verdict, decide
from instruct_ray.evidence.suspicious import SuspiciousRow, find_suspicious_rows

FORMAT = 2
NORMALISATION = "case folded, inner white space single, sentence punctuation at the end and quotes removed"


@dataclass(frozen=True)
class EvidenceSettings:
    """What an evaluation used besides the answers."""

    contract_digest: str
    max_new_tokens: int
    margin: float
    scorer: Scorer
    trained_tokens: int
    """Tokens that training computed, over all epochs."""
    notes: Sequence[str]
    champion_version: str | None


def build_evidence(rows: EvaluatedRows, arms: Sequence[ArmAnswers], settings: EvidenceSettings) -> dict[str, Any]:
    """Build the content of `evidence.json`; every figure follows from the arguments.

    Args:
        rows: the answered rows.
        arms: all arms; an arm whose requests all failed is left out, and a note says so.
        settings: what else is recorded.
    """
    scored = {arm.name: ScoredArm(arm, rows.rows) for arm in arms if arm.num_failed < len(rows.rows)}
    figures = {name: arm_figures(arm, settings.scorer) for name, arm in scored.items()}
    verdict = _decide(rows.rows, scored, settings.margin)
    pairs = _find_pairs(scored)
    confidence = 1 - verdict.alpha / _num_tuned(scored)
    names = [name for name in settings.scorer.names if name != Measure.EXACT_MATCH]
    return {
        "format": FORMAT,
        "num_test": len(rows.rows),
        "num_held_out": rows.num_held_out,
        "test_digest": rows.digest,
        "contract_digest": settings.contract_digest,
        "max_new_tokens": settings.max_new_tokens,
        "normalisation": NORMALISATION,
        "notes": [*settings.notes, *_describe_failures(arms)],
        "measures": settings.scorer.names,
        "arms": figures,
        "comparisons": {
            pair: difference_figures(compare_accuracies(own, other, confidence)) for pair, (own, other) in pairs.items()
        },
        "score_comparisons": {
            name: {
                pair: difference_figures(settings.scorer.compare(name, own, other))
                for pair, (own, other) in pairs.items()
            }
            for name in names
        },
        "verdict": {
            "outcome": verdict.outcome.value,
            "sentence": verdict.sentence,
            "margin": verdict.margin,
            "alpha": verdict.alpha,
            "confidence": confidence,
            "tuned_arm": verdict.tuned_arm,
            "best_arm": verdict.best_arm,
            "detectable": verdict.detectable,
            "rows_to_settle": verdict.rows_to_settle,
        },
        "slices": _judge_slices(rows.rows, scored, verdict, settings.scorer),
        "suspicious_rows": [
            {"id": row.id, "expected": row.expected, "answer": row.answer} for row in find_suspicious(rows.rows, arms)
        ],
        "cost": cost_figures(figures, verdict.best_arm, verdict.tuned_arm, settings.trained_tokens),
        "champion_version": settings.champion_version,
    }  # fmt: skip


def find_suspicious(rows: Sequence[EvaluatedRow], arms: Sequence[ArmAnswers]) -> list[SuspiciousRow]:
    """The rows whose label may be wrong: the tuned model and the largest few-shot arm agree on another answer."""
    by_name = {arm.name: arm for arm in arms}
    few_shot = max(
        (name for name in by_name if name.startswith("few_shot_")), key=lambda name: int(name.split("_")[-1]),
        default=None,
    )  # fmt: skip
    if few_shot is None:
        return []
    answers = [ScoredArm(by_name[name], tuple(rows)).answers for name in (TUNED, few_shot)]
    texts = [[found[index].text if index in found else "" for index in range(len(rows))] for found in answers]
    ids, outputs = [row.triple.id for row in rows], [row.triple.output for row in rows]
    return find_suspicious_rows(ids, outputs, texts[0], texts[1])


def _find_pairs(scored: Mapping[str, ScoredArm]) -> dict[str, tuple[ScoredArm, ScoredArm]]:
    """The arms that are compared, by `A - B`: each arm of the tuned model with each arm of another model."""
    own = {name: arm for name, arm in scored.items() if arm.source.kind is ArmKind.TUNED}
    return {
        f"{name} - {other}": (arm, scored[other]) for name, arm in own.items() for other in scored if other not in own
    }


def _num_tuned(scored: Mapping[str, ScoredArm]) -> int:
    return sum(arm.source.kind is ArmKind.TUNED for arm in scored.values())


def _decide(rows: Sequence[EvaluatedRow], scored: Mapping[str, ScoredArm], margin: float) -> Verdict:
    """The verdict by the arms of tuned model and base, which answered all rows."""

    def select(kind: ArmKind) -> dict[str, list[bool]]:
        return {name: list(arm.correct.values()) for name, arm in scored.items() if arm.source.kind is kind}

    return decide(select(ArmKind.TUNED), select(ArmKind.PROMPTING), [row.group for row in rows], margin=margin)


def _judge_slices(
    rows: Sequence[EvaluatedRow], scored: Mapping[str, ScoredArm], verdict: Verdict, scorer: Scorer
) -> list[dict[str, Any]]:
    """The tuned model against the best prompting arm in each slice; arms with failed requests are left out."""
    if verdict.best_arm is None:
        return []
    slices = _make_slices(rows, scored[TUNED], scorer)
    correct = {name: list(arm.correct.values()) for name, arm in scored.items() if not arm.source.num_failed}
    groups = [row.group for row in rows]
    results = judge_slices(slices, correct, groups, arm=verdict.tuned_arm, reference=verdict.best_arm)
    return [
        {
            "kind": one.kind.value,
            "name": one.name,
            "num_rows": one.num_rows,
            "accuracies": one.accuracies,
            "judged": one.judgement is not Judgement.CANNOT_BE_JUDGED,
            "judgement": one.judgement.value,
            "comparison": None if one.difference.lower is None else difference_figures(one.difference),
        }
        for one in results
    ]


def _make_slices(rows: Sequence[EvaluatedRow], tuned: ScoredArm, scorer: Scorer) -> list[Slice]:
    slices = slice_by_value(SliceKind.INSTRUCTION, [row.triple.instruction for row in rows])
    if Measure.MACRO_F1 in scorer.measures:
        slices += slice_by_value(SliceKind.LABEL, [normalize(row.triple.output) for row in rows])
    return slices + slice_by_length([answer.prompt_tokens or 0 for answer in tuned.answers.values()])


def _describe_failures(arms: Sequence[ArmAnswers]) -> list[str]:
    notes = []
    for arm in arms:
        errors = [outcome.error for outcome in arm.outcomes if isinstance(outcome, FailedRequest)]
        if errors:
            count = "all" if len(errors) == len(arm.outcomes) else f"{len(errors)} of {len(arm.outcomes)}"
            notes.append(f"{arm.name}: {count} requests failed and are in no figure; the first one: {errors[0]}")
    return notes
