"""The gate's decision about a run that is registered."""

import re
from pathlib import Path

import numpy as np
import pytest

from instruct_ray.cli.stages.register import report_registration
from instruct_ray.registry import register as register_module
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from tests.evidence.results.synthetic import build, draw_arm, make_arm, make_rows
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, Killed, kill_after, make_benchmark, make_evidence, make_run, write_benchmarks


def test_gate_decides_about_the_registered_version(storage: Path, registry: ModelRegistry) -> None:
    registration = register(make_run(storage, registry={"gate": {}}), ignore_status)
    assert registration.decision is not None
    assert (registration.decision.kind, registration.decision.is_accepted) == ("gate", True)
    assert [rule.name for rule in registration.decision.rules] == [
        "prompting", "champion", "slices", "contract", "test_rows",
    ]  # fmt: skip
    assert registration.decision.test_digest == "d" * 64
    assert registry.aliases(NAME) == {"champion": "1"}


def test_refused_version_stays_candidate_and_exits_with_3(
    storage: Path, registry: ModelRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    register(make_run(storage), ignore_status)
    # Tuned on shuffled labels: worse than prompting.
    harmful = make_run(storage, "harmful", make_evidence(tuned=0.2), registry={"gate": {"min_accuracy": 0.5}})
    for verb in ("registered", "already registered"):
        registration = register(harmful, ignore_status)
        with pytest.raises(SystemExit) as exit_info:
            report_registration(harmful, registration)
        assert exit_info.value.code == 3
        captured = capsys.readouterr()
        assert f"{verb}: models:/tiny/2" in captured.out
        assert "accuracy 0.200 is below registry.gate.min_accuracy=0.500" in captured.out
        assert "tuned − few_shot is -0.200 [-0.260, -0.140] on 246 rows" in captured.out
        assert captured.err.endswith("models:/tiny/2 is refused by the gate; champion stays version 1\n")
    assert registry.aliases(NAME) == {"champion": "1", "candidate": "2"}


def test_model_tuned_on_shuffled_labels_is_refused(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(120)
    shuffled = np.random.default_rng(0).permutation([row.output for row in rows.triples]).tolist()
    evidence = build(rows, [draw_arm(rows, "few_shot_3", 0.6, 90, 1), make_arm("tuned", shuffled)])
    assert evidence["verdict"]["outcome"] == "prompt instead"
    config = make_run(storage, "harmful", evidence, registry={"gate": {}})
    registration = register(config, ignore_status)
    with pytest.raises(SystemExit) as exit_info:
        report_registration(config, registration)
    assert exit_info.value.code == 3
    captured = capsys.readouterr()
    assert re.search(r"prompting +failed +tuned − few_shot_3 is -0\.\d+ \[", captured.out)
    assert captured.err.endswith("models:/tiny/1 is refused by the gate; champion stays unset\n")


@pytest.mark.parametrize("num_writes", [9, 10, 11])
def test_refused_registration_that_is_killed_is_completed_by_a_rerun(
    storage: Path, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    register(make_run(storage), ignore_status)
    worse = make_run(storage, "worse", make_evidence(tuned=0.41), registry={"gate": {}})

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # After the version, after `candidate`, after the record.
        kill_after(patch, num_writes)
        patch.setattr(register_module, "atomic_write_json", kill)
        with pytest.raises(Killed):
            register(worse, ignore_status)
    registration = register(worse, ignore_status)
    assert registration.decision is not None and not registration.decision.is_accepted
    assert registry.aliases(NAME) == {"champion": "1", "candidate": "2"}
    assert [one.to_version for one in registry.history(NAME).decisions] == ["1", "2"]


def test_worn_out_test_rows_are_counted_from_the_decisions(storage: Path) -> None:
    policy = {"max_decisions": 2, "champion_margin": None}
    statuses = []
    for number in range(3):
        run = make_run(storage, f"run-{number}", make_evidence(tuned=0.8 + number / 100), registry={"gate": policy})
        decision = register(run, ignore_status).decision
        assert decision is not None
        statuses.append([rule.status for rule in decision.rules if rule.name == "test_rows"])
    assert statuses == [["passed"], ["passed"], ["failed"]]


@pytest.mark.parametrize(
    ("benchmark", "status"),
    [({}, "cannot_be_judged"), ({"mmlu_dev": -0.01}, "passed"), ({"mmlu_dev": -0.04}, "failed")],
)
def test_gate_judges_general_skill(
    storage: Path, registry: ModelRegistry, benchmark: dict[str, float], status: str
) -> None:
    config = make_run(storage, registry={"gate": {"max_skill_loss": 0.05}})
    if benchmark:
        write_benchmarks(config, **{name: make_benchmark(estimate) for name, estimate in benchmark.items()})
    decision = register(config, ignore_status).decision
    assert decision is not None and decision.is_accepted == (status == "passed")
    [rule] = [rule for rule in decision.rules if rule.name == "general_skill"]
    assert rule.status == status
    assert ("run `instruct-ray benchmark`" in rule.sentence) == (status == "cannot_be_judged")
    assert registry.aliases(NAME) == ({"champion": "1"} if status == "passed" else {"candidate": "1"})
