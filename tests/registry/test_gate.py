"""Each rule of the gate: passed, failed, cannot be judged, with its numbers."""

from typing import Any

import pytest

from instruct_ray.config.gate import GateConfig
from instruct_ray.evidence.benchmarks.file import BenchmarksFile
from instruct_ray.registry.gate import Standing, judge, summarize
from instruct_ray.registry.gate_evidence import read_gate_evidence
from instruct_ray.tracking.decision_records import RuleResult
from tests.registry.fake_runs import make_benchmark, make_benchmarks, make_comparison, make_contract, make_evidence

FIRST = Standing(champion=None, champion_contract=None, num_decisions=0)
SECOND = Standing(champion="1", champion_contract=make_contract().digest, num_decisions=0)
UNJUDGED = "cannot_be_judged"


def judge_all(
    evidence: dict[str, Any] | None = None, standing: Standing = FIRST, **policy: Any
) -> dict[str, RuleResult]:
    rules = judge(GateConfig(**policy), read_gate_evidence(evidence or make_evidence()), standing)
    return {rule.name: rule for rule in rules}


def judge_skill(**benchmarks: dict[str, Any]) -> RuleResult:
    content = BenchmarksFile.model_validate(make_benchmarks(**benchmarks))
    rules = judge(GateConfig(max_skill_loss=0.05), read_gate_evidence(make_evidence(), content), FIRST)
    return next(rule for rule in rules if rule.name == "general_skill")


def with_champion(estimate: float, version: str | None = "1") -> dict[str, Any]:
    evidence = make_evidence(champion_version=version)
    evidence["comparisons"]["tuned - champion"] = make_comparison(estimate, 0.03)
    return evidence


def make_slices(*estimates: float, half_width: float = 0.02) -> dict[str, Any]:
    slices = [
        {
            "kind": "label", "name": f"L{number}", "num_rows": 50, "judged": True,
            "comparison": make_comparison(estimate, half_width, 50),
        }
        for number, estimate in enumerate(estimates)
    ]  # fmt: skip
    return make_evidence(slices=slices)


def test_demo_passes_by_default() -> None:
    rules = judge_all()
    assert all(rule.is_accepted for rule in rules.values())
    assert {name: rule.status for name, rule in rules.items()} == {
        "prompting": "passed",
        "champion": "passed",
        "slices": UNJUDGED,
        "contract": "passed",
        "test_rows": "passed",
    }
    assert summarize(tuple(rules.values())) == ("passed 5 rules (slices could not be judged, which the policy allows)")


def test_evidence_of_an_earlier_version_passes_nothing_silently() -> None:
    old = make_evidence(comparisons=None, slices=None, test_digest=None)
    rules = judge_all(old, SECOND, min_accuracy=0.8, max_skill_loss=0.02, allow_unjudged=())
    assert {name for name, rule in rules.items() if rule.status == UNJUDGED} == {
        "prompting", "champion", "slices", "general_skill", "test_rows",
    }  # fmt: skip
    assert not any(rule.is_accepted for rule in rules.values() if rule.status == UNJUDGED)
    for rule in rules.values():
        advice = "set registry.gate" if rule.name == "general_skill" else "run `instruct-ray evaluate` again"
        assert rule.status == "passed" or advice in rule.sentence


def test_policy_may_allow_what_cannot_be_judged_but_not_what_failed() -> None:
    old = make_evidence(comparisons=None)
    rule = judge_all(old, allow_unjudged=("prompting",))["prompting"]
    assert (rule.status, rule.is_accepted) == (UNJUDGED, True)
    rule = judge_all(make_evidence(tuned=0.41), allow_unjudged=("prompting",))["prompting"]
    assert (rule.status, rule.is_accepted) == ("failed", False)


@pytest.mark.parametrize(("minimum", "status"), [(0.87, "passed"), (0.88, "failed")])
def test_minimum_accuracy(minimum: float, status: str) -> None:
    rule = judge_all(min_accuracy=minimum)["accuracy"]
    assert (rule.status, rule.numbers) == (status, {"accuracy": 0.87, "min_accuracy": minimum})
    assert "accuracy" not in judge_all()


@pytest.mark.parametrize(
    ("tuned", "margin", "status"),
    [
        (0.47, 0.0, "passed"),
        (0.45, 0.0, "failed"),
        (0.5, 0.05, "failed"),
        (0.52, 0.05, "passed"),
        (0.4, -0.1, "passed"),
    ],
)
def test_interval_above_the_best_prompting_arm(tuned: float, margin: float, status: str) -> None:
    rule = judge_all(make_evidence(tuned=tuned), margin=margin)["prompting"]
    assert rule.status == status
    assert rule.numbers["estimate"] == pytest.approx(tuned - 0.40)
    assert rule.numbers["num_rows"] == 246
    assert f"{tuned - 0.4:+.3f} [{tuned - 0.46:+.3f}, {tuned - 0.34:+.3f}] on 246 rows" in rule.sentence


def test_every_prompting_arm_must_be_beaten() -> None:
    evidence = make_evidence()
    evidence["comparisons"]["tuned - zero_shot"] = make_comparison(0.02)
    rule = judge_all(evidence)["prompting"]
    assert rule.status == "failed" and "tuned − zero_shot" in rule.sentence
    del evidence["comparisons"]["tuned - zero_shot"]
    assert "does not compare tuned with zero_shot" in judge_all(evidence)["prompting"].sentence


def test_another_model_need_not_be_beaten() -> None:
    evidence = make_evidence()
    evidence["arms"]["large-rival"] = {"accuracy": 0.95}
    assert judge_all(evidence)["prompting"].status == "passed"


@pytest.mark.parametrize(
    ("estimate", "margin", "status"), [(0.05, 0.0, "passed"), (0.02, 0.0, "failed"), (0.0, -0.05, "passed")]
)
def test_interval_above_the_champion(estimate: float, margin: float, status: str) -> None:
    rule = judge_all(with_champion(estimate), SECOND, champion_margin=margin)["champion"]
    assert rule.status == status
    assert "tuned − champion (version 1)" in rule.sentence


def test_champion_that_was_not_compared_with_cannot_be_judged() -> None:
    rule = judge_all(make_evidence(), SECOND)["champion"]
    assert (rule.status, rule.is_accepted) == (UNJUDGED, False)
    for version in ("7", None):
        rule = judge_all(with_champion(0.5, version), SECOND)["champion"]
        assert (rule.status, rule.is_accepted) == (UNJUDGED, False)
        assert "but the champion is version 1" in rule.sentence
    assert "champion" not in judge_all(make_evidence(), SECOND, champion_margin=None)


@pytest.mark.parametrize(
    ("estimates", "half_width", "status"),
    [
        ((0.3, 0.0, -0.05), 0.02, "passed"),
        ((0.3, -0.05), 0.06, UNJUDGED),
        ((0.3, -0.05, -0.12), 0.06, "failed"),
        ((0.3, -0.12), 0.01, "failed"),
    ],
)
def test_no_slice_is_worse(estimates: tuple[float, ...], half_width: float, status: str) -> None:
    rule = judge_all(make_slices(*estimates, half_width=half_width), max_slice_loss=0.1)["slices"]
    assert rule.status == status
    assert rule.numbers["num_slices"] == len(estimates)
    if status == "failed":
        assert f"label=L{len(estimates) - 1} (50 rows, -0.120)" in rule.sentence


def test_unjudged_slices_are_refused_by_a_strict_policy() -> None:
    rule = judge_all(allow_unjudged=())["slices"]
    assert (rule.status, rule.is_accepted) == (UNJUDGED, False)
    assert "1 of 2 slices are too small to exclude a loss of 0.1: label=Low (4)" in rule.sentence


@pytest.mark.parametrize(
    ("estimate", "status"), [(-0.25, "failed"), (-0.2, UNJUDGED), (0.0, UNJUDGED), (0.3, "passed")]
)
def test_slice_of_few_rows_fails_only_by_a_loss_that_its_interval_shows(estimate: float, status: str) -> None:
    comparison = make_comparison(estimate, 0.13, 40)
    part = {"kind": "label", "name": "rare", "num_rows": 40, "judged": False, "comparison": comparison}
    rule = judge_all(make_evidence(slices=[part]), max_slice_loss=0.1)["slices"]
    assert rule.status == status


def test_long_list_of_slices_is_cut() -> None:
    rule = judge_all(make_slices(*[-0.2] * 8))["slices"]
    assert rule.sentence.endswith("and 3 more")


def test_contract_must_be_that_of_the_champion() -> None:
    assert judge_all(with_champion(0.1), SECOND)["contract"].status == "passed"
    other = Standing("1", make_contract("Be brief.").digest, 0)
    rule = judge_all(with_champion(0.1), other)["contract"]
    assert rule.status == "failed" and "registry.gate.allow_contract_change=true" in rule.sentence
    assert "contract" not in judge_all(with_champion(0.1), other, allow_contract_change=True)
    assert judge_all(make_evidence(contract_digest=None), SECOND)["contract"].status == UNJUDGED


@pytest.mark.parametrize(("estimate", "status"), [(-0.01, "passed"), (-0.04, "failed")])
def test_general_skill_falls_by_less_than_the_limit(estimate: float, status: str) -> None:
    rule = judge_skill(arc=make_benchmark(0.1), mmlu=make_benchmark(estimate))
    assert (rule.status, rule.numbers["benchmark"]) == (status, "mmlu")


def test_benchmark_that_shows_no_loss_cannot_be_judged() -> None:
    few = make_benchmark(0.0)
    few["comparison"] |= {"lower": None, "upper": None}
    rule = judge_skill(mmlu=few)
    assert (rule.status, rule.sentence) == (UNJUDGED, "benchmark mmlu: there is no interval of tuned − base")
    guessed = make_benchmark(0.0, problem="the base model guesses")
    rule = judge_skill(arc=make_benchmark(0.1), mmlu=guessed)
    assert (rule.status, rule.sentence) == (UNJUDGED, "benchmark mmlu: the base model guesses")
    # A loss that another benchmark does not exclude counts all the same.
    assert judge_skill(arc=make_benchmark(-0.1), mmlu=guessed).status == "failed"
    rule = judge_all(max_skill_loss=0.05)["general_skill"]
    assert rule.status == UNJUDGED and "run `instruct-ray benchmark`" in rule.sentence


@pytest.mark.parametrize(("number", "status"), [(2, "passed"), (3, "failed")])
def test_test_rows_wear_out(number: int, status: str) -> None:
    rule = judge_all(standing=Standing(None, None, number), max_decisions=3)["test_rows"]
    assert rule.status == status
    assert f"the test rows decided on {number} other versions" in rule.sentence


def test_refusal_names_every_failed_rule_with_its_numbers() -> None:
    rules = judge_all(make_evidence(tuned=0.41), min_accuracy=0.5)
    reason = summarize(tuple(rules.values()))
    assert reason.startswith("refused by 2 of 6 rules: accuracy 0.410 is below registry.gate.min_accuracy=0.500; ")
    assert "tuned − few_shot is +0.010 [-0.050, +0.070] on 246 rows; its lower bound must be above" in reason
