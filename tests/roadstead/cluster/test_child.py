"""One process of a local cluster: ready when it says so, started again when it ends, stopped when told."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from base.clock import SystemClock
from base.errors import PeerUnavailable
from roadstead.cluster import child as module
from roadstead.cluster.child import Child, State

READY = 'print(\'{"name": "n", "url": "http://n", "pid": 1, "client_url": "http://c"}\', flush=True)'
STAY = "import time; time.sleep(60)"
WAIT_S = 10.0


class Kept:
    """A child, and what it wrote."""

    def __init__(self, program: str, *, probe: Callable[[], object] | None = None) -> None:
        self.lines: list[str] = []
        self.readies = 0
        self.child = Child(
            "n",
            "role",
            [sys.executable, "-c", program],
            clock=SystemClock(),
            log=lambda _name, line: self.lines.append(line),
            on_ready=self._ready,
            probe=probe,  # type: ignore[arg-type]
        )

    def _ready(self) -> None:
        self.readies += 1

    async def until(self, *states: State) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.child.state not in states:  # noqa: ASYNC110 - seen from outside, as people do
                await asyncio.sleep(0.005)


@asynccontextmanager
async def kept(program: str, **options: Callable[[], object]) -> AsyncIterator[Kept]:
    held = Kept(program, **options)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(held.child.run())
        try:
            yield held
        finally:
            running.cancel()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S", 0.05)


async def test_it_is_ready_when_it_says_so():
    """Every other line, of both outputs, is its log; the last one need not end."""
    program = f"import sys; print('one'); sys.stderr.write('two\\nthree'); sys.stderr.flush(); {READY}; {STAY}"
    async with kept(program) as held:
        await held.child.wait_ready()
        seen = held.child.seen()
        assert (seen.state, seen.url, seen.client_url, seen.restarts) == (State.READY, "http://n", "http://c", 0)
        assert seen.usage is not None
        assert seen.usage.resident_bytes > 1_000_000
        held.child.signal(signal.SIGKILL)
        await held.until(State.DEAD)
        assert sorted(held.lines) == ["ended with exit code -9", "one", "three", "two"]
        assert held.child.seen().usage is None


async def test_one_that_ends_is_started_again_if_it_shall_be():
    """After a moment; how often and why is told."""
    async with kept(f"{READY}; {STAY}") as held:
        held.child.restarts_itself = True
        await held.child.wait_ready()
        first = held.child.pid
        held.child.signal(signal.SIGKILL)
        await held.until(State.RESTARTING)
        with pytest.raises(PeerUnavailable, match="n does not run, it is restarting"):
            held.child.signal(signal.SIGKILL)
        await held.until(State.READY)
        seen = held.child.seen()
        assert (seen.restarts, seen.exit_code, held.readies) == (1, -9, 2)
        assert seen.pid != first


async def test_one_that_ends_before_it_is_ready_says_why():
    """Its exit code and its last words."""
    async with kept("import sys; print('first', file=sys.stderr); sys.exit('no port')") as held:
        with pytest.raises(PeerUnavailable, match="n ended with exit code 1: no port"):
            await held.child.wait_ready()


async def test_it_stops_and_starts_as_told():
    """A stopped one stays stopped, whatever its end was to mean; one that hangs is let go on first."""
    async with kept(f"{READY}; {STAY}") as held:
        held.child.restarts_itself = True
        await held.child.wait_ready()
        held.child.signal(signal.SIGSTOP)
        await held.child.stop()
        assert (held.child.state, held.child.pid, held.child.seen().exit_code) == (State.STOPPED, None, -15)
        await held.child.stop()  # again is nothing new
        await held.child.start()
        assert held.child.state is State.READY
        await held.child.start()  # neither is this
        assert held.readies == 2


async def test_one_that_waits_for_its_restart_can_be_stopped_and_started(monkeypatch: pytest.MonkeyPatch):
    """Without waiting for the moment."""
    monkeypatch.setattr(module, "RESTART_S", 60.0)
    async with kept(f"{READY}; {STAY}") as held:
        held.child.restarts_itself = True
        await held.child.wait_ready()
        held.child.signal(signal.SIGKILL)
        await held.until(State.RESTARTING)
        await held.child.stop()
        assert held.child.state is State.STOPPED
        await held.child.start()
        held.child.signal(signal.SIGKILL)
        await held.until(State.RESTARTING)
        await held.child.start()
        assert held.child.state is State.READY


async def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch):
    """After its time, which is told."""
    monkeypatch.setattr(module, "STOP_DEADLINE_S", 0.05)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    async with kept(f"{deaf}; {READY}; {STAY}") as held:
        await held.child.wait_ready()
        await held.child.stop()
        assert (held.child.state, held.child.seen().exit_code) == (State.STOPPED, -9)
        assert held.lines == ["did not end within 0.05 s, and is killed"]


async def test_one_that_does_not_say_when_it_is_ready_is_asked():
    """Its words are all log then."""
    asked = asyncio.Event()

    async def probe() -> str:
        await asked.wait()
        return "http://probed"

    async with kept(f"{READY}; {STAY}", probe=probe) as held:
        async with asyncio.timeout(WAIT_S):
            while not held.lines:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.005)
        assert held.child.state is State.STARTING
        asked.set()
        await held.child.wait_ready()
        assert held.child.seen().url == "http://probed"
        await held.child.stop()
        assert held.child.state is State.STOPPED


async def test_lines_without_an_end_are_cut(monkeypatch: pytest.MonkeyPatch):
    """Nothing that it writes is kept without a bound."""
    monkeypatch.setattr(module, "LINE_BYTES_MAX", 1_000)
    async with kept(f"import sys; sys.stderr.write('x' * 5000); sys.stderr.flush(); {READY}; {STAY}") as held:
        await held.child.wait_ready()
        async with asyncio.timeout(WAIT_S):
            while sum(map(len, held.lines)) < 4_000:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.005)
        assert max(map(len, held.lines)) <= 2_000
