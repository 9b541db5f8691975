"""The loop that runs everything: what the work returns and raises comes through."""

from __future__ import annotations

import asyncio
import gc

import pytest

from base import loop


async def work(result: object) -> object:
    task = asyncio.current_task()
    assert task is not None
    if isinstance(result, Exception):
        raise result
    if result == "cancelled":
        task.cancel()
        await asyncio.sleep(60)
    return result


def test_work_is_run_to_its_end():
    """Being cancelled from outside is an interrupt, as by Ctrl-C."""
    before = gc.get_threshold()
    try:
        assert loop.run(work(7)) == 7
        with pytest.raises(KeyError):
            loop.run(work(KeyError()))
        with pytest.raises(KeyboardInterrupt):
            loop.run(work("cancelled"))
    finally:
        gc.set_threshold(*before)
