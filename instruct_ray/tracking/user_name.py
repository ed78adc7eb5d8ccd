"""The user on whose behalf a process runs."""

import getpass
import os


def user_name() -> str:
    """The user's name, or number where it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
