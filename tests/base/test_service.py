"""How a process lives: services start in order and end in reverse, whatever comes in between."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from base.errors import DeadlineExceeded, PeerUnavailable
from base.node import Node
from base.service import run_services, unless_stopped


class Part:
    """A service that writes down what becomes of it."""

    def __init__(self, name: str, told: list[str], *, starts: bool = True, fails: Exception | None = None) -> None:
        self.node = cast("Node", SimpleNamespace(site=SimpleNamespace(name=name), drain_deadline_s=1.0))
        self._told = told
        self._starts = starts
        self._fails = fails

    def _tell(self, what: str) -> None:
        self._told.append(f"{self.node.site.name} {what}")

    async def start(self) -> None:
        if not self._starts:
            await asyncio.Event().wait()
        self._tell("started")

    async def run(self) -> None:
        if self._fails is not None:
            raise self._fails
        try:
            await asyncio.Event().wait()
        finally:
            self._tell("ended")

    async def drain(self) -> None:
        self._tell("drained")

    async def stop(self) -> None:
        self._tell("stopped")


LIFE = ["a started", "b started", "ready", "b drained", "a drained", "a ended", "b ended", "b stopped", "a stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_in_reverse_order(number: signal.Signals):
    """Drained first, all of them; then their background work ends; then they stop."""
    told: list[str] = []

    def ready() -> None:
        told.append("ready")
        os.kill(os.getpid(), number)

    await run_services([Part("a", told), Part("b", told)], on_ready=ready)
    assert told == LIFE


async def test_a_stop_of_ones_own_does_the_same():
    """Then the signals are whoever gave it's."""
    told: list[str] = []
    stop = asyncio.Event()
    before = signal.getsignal(signal.SIGTERM)

    def ready() -> None:
        told.append("ready")
        assert signal.getsignal(signal.SIGTERM) == before
        stop.set()

    await run_services([Part("a", told), Part("b", told)], on_ready=ready, stop=stop)
    assert told == LIFE


async def test_a_stop_while_they_start_ends_the_start():
    """Whoever was not ready need not drain; all that had begun stop."""
    told: list[str] = []
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    parts = [Part("a", told), Part("b", told, starts=False), Part("c", told)]
    await run_services(parts, on_ready=lambda: told.append("ready"), stop=stop)
    assert told == ["a started", "a ended", "b ended", "b stopped", "a stopped"]


async def test_a_start_that_takes_too_long_is_one_error():
    """It names who was late."""
    told: list[str] = []
    with pytest.raises(DeadlineExceeded, match=r"b was not ready within 0\.01 s"):
        await run_services(
            [Part("a", told), Part("b", told, starts=False)],
            on_ready=lambda: told.append("ready"),
            stop=asyncio.Event(),
            start_deadline_s=0.01,
        )
    assert told[-2:] == ["b stopped", "a stopped"]


async def test_the_failure_of_one_is_raised_as_it_is():
    """Not in a group, and the others are stopped; what is a bug comes as the group."""
    told: list[str] = []
    failing = Part("b", told, fails=PeerUnavailable("gone"))
    with pytest.raises(PeerUnavailable, match="gone"):
        await run_services([Part("a", told), failing], on_ready=lambda: None, stop=asyncio.Event())
    assert told[-2:] == ["b stopped", "a stopped"]
    with pytest.raises(ExceptionGroup):
        await run_services([Part("a", told, fails=ValueError())], on_ready=lambda: None, stop=asyncio.Event())


async def test_work_is_done_unless_it_is_stopped_or_late():
    """What it returns and raises comes through; a stop cancels it; a deadline is a TimeoutError."""
    stop = asyncio.Event()

    async def work(result: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    assert await unless_stopped(work(7), stop) == 7
    with pytest.raises(KeyError):
        await unless_stopped(work(KeyError()), stop)
    with pytest.raises(TimeoutError):
        await unless_stopped(asyncio.sleep(60), stop, deadline_s=0.01)
    stop.set()
    assert await unless_stopped(asyncio.sleep(60, "done"), stop) is None
