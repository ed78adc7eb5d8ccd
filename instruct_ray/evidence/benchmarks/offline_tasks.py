"""Benchmarks that need no network: the questions of MMLU's dev split that are part of the lm-eval package.

The package has them as few-shot examples of reasoning, from which question, choices and answer are taken. With
`limit`, the first question of each subject comes before the second of any.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_ray.errors import InputError

CONTINUATION, LETTERS = "mmlu_dev", "mmlu_dev_letters"
OFFLINE_TASKS = (CONTINUATION, LETTERS)
QUESTIONS_FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
LETTER_NAMES = "ABCD"
# The one question with five choices does not match.
QUESTION = re.compile(
    r"(.*)\n\(A\) (.*?)\s\(B\) (.*?)\s\(C\) (.*?)\s\(D\) (.*?)\nA: Let's think step by step\..*"
    r"The answer is \(([A-D])\)\.\s*",
    re.DOTALL,
)
DESCRIPTION = "The following are multiple choice questions (with answers) about {{subject}}.\n\n"
# As lm-eval's mmlu_continuation, which compares the texts of the choices, and its mmlu, which compares their letters.
FORMATS: dict[str, dict[str, Any]] = {
    CONTINUATION: {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "metrics": ("acc", "acc_norm"),
    },
    LETTERS: {
        "doc_to_text": (
            "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
        ),
        "doc_to_choice": list(LETTER_NAMES),
        "metrics": ("acc",),
    },
}


def make_task_config(name: str, package_dir: Path) -> dict[str, Any]:
    """The config of one of `OFFLINE_TASKS`, for lm-eval.

    Args:
        name: of the task.
        package_dir: of lm-eval.

    Raises:
        InputError: this version of lm-eval does not have the questions.
    """
    values = FORMATS[name]
    questions = read_questions(package_dir)

    def load_dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset  # noqa: PLC0415  (takes seconds)

        return {"test": Dataset.from_list(questions)}

    return {
        "task": name,
        "custom_dataset": load_dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        "description": DESCRIPTION,
        "doc_to_text": values["doc_to_text"],
        "doc_to_choice": values["doc_to_choice"],
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in values["metrics"]
        ],
    }


def read_questions(package_dir: Path) -> list[dict[str, Any]]:
    """The questions: subject, question, choices and the index of the answer; without repeated ones.

    Raises:
        InputError: the package does not have them.
    """
    path = package_dir / QUESTIONS_FILE
    if not path.is_file():
        raise InputError(
            f"evidence.benchmarks.tasks: {path} is missing; install the version of lm-eval that "
            "`pip install 'instruct-ray[benchmarks]'` takes"
        )
    prompts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    numbered = [one for subject, text in prompts.items() for one in _read_subject(subject, text)]
    unique = {(one["question"], *one["choices"]): one for _, one in sorted(numbered, key=lambda pair: pair[0])}
    return list(unique.values())


def _read_subject(subject: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The questions of a subject with their number in it."""
    for number, part in enumerate(text.split("\n\nQ: ")[1:]):
        if (match := QUESTION.fullmatch(part)) is not None:
            question, *choices, answer = match.groups()
            yield (
                number,
                {
                    "subject": subject.replace("_", " "),
                    "question": question.strip(),
                    "choices": [choice.strip() for choice in choices],
                    "answer": LETTER_NAMES.index(answer),
                },
            )
