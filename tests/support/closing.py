"""What a closed client still does: an SDK says goodbye in the background, after `disconnect` returned."""

from __future__ import annotations

import asyncio

__all__ = ["goodbyes_said"]

GOODBYE_S_MAX = 20.0
"""A socket whose other side says nothing is given up by the SDK within 10 s."""


async def goodbyes_said() -> None:
    """Wait until nothing goes on in this loop but the caller.

    For the end of a test whose servers are other processes. A loop that ends before leaves sockets open, whose
    warning fails whichever test runs when they are collected.
    """
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, waiting = await asyncio.wait(others, timeout=GOODBYE_S_MAX)
        assert not waiting, waiting
