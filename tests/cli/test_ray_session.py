"""A local Ray cluster that does not start."""

import pytest
import ray
from ray._private import services

from instruct_ray.cli.ray_session import init_ray
from instruct_ray.errors import RunFailedError


@pytest.mark.slow
def test_node_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: Ray waits for 30 seconds."""
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def get_node(*_: object) -> None:
        raise RuntimeError("no node info")

    monkeypatch.setattr(services, "get_node", get_node)
    with pytest.raises(RunFailedError, match=r"^Ray did not start in time, which happens on a busy machine"):
        init_ray()
