"""Callbacks that tests pass where they don't need a real one."""


def ignore_status(text: str) -> None:
    """A `status` callback that shows nothing."""


def ray_is_running() -> None:
    """A `start_ray` callback for tests whose fixture has started Ray."""


def fail_if_ray_starts() -> None:
    """A `start_ray` callback for code that must fail before it starts Ray."""
    raise AssertionError("Ray was started")
