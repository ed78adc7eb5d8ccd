"""The gate: rules over the evidence of a version that decide whether the alias may move to it. Pure.

A rule whose input is missing, or has too few rows, is `cannot_be_judged`. That counts as failed unless the policy
allows it for this rule.
"""

from dataclasses import dataclass

from instruct_ray.config.gate import GateConfig, RuleName
from instruct_ray.registry.gate_evidence import CHAMPION, TUNED, Difference, GateEvidence, SliceDifference
from instruct_ray.tracking.decision_records import RuleResult, RuleStatus

EVALUATE_AGAIN = "run `instruct-ray evaluate` again in a new run"
# Slices named in a sentence, worst first.
MAX_SLICES_NAMED = 5


Numbers = dict[str, float | int | str]


@dataclass(frozen=True)
class Standing:
    """What stands in the registry while a version is judged."""

    champion: str | None
    """Number of the version under the alias, if it is another one."""
    champion_contract: str | None
    num_decisions: int
    """How many other versions were decided on with the same test rows."""


@dataclass(frozen=True)
class _Finding:
    status: RuleStatus
    sentence: str
    numbers: Numbers


def judge(policy: GateConfig, evidence: GateEvidence, standing: Standing) -> tuple[RuleResult, ...]:
    """Apply every rule of the policy that is not turned off."""
    findings: dict[RuleName, _Finding | None] = {
        "accuracy": judge_accuracy(policy, evidence),
        "prompting": judge_prompting(policy, evidence),
        "champion": judge_champion(policy, evidence, standing),
        "slices": judge_slices(policy, evidence),
        "contract": judge_contract(policy, evidence, standing),
        "general_skill": judge_general_skill(policy, evidence),
        "test_rows": judge_test_rows(policy, evidence, standing),
    }
    return tuple(
        RuleResult(
            name=name,
            status=finding.status,
            numbers=finding.numbers,
            sentence=finding.sentence,
            is_accepted=finding.status == "passed"
            or (finding.status == "cannot_be_judged" and name in policy.allow_unjudged),
        )
        for name, finding in findings.items()
        if finding is not None
    )


def summarize(rules: tuple[RuleResult, ...]) -> str:
    """The reason of a decision by the gate, in one line."""
    refused = [rule.sentence for rule in rules if not rule.is_accepted]
    if refused:
        return f"refused by {len(refused)} of {len(rules)} rules: {'; '.join(refused)}"
    unjudged = [rule.name for rule in rules if rule.status != "passed"]
    allowed = f" ({', '.join(unjudged)} could not be judged, which the policy allows)" if unjudged else ""
    return f"passed {len(rules)} rules{allowed}"


def judge_accuracy(policy: GateConfig, evidence: GateEvidence) -> _Finding | None:
    """The tuned model reaches the minimum accuracy."""
    if policy.min_accuracy is None:
        return None
    if evidence.tuned_arm not in evidence.accuracies:
        return _unjudged(f"the evidence has no arm {evidence.tuned_arm}; {EVALUATE_AGAIN}")
    accuracy, minimum = evidence.accuracies[evidence.tuned_arm], policy.min_accuracy
    numbers: Numbers = {"accuracy": accuracy, "min_accuracy": minimum}
    if accuracy >= minimum:
        return _Finding("passed", f"accuracy {accuracy:.3f} is at least {minimum:.3f}", numbers)
    return _Finding("failed", f"accuracy {accuracy:.3f} is below registry.gate.min_accuracy={minimum:.3f}", numbers)


def judge_prompting(policy: GateConfig, evidence: GateEvidence) -> _Finding | None:
    """Tuning beats the best prompting arm by more than the margin, and the others at all."""
    if not evidence.prompting_arms:
        return _unjudged(f"the evidence has no prompting arm; {EVALUATE_AGAIN}")
    worst: _Finding | None = None
    for place, arm in enumerate(evidence.prompting_arms):
        difference = evidence.comparisons.get(f"{evidence.tuned_arm} - {arm}")
        if difference is None:
            return _unjudged(f"the evidence does not compare {evidence.tuned_arm} with {arm}; {EVALUATE_AGAIN}")
        margin = policy.margin if place == 0 else min(policy.margin, 0.0)
        finding = _judge_above(difference, f"{evidence.tuned_arm} − {arm}", margin, "registry.gate.margin")
        if worst is None or (worst.status, finding.status) == ("passed", "failed"):
            worst = finding
    return worst


def judge_champion(policy: GateConfig, evidence: GateEvidence, standing: Standing) -> _Finding | None:
    """The version beats the standing champion by more than the margin."""
    if policy.champion_margin is None:
        return None
    if standing.champion is None:
        return _Finding("passed", "there is no other champion to compare with", {})
    difference = evidence.comparisons.get(f"{TUNED} - {CHAMPION}")
    if difference is None:
        return _unjudged(
            f"the evidence does not compare with the champion, version {standing.champion}; {EVALUATE_AGAIN}, or allow "
            "it by registry.gate.champion_margin=null"
        )
    if evidence.champion_version != standing.champion:
        compared = evidence.champion_version or "of unknown number"
        return _unjudged(
            f"the evidence compares with version {compared}, but the champion is version {standing.champion}; "
            f"{EVALUATE_AGAIN}"
        )
    name = f"tuned − champion (version {standing.champion})"
    return _judge_above(difference, name, policy.champion_margin, "registry.gate.champion_margin")


def judge_slices(policy: GateConfig, evidence: GateEvidence) -> _Finding | None:
    """No slice is worse than the best prompting arm by the limit."""
    if policy.max_slice_loss is None:
        return None
    if evidence.slices is None:
        return _unjudged(f"the evidence has no slices; {EVALUATE_AGAIN}")
    limit, worse, unjudged = policy.max_slice_loss, list[SliceDifference](), list[SliceDifference]()
    for one in evidence.slices:
        difference = one.difference
        if difference is None:
            unjudged.append(one)
        elif difference.upper < -limit or (one.has_enough_rows and difference.estimate <= -limit):
            worse.append(one)
        elif difference.lower <= -limit:
            unjudged.append(one)
    numbers: Numbers = {
        "num_slices": len(evidence.slices), "num_worse": len(worse), "num_unjudged": len(unjudged), "limit": limit,
    }  # fmt: skip
    if worse:
        return _Finding(
            "failed", f"slices worse by registry.gate.max_slice_loss={limit:g} or more: {_name_slices(worse)}", numbers
        )
    if unjudged:
        reason = f"{len(unjudged)} of {len(evidence.slices)} slices are too small to exclude a loss of {limit:g}"
        return _Finding("cannot_be_judged", f"{reason}: {_name_slices(unjudged)}", numbers)
    return _Finding("passed", f"none of {len(evidence.slices)} slices is worse by {limit:g}", numbers)


def judge_contract(policy: GateConfig, evidence: GateEvidence, standing: Standing) -> _Finding | None:
    """The version reads prompts as the champion does."""
    if policy.allow_contract_change:
        return None
    if standing.champion is None:
        return _Finding("passed", "there is no other champion whose contract could differ", {})
    if evidence.contract_digest is None or standing.champion_contract is None:
        return _unjudged("the contract of the version or of the champion is not recorded")
    numbers: Numbers = {"contract": evidence.contract_digest[:12], "champion_contract": standing.champion_contract[:12]}
    if evidence.contract_digest == standing.champion_contract:
        return _Finding("passed", f"the contract is that of version {standing.champion}", numbers)
    return _Finding(
        "failed",
        f"the contract {numbers['contract']} differs from that of version {standing.champion} "
        f"({numbers['champion_contract']}); allow it by registry.gate.allow_contract_change=true",
        numbers,
    )


def judge_general_skill(policy: GateConfig, evidence: GateEvidence) -> _Finding | None:
    """No benchmark falls by more than the limit."""
    if policy.max_skill_loss is None:
        return None
    limit = policy.max_skill_loss
    if not evidence.benchmarks:
        return _unjudged(
            "there are no benchmarks of the model; run `instruct-ray benchmark` before `instruct-ray register`, or set "
            "registry.gate.max_skill_loss=null"
        )
    lowers = {name: one.difference.lower for name, one in evidence.benchmarks.items() if one.difference is not None}
    if lowers:
        worst = min(lowers, key=lambda name: lowers[name])
        numbers: Numbers = {"benchmark": worst, "lower": lowers[worst], "limit": limit}
        if lowers[worst] <= -limit:
            return _Finding(
                "failed",
                f"{worst} may have fallen by {-lowers[worst]:.3f}, more than registry.gate.max_skill_loss={limit:g}",
                numbers,
            )
    for name, one in evidence.benchmarks.items():
        if one.problem is not None or one.difference is None:
            return _unjudged(f"benchmark {name}: {one.problem or 'there is no interval of tuned − base'}")
    return _Finding("passed", f"general skill falls by less than {limit:g} (worst: {worst})", numbers)


def judge_test_rows(policy: GateConfig, evidence: GateEvidence, standing: Standing) -> _Finding | None:
    """The test rows were not used for too many decisions."""
    if policy.max_decisions is None:
        return None
    if evidence.test_digest is None:
        return _unjudged(f"the evidence does not say which test rows it used; {EVALUATE_AGAIN}")
    number, limit = standing.num_decisions, policy.max_decisions
    numbers: Numbers = {"num_decisions": number, "max_decisions": limit}
    if number < limit:
        return _Finding("passed", f"the test rows decided on {number} other versions (fewer than {limit})", numbers)
    return _Finding(
        "failed",
        f"the test rows decided on {number} other versions, registry.gate.max_decisions={limit}; take fresh test rows",
        numbers,
    )


def _judge_above(difference: Difference, name: str, margin: float, option: str) -> _Finding:
    numbers: Numbers = {
        "estimate": difference.estimate, "lower": difference.lower, "upper": difference.upper,
        "num_rows": difference.num_rows, "margin": margin,
    }  # fmt: skip
    interval = (
        f"{name} is {difference.estimate:+.3f} [{difference.lower:+.3f}, {difference.upper:+.3f}] on "
        f"{difference.num_rows} rows"
    )
    if difference.lower > margin:
        return _Finding("passed", f"{interval}, above {margin:g}", numbers)
    return _Finding("failed", f"{interval}; its lower bound must be above {option}={margin:g}", numbers)


def _unjudged(sentence: str) -> _Finding:
    return _Finding("cannot_be_judged", sentence, {})


def _name_slices(slices: list[SliceDifference]) -> str:
    def estimate(one: SliceDifference) -> float:
        return 0.0 if one.difference is None else one.difference.estimate

    named = [
        f"{one.name} ({one.num_rows} rows, {estimate(one):+.3f})" if one.difference else f"{one.name} ({one.num_rows})"
        for one in sorted(slices, key=estimate)[:MAX_SLICES_NAMED]
    ]
    rest = len(slices) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
