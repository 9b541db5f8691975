"""Which event loop runs everything: uvloop where it exists, which costs less CPU per socket event.

The garbage collector looks for cycles more rarely than by default, every 700 new objects: what lives long here is in
large dictionaries and hardly ever in cycles, and looking took an eighth of the CPU of a busy status node.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["GC_THRESHOLDS", "run"]

GC_THRESHOLDS = (20_000, 20, 20)
"""New objects before the youngest are looked through, about a millisecond; and how often the older ones are beside."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as `asyncio.run` does. Raises KeyboardInterrupt when it is cancelled from outside."""
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            return runner.run(main)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None  # by a second signal


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not available on every platform; the standard loop does the same, slower
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
