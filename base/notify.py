"""Tells the service manager how the process is: systemd's notification protocol, which others speak too.

Without $NOTIFY_SOCKET nobody wants to know. Source: sd_notify(3).
"""

from __future__ import annotations

import os
import socket

from base.log import logger

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send a state such as `READY=1` or `STOPPING=1`. It never waits, and a manager that is away is no failure."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":  # a name without a file
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as manager:
            manager.sendto(state.encode(), address)
    except OSError as error:
        logger().warning("service_manager_not_told", state=state, error=str(error))
