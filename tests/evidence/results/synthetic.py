"""Answers of arms to rows with labels, drawn at random, without any model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.answers import Answer, ArmAnswers, ArmKind, FailedRequest, LatencySample
from instruct_ray.evidence.evaluated_rows import EvaluatedRow, EvaluatedRows
from instruct_ray.evidence.results.build import EvidenceSettings, build_evidence
from instruct_ray.evidence.results.scores import Scorer
from instruct_ray.evidence.scoring.measures import Measure

LABELS = ("High", "Medium", "Low")
KINDS = {"tuned": ArmKind.TUNED, "tuned_rag": ArmKind.TUNED, "champion": ArmKind.CHAMPION, "gpt": ArmKind.RIVAL}


def make_rows(num_rows: int, rows_per_group: int = 1) -> EvaluatedRows:
    """Rows with the labels in turn; consecutive ones are of one group."""
    rows = [
        EvaluatedRow(
            Triple(f"row-{number}", ("Rate this.", "How bad?")[number % 2], f"report {number}", LABELS[number % 3]),
            f"group-{number // rows_per_group}",
        )
        for number in range(num_rows)
    ]
    return EvaluatedRows(tuple(rows), num_rows)


def draw_arm(rows: EvaluatedRows, name: str, accuracy: float, prompt_tokens: int, seed: int) -> ArmAnswers:
    """An arm that is right about as often as said; its wrong answers are another label, or none."""
    rng = np.random.default_rng(seed)
    texts = [
        row.output.upper() if rng.random() < accuracy else str(rng.choice([*(set(LABELS) - {row.output}), "no idea"]))
        for row in rows.triples
    ]
    return make_arm(name, texts, prompt_tokens, tuple(rng.exponential(0.2, 80)))


def make_arm(
    name: str, texts: Sequence[str | None], prompt_tokens: int = 50, seconds: tuple[float, ...] = (0.1,)
) -> ArmAnswers:
    """An arm with these answers; None is a failed request."""
    outcomes = tuple(
        FailedRequest("HTTP 500") if text is None else Answer(text, "stop", prompt_tokens, len(text.split()))
        for text in texts
    )
    kind = KINDS.get(name, ArmKind.PROMPTING)
    return ArmAnswers(name, kind, f"The arm {name}.", outcomes, LatencySample(seconds, 4.0))


def build(rows: EvaluatedRows, arms: Sequence[ArmAnswers], **settings: Any) -> dict[str, Any]:
    """The evidence of these answers."""
    values: dict[str, Any] = {
        "contract_digest": "c" * 64,
        "max_new_tokens": 16,
        "margin": 0.02,
        "scorer": Scorer((Measure.EXACT_MATCH, Measure.MACRO_F1), {}),
        "trained_tokens": 90_000,
        "notes": [],
        "champion_version": None,
    }
    return build_evidence(rows, arms, EvidenceSettings(**(values | settings)))
