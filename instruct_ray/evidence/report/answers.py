"""driver: one pass over `answers.jsonl` that keeps what the page shows.

That is rows where arms disagree, suspicious rows and errors. What is kept is bounded, whatever the number of rows.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError
from instruct_ray.evidence.metrics import is_exact, normalize
from instruct_ray.evidence.report.formatting import shown_text

ANSWERS_FILE = "answers.jsonl"
MAX_ROWS = {"lost": 10, "gained": 10, "other": 6}
MAX_SUSPICIOUS = 40
MAX_ERRORS = 8
# An instruction is longer than this only where it is the whole prompt.
MAX_INSTRUCTION = 400


class Answer(BaseModel):
    """An arm's answer to a row, or why there is none."""

    model_config = ConfigDict(frozen=True)

    text: str | None = None
    finish_reason: str | None = None
    error: str | None = None


class AnsweredRow(BaseModel):
    """A line of `answers.jsonl`."""

    model_config = ConfigDict(frozen=True)

    id: str
    instruction: str
    input: str | None = None
    expected: str
    answers: dict[str, Answer]

    def is_right(self, arm: str | None) -> bool | None:
        """Whether an arm's answer is the expected one; None if the arm has no answer."""
        answer = self.answers.get(arm or "")
        return None if answer is None or answer.text is None else is_exact(answer.text, self.expected)


class Group(StrEnum):
    """How arms disagree on a row."""

    LOST = "lost"
    """The best prompting arm is right, and the tuned model is not."""
    GAINED = "gained"
    """The tuned model is right, and the best prompting arm is not."""
    OTHER = "other"
    """Anything else: two arms have different answers."""


@dataclass(frozen=True)
class ShownAnswer:
    """An answer as the page shows it."""

    arm: str
    text: str
    is_right: bool | None
    note: str
    """`cut`, `refused` or `failed`; empty otherwise."""


@dataclass(frozen=True)
class ShownRow:
    """A row as the page shows it."""

    id: str
    instruction: str
    input: str
    expected: str
    answers: tuple[ShownAnswer, ...]


@dataclass
class Answers:
    """What the page shows of the answers."""

    num_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by group."""
    rows: dict[str, list[ShownRow]] = field(default_factory=lambda: {group: [] for group in Group})
    """The first rows of each group."""
    suspicious: dict[str, ShownRow] = field(default_factory=dict)
    """By id."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Failed requests by arm and error."""
    common_instruction: str | None = None
    """The instruction, if all rows have the same."""

    def frequent_errors(self) -> list[tuple[str, str, int]]:
        """(arm, error, requests), the most frequent first."""
        ordered = sorted(self.errors.items(), key=lambda item: (-item[1], item[0]))
        return [(arm, error, count) for (arm, error), count in ordered[:MAX_ERRORS]]


def read_answers(path: Path, tuned_arm: str, best_arm: str | None, suspicious_ids: Sequence[str]) -> Answers:
    """Read the answers of a run; nothing of them is shown if there is no such file.

    Args:
        path: of `answers.jsonl`.
        tuned_arm: the arm of the tuned model that the verdict is about.
        best_arm: the best prompting arm, which the tuned model is held against.
        suspicious_ids: of the rows that look mislabelled.

    Raises:
        InputError: a line can't be used; names it.
    """
    answers, wanted, instructions = Answers(), set(suspicious_ids[:MAX_SUSPICIOUS]), set[str]()
    for row in _read_rows(path):
        answers.num_rows += 1
        if len(instructions) < 2:
            instructions.add(row.instruction)
        for arm, answer in row.answers.items():
            if answer.error is not None:
                answers.errors[arm, shown_text(answer.error, 200)] += 1
        if row.id in wanted:
            answers.suspicious[row.id] = _show(row, tuned_arm, best_arm)
        group = _find_group(row, tuned_arm, best_arm)
        if group is not None:
            answers.counts[group] += 1
            if len(answers.rows[group]) < MAX_ROWS[group]:
                answers.rows[group].append(_show(row, tuned_arm, best_arm))
    if len(instructions) == 1 and answers.num_rows > 1:
        answers.common_instruction = shown_text(instructions.pop(), MAX_INSTRUCTION)
    return answers


def _read_rows(path: Path) -> Iterator[AnsweredRow]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield AnsweredRow.model_validate(json.loads(line))
            except (ValueError, ValidationError) as error:
                raise InputError(
                    f"{path}: line {number} can't be used; remove the folder and run `instruct-ray evaluate` again"
                ) from error


def _find_group(row: AnsweredRow, tuned_arm: str, best_arm: str | None) -> Group | None:
    tuned, best = row.is_right(tuned_arm), row.is_right(best_arm)
    if tuned is not None and best is not None and tuned != best:
        return Group.GAINED if tuned else Group.LOST
    texts = {normalize(answer.text) for answer in row.answers.values() if answer.text is not None}
    return Group.OTHER if len(texts) > 1 else None


def _show(row: AnsweredRow, tuned_arm: str, best_arm: str | None) -> ShownRow:
    # The two that the verdict is about come first.
    arms = sorted(row.answers, key=lambda arm: (arm != tuned_arm, arm != best_arm))
    answers = tuple(
        ShownAnswer(
            arm,
            shown_text(answer.text if answer.text is not None else answer.error or ""),
            row.is_right(arm),
            _note(answer),
        )
        for arm, answer in ((arm, row.answers[arm]) for arm in arms)
    )
    instruction = shown_text(row.instruction, MAX_INSTRUCTION)
    return ShownRow(shown_text(row.id, 80), instruction, shown_text(row.input or ""), shown_text(row.expected), answers)


def _note(answer: Answer) -> str:
    if answer.text is None:
        return "failed"
    return {"length": "cut", "content_filter": "refused"}.get(answer.finish_reason or "", "")
