"""Arguments that a test has no use for."""


def say_nothing(text: str) -> None:
    """A status that shows nothing."""


def no_start() -> None:
    """Starts no cluster: the fixture's is there."""


def never_start() -> None:
    """For what has to fail before a cluster starts."""
    raise AssertionError("Ray was to be started")
