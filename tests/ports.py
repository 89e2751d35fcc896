"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_768)  # above those of Ray's workers, below those that a system gives to outgoing connections


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at; nobody is given one by chance before its server has started."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
    return found


def free_port() -> int:
    return free_ports(1)[0]
