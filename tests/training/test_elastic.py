"""An elastic run on a cluster that loses a node."""

from pathlib import Path

import pytest

from tests.training.drill_reports import get_passed, run_drill


# Starts a cluster of several nodes and trains twice: minutes.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_elastic_run_resumes_with_fewer_workers_on_the_remaining_rows(tmp_path: Path) -> None:
    """`train.num_workers: [1, 2]`; the drill compares rows and losses of every step."""
    get_passed(run_drill(tmp_path, "F4c"), "F4c")
