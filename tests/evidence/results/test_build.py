"""`build_evidence` with failed and refused requests, groups and mislabelled rows, and what the gate makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from instruct_ray.config.gate import GateConfig
from instruct_ray.evidence.answers import REFUSED, Answer
from instruct_ray.evidence.results.files import write_results
from instruct_ray.evidence.results.scores import Scorer
from instruct_ray.evidence.scoring.measures import Measure
from instruct_ray.registry.gate import Standing, judge
from instruct_ray.registry.gate_evidence import read_gate_evidence
from tests.evidence.results.synthetic import LABELS, build, draw_arm, make_arm, make_rows

KEYS = [
    "format", "num_test", "num_held_out", "test_digest", "contract_digest", "max_new_tokens", "normalisation", "notes",
    "measures", "arms", "comparisons", "score_comparisons", "verdict", "slices", "suspicious_rows", "cost",
    "champion_version",
]  # fmt: skip


def test_keys_of_the_evidence_and_of_an_arm() -> None:
    rows = make_rows(60)
    evidence = build(rows, [draw_arm(rows, name, 0.5, 50, 1) for name in ("zero_shot", "tuned")])
    assert list(evidence) == KEYS and evidence["format"] == 2
    assert list(evidence["arms"]["tuned"]) == [
        "kind", "description", "accuracy", "accuracy_lower", "accuracy_upper", "label_found", "scores", "num_cut",
        "num_refused", "num_failed", "prompt_tokens", "completion_tokens", "tokens_per_right_answer", "latency",
        "requests_per_second_at_8", "confusion",
    ]  # fmt: skip
    assert json.loads(json.dumps(evidence)) == evidence


def test_failed_requests_are_in_no_figure_and_said() -> None:
    rows = make_rows(60)
    tuned = draw_arm(rows, "tuned", 0.5, 50, 1)
    right = [row.output for row in rows.triples]
    rival = make_arm("gpt", [None if number < 20 else text for number, text in enumerate(right)])
    evidence = build(rows, [make_arm("zero_shot", right), tuned, rival])
    arm, comparison = evidence["arms"]["gpt"], evidence["comparisons"]["tuned - gpt"]
    assert (arm["accuracy"], arm["num_failed"], comparison["num_rows"]) == (1.0, 20, 40)
    assert evidence["notes"] == ["gpt: 20 of 60 requests failed and are in no figure; the first one: HTTP 500"]
    assert all("gpt" not in one["accuracies"] for one in evidence["slices"])
    dead = build(rows, [make_arm("zero_shot", right), tuned, make_arm("gpt", [None] * 60)])
    assert "gpt" not in dead["arms"] and dead["notes"][0].startswith("gpt: all requests failed")


def test_refused_answers_count_as_wrong() -> None:
    rows = make_rows(60)
    right = make_arm("zero_shot", [row.output for row in rows.triples])
    refused = (Answer("", REFUSED, 0, 0), *right.outcomes[1:])
    evidence = build(rows, [right, draw_arm(rows, "tuned", 0.5, 50, 1), replace(right, name="gpt", outcomes=refused)])
    assert (evidence["arms"]["gpt"]["num_refused"], evidence["arms"]["gpt"]["accuracy"]) == (1, 59 / 60)


def test_tokens_that_a_rival_does_not_report_are_left_open() -> None:
    rows = make_rows(60)
    right = make_arm("zero_shot", [row.output for row in rows.triples])
    unknown = tuple(Answer(one.text, "stop", None, None) for one in right.outcomes if isinstance(one, Answer))
    arms = [right, draw_arm(rows, "tuned", 0.5, 50, 1), replace(right, name="gpt", outcomes=unknown)]
    arm = build(rows, arms)["arms"]["gpt"]
    assert [arm[key] for key in ("prompt_tokens", "completion_tokens", "tokens_per_right_answer")] == [None] * 3


def test_the_tuned_model_with_passages_is_held_against_the_base_model_with_passages() -> None:
    rows = make_rows(200)
    arms = [draw_arm(rows, name, share, 50, seed) for seed, (name, share) in enumerate(
        {"zero_shot": 0.2, "rag": 0.6, "tuned": 0.4, "tuned_rag": 0.9}.items()
    )]  # fmt: skip
    evidence = build(rows, arms)
    verdict = evidence["verdict"]
    assert (verdict["outcome"], verdict["tuned_arm"], verdict["best_arm"]) == ("tune", "tuned_rag", "rag")
    assert verdict["confidence"] == 0.975
    assert list(evidence["comparisons"]) == [
        "tuned - zero_shot", "tuned - rag", "tuned_rag - zero_shot", "tuned_rag - rag"
    ]  # fmt: skip
    [result] = [
        one
        for one in judge(GateConfig(), read_gate_evidence(evidence), Standing(None, None, 0))
        if one.name == "prompting"
    ]
    assert result.status == "passed" and result.sentence.startswith("tuned_rag − rag is ")


def test_related_rows_widen_the_intervals() -> None:
    widths = []
    for rows_per_group in (1, 4):
        rows = make_rows(240, rows_per_group)
        texts = [row.output if number // 4 % 3 else "no" for number, row in enumerate(rows.triples)]
        evidence = build(rows, [make_arm("zero_shot", ["no"] * 240), make_arm("tuned", texts)])
        comparison = evidence["comparisons"]["tuned - zero_shot"]
        widths.append(comparison["upper"] - comparison["lower"])
        assert comparison["num_groups"] == 240 / rows_per_group
    assert widths[1] > 1.7 * widths[0]


def test_three_planted_wrong_labels_are_on_the_list(tmp_path: Path) -> None:
    rows = make_rows(90)
    truth = [row.output for row in rows.triples]
    planted = (7, 31, 64)
    wrong = {index: LABELS[(LABELS.index(truth[index]) + 1) % 3] for index in planted}
    labelled = replace(rows, rows=tuple(
        replace(row, triple=replace(row.triple, output=wrong.get(index, row.triple.output)))
        for index, row in enumerate(rows.rows)
    ))  # fmt: skip
    rng = np.random.default_rng(0)
    few_shot = [text if rng.random() < 0.8 else "no idea" for text in truth]
    for index in planted:
        few_shot[index] = truth[index]
    arms = [make_arm("zero_shot", ["?"] * 90), make_arm("few_shot_3", few_shot), make_arm("tuned", truth)]
    evidence = build(labelled, arms)
    assert [row["id"] for row in evidence["suspicious_rows"]] == [f"row-{index}" for index in planted]
    # They count as they are labelled, and are exported with the answer.
    assert evidence["arms"]["tuned"]["accuracy"] == 87 / 90
    write_results(tmp_path / "evidence.json", evidence, labelled, arms)
    lines = [json.loads(line) for line in (tmp_path / "suspicious.jsonl").read_text().splitlines()]
    assert [(line["output"], line["answer"]) for line in lines] == [(wrong[index], truth[index]) for index in planted]


@pytest.mark.parametrize(("is_harmful", "status"), [(True, "failed"), (False, "passed")])
def test_gate_reads_the_evidence(is_harmful: bool, status: str) -> None:
    rows = make_rows(120)
    answers = [row.output for row in rows.triples]
    tuned = list(np.random.default_rng(0).permutation(answers)) if is_harmful else answers
    evidence = build(rows, [draw_arm(rows, "few_shot_3", 0.7, 90, 1), make_arm("tuned", tuned)])
    assert evidence["verdict"]["outcome"] == ("prompt instead" if is_harmful else "tune")
    rules = judge(GateConfig(), read_gate_evidence(evidence), Standing(None, None, 0))
    assert {rule.name: rule.status for rule in rules}["prompting"] == status


def test_evidence_of_too_few_groups_is_refused_by_the_gate() -> None:
    rows = make_rows(60, 6)
    right = [row.output for row in rows.triples]
    evidence = build(rows, [make_arm("zero_shot", ["no"] * 60), make_arm("tuned", right)])
    assert evidence["comparisons"]["tuned - zero_shot"]["lower"] is None
    assert evidence["verdict"]["outcome"] == "not settled"
    rules = judge(GateConfig(), read_gate_evidence(evidence), Standing(None, None, 0))
    assert not all(rule.is_accepted for rule in rules)


def test_own_metric_is_shown_beside_the_others() -> None:
    rows = make_rows(60)
    scorer = Scorer((Measure.EXACT_MATCH,), {"mine:length": lambda answer, expected, row: float(len(answer))})
    arms = [make_arm("zero_shot", ["x"] * 60), make_arm("tuned", ["xyz"] * 59 + ["x"])]
    evidence = build(rows, arms, scorer=scorer)
    assert evidence["measures"] == ["exact_match", "mine:length"]
    assert evidence["arms"]["zero_shot"]["scores"] == {"mine:length": 1.0}
    assert evidence["score_comparisons"]["mine:length"]["tuned - zero_shot"]["estimate"] == pytest.approx(2 * 59 / 60)
