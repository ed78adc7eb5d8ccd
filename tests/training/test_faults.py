"""The cases of the fault drill that must pass.

`tests.drill` runs them in its own process, since it starts and breaks Ray clusters.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
# Case -> its report; see tests.drill.harness.CaseResult.
Reports = dict[str, dict[str, Any]]


def run_drill(folder: Path, *cases: str) -> Reports:
    """Run cases in one process, so that they share the uninterrupted run."""
    report_file = folder / "reports.json"
    command = [sys.executable, "-m", "tests.drill", *cases, "--json", str(report_file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report_file.is_file(), result.stdout + result.stderr
    reports: list[dict[str, Any]] = json.loads(report_file.read_text())
    return {report["case"]: report for report in reports}


def get_passed(reports: Reports, case: str) -> dict[str, Any]:
    """The report of a case, which must have passed."""
    assert reports[case]["verdict"] != "FAILED", reports[case]["error"]
    return reports[case]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of cases on a local cluster."""
    return run_drill(tmp_path_factory.mktemp("local"), "F1", "F2", "F7", "F10", "F11", "F11b", "F14", "F15", "F16")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of cases on clusters of several nodes."""
    return run_drill(tmp_path_factory.mktemp("nodes"), "F4", "F4b", "F4c")


def test_killed_worker_costs_at_most_the_steps_since_the_last_checkpoint(local: Reports) -> None:
    report = get_passed(local, "F1")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] <= 8
    assert all(seconds <= 30 for seconds in report["seconds_to_next_step"])


def test_kills_around_a_checkpoint_change_nothing(local: Reports) -> None:
    """Four points in one run."""
    assert get_passed(local, "F2")["is_bitwise_equal"]


def test_killed_driver_and_controller_resume_in_the_same_mlflow_run(local: Reports) -> None:
    assert get_passed(local, "F7")["is_bitwise_equal"]


def test_full_disk_is_reported_and_training_finishes(local: Reports) -> None:
    assert get_passed(local, "F10")["is_bitwise_equal"]


def test_corrupted_checkpoints_are_named_and_the_newest_intact_one_is_used(local: Reports) -> None:
    report = get_passed(local, "F11")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


def test_run_without_an_intact_checkpoint_is_refused(local: Reports) -> None:
    """It does not restart from scratch."""
    get_passed(local, "F11b")


def test_out_of_memory_fails_after_the_allowed_attempts_with_a_hint(local: Reports) -> None:
    """The error is simulated."""
    get_passed(local, "F14")


def test_run_resumed_from_any_step_is_bitwise_equal(local: Reports) -> None:
    """One of the steps is the end of an epoch."""
    report = get_passed(local, "F15")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


def test_run_ends_only_after_its_last_checkpoint_is_written(local: Reports) -> None:
    report = get_passed(local, "F16")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


def test_lost_node_is_replaced_by_a_spare_node(nodes: Reports) -> None:
    assert get_passed(nodes, "F4")["is_bitwise_equal"]


def test_run_without_a_spare_node_reports_what_it_waits_for(nodes: Reports) -> None:
    report = get_passed(nodes, "F4b")
    assert report["is_bitwise_equal"]
    assert "2 worker(s) of 2 CPU plus 1 CPU for Ray Data can't be placed on 2 node(s)" in report["note"]


def test_elastic_run_resumes_with_fewer_workers_on_the_remaining_rows(nodes: Reports) -> None:
    """`train.num_workers: [1, 2]`; the drill compares rows and losses of every step."""
    get_passed(nodes, "F4c")
