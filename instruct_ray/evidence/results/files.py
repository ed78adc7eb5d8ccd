"""driver: writes the results of an evaluation: evidence.json last, since the stage is finished when it exists."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_ray.evidence.answers import ArmAnswers, dump_outcome
from instruct_ray.evidence.evaluated_rows import EvaluatedRow, EvaluatedRows
from instruct_ray.evidence.results.build import find_suspicious
from instruct_ray.files import atomic_write_json, atomic_write_text

ANSWERS_FILE, SUSPICIOUS_FILE = "answers.jsonl", "suspicious.jsonl"


def write_results(
    evidence_file: Path, values: Mapping[str, Any], rows: EvaluatedRows, arms: Sequence[ArmAnswers]
) -> None:
    """Write the answers of all rows, the rows that look mislabelled, and the evidence."""
    answers = (_answer_line(row, index, arms) for index, row in enumerate(rows.rows))
    atomic_write_text(evidence_file.with_name(ANSWERS_FILE), _to_lines(answers))
    suspicious = (
        {**rows.rows[found.index].triple.dump(), "answer": found.answer} for found in find_suspicious(rows.rows, arms)
    )
    atomic_write_text(evidence_file.with_name(SUSPICIOUS_FILE), _to_lines(suspicious))
    atomic_write_json(evidence_file, dict(values))


def _answer_line(row: EvaluatedRow, index: int, arms: Sequence[ArmAnswers]) -> dict[str, Any]:
    return {
        "id": row.triple.id,
        "group": row.group,
        "instruction": row.triple.instruction,
        "input": row.triple.input,
        "expected": row.triple.output,
        "answers": {arm.name: dump_outcome(arm.outcomes[index]) for arm in arms},
    }


def _to_lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in values)
