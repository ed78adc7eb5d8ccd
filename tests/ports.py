"""Ports of this machine that nobody uses."""

import socket


def find_free_port() -> int:
    """Find a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
