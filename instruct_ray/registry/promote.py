"""Decides about a version: by the gate, or by a person who overrides it."""

import json

from instruct_ray.config.gate import GateConfig
from instruct_ray.evidence.benchmarks.file import BENCHMARKS_FILE, BenchmarksFile, parse_benchmarks
from instruct_ray.registry.alias_moves import Champion, move_alias, refuse_version
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.gate import Standing, judge, summarize
from instruct_ray.registry.gate_evidence import GateEvidence, read_gate_evidence
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.upload import BENCHMARKS_TAG, EVIDENCE_FILE, EVIDENCE_TAG, TEST_ROWS_TAG
from instruct_ray.tracking.decision_records import Decision, DecisionKind
from instruct_ray.tracking.registry_reader import ModelVersion


def decide(
    registry: ModelRegistry, alias: str, version: ModelVersion, policy: GateConfig | None, kind: DecisionKind
) -> Decision:
    """Judge a version by its evidence; if it passes, the alias moves to it. Without a policy every version passes.

    Raises:
        InputError: the version has no evidence, or the evidence was changed.
        RunFailedError: the alias was moved meanwhile.
    """
    digest = version.tags.get(EVIDENCE_TAG)
    if policy is None:
        reason = Reason(
            kind, "no rules: registry.gate is null", evidence_digest=digest, test_digest=version.tags.get(TEST_ROWS_TAG)
        )
        return move_alias(registry, alias, version, reason)
    evidence = read_gate_evidence(
        json.loads(registry.read_file(version, EVIDENCE_FILE)), _read_benchmarks(registry, version)
    )
    champion = Champion(registry.aliases(version.name).get(alias))
    rules = judge(policy, evidence, _find_standing(registry, champion, version, evidence))
    is_accepted = all(rule.is_accepted for rule in rules)
    reason = Reason(kind, summarize(rules), is_accepted, rules, digest, evidence.test_digest)
    if not is_accepted:
        return refuse_version(registry, alias, version, reason)
    return move_alias(registry, alias, version, reason, champion)


def force(registry: ModelRegistry, alias: str, version: ModelVersion, why: str) -> Decision:
    """Point the alias to a version without judging it."""
    tags = version.tags
    reason = Reason("force", why, evidence_digest=tags.get(EVIDENCE_TAG), test_digest=tags.get(TEST_ROWS_TAG))
    return move_alias(registry, alias, version, reason)


def _read_benchmarks(registry: ModelRegistry, version: ModelVersion) -> BenchmarksFile | None:
    """The benchmarks of a version; None if it was registered without."""
    if BENCHMARKS_TAG not in version.tags:
        return None
    return parse_benchmarks(registry.read_file(version, BENCHMARKS_FILE), f"{version.reference}/{BENCHMARKS_FILE}")


def _find_standing(
    registry: ModelRegistry, under_alias: Champion, version: ModelVersion, evidence: GateEvidence
) -> Standing:
    number = under_alias.number
    champion = None if number is None or number == version.number else registry.get(version.name, number)
    num_decisions = 0
    if evidence.test_digest is not None:
        history = registry.history(version.name)
        num_decisions = history.num_other_evidence(evidence.test_digest, version.tags.get(EVIDENCE_TAG))
    return Standing(
        champion=None if champion is None else champion.number,
        champion_contract=None if champion is None else champion.tags.get("contract_digest"),
        num_decisions=num_decisions,
    )
