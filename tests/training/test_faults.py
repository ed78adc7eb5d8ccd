"""Runs broken in the ways of the fault matrix, those whose proof takes minutes. `tests.drill` breaks them, in a process
of its own since it starts and breaks clusters; here is what each must come to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
Rows = dict[str, dict[str, Any]]


def drilled(folder: Path, *names: str) -> Rows:
    """The rows, drilled in one process, which shares the uninterrupted run."""
    command = [sys.executable, "-m", "tests.drill", *names, "--json", str(folder / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (folder / "figures.json").is_file(), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads((folder / "figures.json").read_text())
    return {row["row"]: row for row in found}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """On a local cluster."""
    return drilled(tmp_path_factory.mktemp("local"), "F1", "F2", "F7", "F10", "F11", "F11b", "F14", "F15", "F16")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """On clusters of several nodes."""
    return drilled(tmp_path_factory.mktemp("nodes"), "F4", "F4b", "F4c")


def test_a_killed_worker_costs_no_more_steps_than_a_checkpoint_is_apart(local: Rows) -> None:
    """F1."""
    row = passed(local, "F1")
    assert row["is_bitwise"]
    assert row["wasted"] <= 8
    assert all(seconds <= 30 for seconds in row["seconds_to_next_step"])


def test_a_kill_anywhere_around_a_checkpoint_leaves_no_trace(local: Rows) -> None:
    """F2: four points in one run."""
    assert passed(local, "F2")["is_bitwise"]


def test_a_killed_driver_and_controller_continue_in_the_same_mlflow_run(local: Rows) -> None:
    """F7."""
    assert passed(local, "F7")["is_bitwise"]


def test_a_full_disk_is_told_and_outlived(local: Rows) -> None:
    """F10."""
    assert passed(local, "F10")["is_bitwise"]


def test_damaged_checkpoints_are_named_and_the_newest_whole_one_used(local: Rows) -> None:
    """F11."""
    row = passed(local, "F11")
    assert row["is_bitwise"]
    assert row["wasted"] == 0


def test_a_run_without_a_whole_checkpoint_says_so_and_does_not_begin_anew(local: Rows) -> None:
    """F11."""
    passed(local, "F11b")


def test_running_out_of_memory_ends_after_some_attempts_with_a_hint(local: Rows) -> None:
    """F14, simulated."""
    passed(local, "F14")


def test_a_run_continued_from_any_step_ends_in_the_same_bits(local: Rows) -> None:
    """F15, an epoch's boundary among them."""
    row = passed(local, "F15")
    assert row["is_bitwise"]
    assert row["wasted"] == 0


def test_a_run_ends_behind_its_last_checkpoint(local: Rows) -> None:
    """F16."""
    row = passed(local, "F16")
    assert row["is_bitwise"]
    assert row["wasted"] == 0


def test_a_lost_node_is_replaced_by_a_spare(nodes: Rows) -> None:
    """F4."""
    assert passed(nodes, "F4")["is_bitwise"]


def test_a_run_without_a_spare_node_says_what_it_waits_for(nodes: Rows) -> None:
    """F4."""
    row = passed(nodes, "F4b")
    assert row["is_bitwise"]
    assert "2 worker(s) of 2 CPU plus 1 CPU for Ray Data can't be placed on 2 node(s)" in row["says"]


def test_an_elastic_run_goes_on_with_fewer_workers_on_exactly_the_remaining_rows(nodes: Rows) -> None:
    """`train.num_workers: [1, 2]`; rows and losses are compared step by step in the drill."""
    passed(nodes, "F4c")


def passed(rows: Rows, name: str) -> dict[str, Any]:
    assert rows[name]["verdict"] != "FAILED", rows[name]["error"]
    return rows[name]
