"""Arguments that a test has no use for."""


def say_nothing(text: str) -> None:
    """A status that shows nothing."""


def no_start() -> None:
    """Starts no cluster: the fixture's is there."""
