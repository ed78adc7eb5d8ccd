"""The cases of the fault drill that must pass.

Those marked `slow` end like one of the others, or break less; they run before a release.
"""

import pytest

from tests.training.drill_reports import Reports, get_passed, run_drill

pytestmark = pytest.mark.timeout(1800)

# Seconds of a restart of the workers, over those of the first start of the run. Both grow on a slow machine.
MAX_RESTART_RATIO = 2.0


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of cases on a local cluster.

    F1, a killed worker, does less than F2 and is left to `make drill`.
    """
    return run_drill(tmp_path_factory.mktemp("local"), "F2", "F7", "F10", "F11")


@pytest.fixture(scope="module")
def slow_local(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of more cases on a local cluster."""
    return run_drill(tmp_path_factory.mktemp("slow-local"), "F10b", "F11b", "F14", "F15", "F16")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of cases on clusters of several nodes.

    F4, a lost node with a spare one, does less than F4b and is left to `make drill`; F4c is in test_elastic.py.
    """
    return run_drill(tmp_path_factory.mktemp("nodes"), "F4b")


@pytest.mark.faults
def test_killed_workers_cost_at_most_the_steps_since_the_last_checkpoint(local: Reports) -> None:
    """Four kills in one run, one before the first checkpoint and three around checkpoints."""
    report = get_passed(local, "F2")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] <= 4 * 8
    longest = max(report["seconds_to_next_step"])
    assert longest <= MAX_RESTART_RATIO * report["seconds_to_first_step"], report


@pytest.mark.faults
def test_killed_driver_and_controller_resume_in_the_same_mlflow_run(local: Reports) -> None:
    assert get_passed(local, "F7")["is_bitwise_equal"]


@pytest.mark.faults
def test_full_disk_is_reported_and_ends_no_step(local: Reports) -> None:
    """A small file system that is filled to the last byte; the run may not restart."""
    report = get_passed(local, "F10")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


@pytest.mark.slow
def test_run_that_ends_on_a_full_disk_fails_with_one_line_and_is_resumed(slow_local: Reports) -> None:
    assert get_passed(slow_local, "F10b")["is_bitwise_equal"]


@pytest.mark.faults
def test_corrupted_checkpoints_are_named_and_the_newest_intact_one_is_used(local: Reports) -> None:
    report = get_passed(local, "F11")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


@pytest.mark.slow
def test_run_without_an_intact_checkpoint_is_refused(slow_local: Reports) -> None:
    """It does not restart from scratch."""
    get_passed(slow_local, "F11b")


@pytest.mark.slow
def test_out_of_memory_fails_after_the_allowed_attempts_with_a_hint(slow_local: Reports) -> None:
    """The error is simulated."""
    get_passed(slow_local, "F14")


@pytest.mark.slow
def test_run_resumed_from_any_step_is_bitwise_equal(slow_local: Reports) -> None:
    """One of the steps is the end of an epoch."""
    report = get_passed(slow_local, "F15")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


@pytest.mark.slow
def test_run_ends_only_after_its_last_checkpoint_is_written(slow_local: Reports) -> None:
    report = get_passed(slow_local, "F16")
    assert report["is_bitwise_equal"]
    assert report["num_redone"] == 0


@pytest.mark.slow
def test_lost_node_is_replaced_and_the_run_reports_what_it_waits_for(nodes: Reports) -> None:
    report = get_passed(nodes, "F4b")
    assert report["is_bitwise_equal"]
    assert "2 worker(s) of 2 CPU plus 1 CPU for Ray Data can't be placed on 2 node(s)" in report["note"]
