"""Ports of this machine that nobody uses."""

import socket


def find_free_ports(number: int, address: str = "127.0.0.1") -> list[int]:
    """Find TCP ports of an address of this machine that are free now, all different."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
