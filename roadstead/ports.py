"""Free ports for processes that may come back to the same one.

They are not of those that the system gives to whoever asks for any. Such a one could be somebody else's while its owner
restarts, for instance that of a client which tries to connect to it, and so connects to itself.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from base.errors import ConfigError
from base.ids import entropy

__all__ = ["LOOPBACK", "free_ports"]

LOOPBACK = "127.0.0.1"
FIRST = 10_000
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_FIRST = 32_768
ROOM = 1_000
"""Ports that there must be before the first that the system gives."""
TRIES = 1_000


def free_ports(wanted: Sequence[int], host: str = LOOPBACK) -> list[int]:
    """Return a free port for each that is wanted: that one if it is free, else another; 0 wants none.

    Raises ConfigError when none is found.
    """
    dice, last = entropy(), _first_ephemeral() - 1
    found: list[int] = []
    with ExitStack() as held:  # to the end, so that none is found twice
        for first in wanted:
            for attempt in range(TRIES):
                port = first if attempt == 0 and first else dice.randint(FIRST, last)
                try:
                    held.enter_context(socket.socket()).bind((host, port))
                except OSError:
                    continue
                found.append(port)
                break
            else:
                raise ConfigError([f"no free port was found on {host} from {FIRST} to {last}"])
    return found


def _first_ephemeral() -> int:
    """Return the first port that the system gives to whoever asks for any."""
    try:
        first = int(EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_FIRST
    return first if first >= FIRST + ROOM else EPHEMERAL_FIRST
