"""One process of a local cluster: started, watched, started again a second after its end, stopped.

It ends with its supervisor, however that ends: Linux kills it then (`PR_SET_PDEATHSIG`), so that nothing is left that
nobody looks after.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from signal import Signals

import msgspec

from base.clock import Clock
from base.errors import PeerUnavailable
from roadstead.cluster.usage import Usage, usage_of

__all__ = ["Child", "Seen", "State"]

RESTART_S = 1.0
STOP_DEADLINE_S = 40.0
"""Longer than an access node may take to send its clients elsewhere."""
LINE_BYTES_MAX = 64_000
LAST_LINES = 20
PR_SET_PDEATHSIG = 1


class State(StrEnum):
    """What a process does, in the words of `cluster ps`."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """It ended by itself, and is started again soon."""
    STOPPED = "stopped"
    """As told."""
    DEAD = "dead"
    """It ended by itself, and nobody starts it again."""


class Seen(msgspec.Struct, frozen=True):
    """A process as `cluster ps` shows it. `url` and `client_url` are empty until it was ready once."""

    name: str
    role: str
    state: State
    pid: int | None
    restarts: int
    exit_code: int | None
    """Of its last end; negative: the signal that ended it. None before the first."""
    uptime_s: float
    url: str = ""
    client_url: str | None = None
    usage: Usage | None = None


class _Said(msgspec.Struct, frozen=True):
    """The line by which a node says that it is ready."""

    name: str
    url: str
    pid: int
    client_url: str | None = None


class Child:
    """See the module. `run` belongs into a TaskGroup."""

    def __init__(
        self,
        name: str,
        role: str,
        command: Sequence[str],
        *,
        clock: Clock,
        log: Callable[[str, str], None],
        on_ready: Callable[[], None],
        probe: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: of the node.
            role: what it does.
            command: what to run. It says that it is ready by one line of JSON on standard output.
            clock: for how long it has been running.
            log: gets its name and every other line that it writes.
            on_ready: called each time when it has become ready.
            probe: for what does not say that it is ready: returns its URL as soon as it is.
        """
        self.name = name
        self.role = role
        self.restarts_itself = False
        """Whether it is started again when it ended by itself."""
        self._command = command
        self._clock = clock
        self._log = log
        self._on_ready = on_ready
        self._probe = probe
        self._process: asyncio.subprocess.Process | None = None
        self._said: _Said | None = None
        self._state = State.STARTING
        self._is_wanted = True
        self._changed = asyncio.Event()
        self._restarts = 0
        self._exit_code: int | None = None
        self._since = clock.monotonic()
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def state(self) -> State:
        """What it does now."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Its process id, None while it does not run."""
        return self._process.pid if self._process is not None else None

    def seen(self) -> Seen:
        """Return how it is."""
        said = self._said
        return Seen(
            name=self.name,
            role=self.role,
            state=self._state,
            pid=self.pid,
            restarts=self._restarts,
            exit_code=self._exit_code,
            uptime_s=(self._clock.monotonic() - self._since) / 1000 if self._process is not None else 0.0,
            url=said.url if said is not None else "",
            client_url=said.client_url if said is not None else None,
            usage=usage_of(self.pid) if self.pid is not None else None,
        )

    async def run(self) -> None:
        """Keep it running until cancelled; it is killed then."""
        while True:
            await self._rest()
            await self._live()
            self._become(self._after())

    async def wait_ready(self) -> None:
        """Return when it is ready. Raises PeerUnavailable when it ended instead, with the last thing that it said."""
        while self._state is not State.READY:
            if self._state in {State.DEAD, State.STOPPED, State.RESTARTING}:
                last = f": {self._last[-1]}" if self._last else ""
                raise PeerUnavailable(f"{self.name} ended with exit code {self._exit_code}{last}")
            await self._wait_changed(None)

    def signal(self, number: Signals) -> None:
        """Send it a signal. Raises PeerUnavailable when it does not run."""
        if not self._send(number):
            raise PeerUnavailable(f"{self.name} does not run, it is {self._state}")

    async def start(self) -> None:
        """Start it if it does not run, and wait until it is ready; raises as `wait_ready`."""
        self._is_wanted = True
        if self._process is None:
            self._become(State.STARTING)
        await self.wait_ready()

    async def stop(self) -> None:
        """End it in an orderly way, or by force when that takes too long; it stays stopped."""
        self._is_wanted = False
        if self._process is None:
            self._become(State.STOPPED)
        else:
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)  # it may have been stopped
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                while self._state is not State.STOPPED:
                    await self._wait_changed(None)
        except TimeoutError:
            self._log(self.name, f"did not end within {STOP_DEADLINE_S:g} s, and is killed")
            self._send(signal.SIGKILL)
            while self._state is not State.STOPPED:
                await self._wait_changed(None)

    # ---------------------------------------------------------------- inside

    def _send(self, number: Signals) -> bool:
        """Send it a signal; return False when it does not run, or has just ended."""
        if self._process is None:
            return False
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def _rest(self) -> None:
        """Return when it is to be started."""
        if self._state is State.RESTARTING:
            await self._wait_changed(RESTART_S)
            self._restarts += self._is_wanted
        while self._state in {State.STOPPED, State.DEAD}:
            await self._wait_changed(None)

    def _after(self) -> State:
        """What it is when it has ended."""
        if not self._is_wanted:
            return State.STOPPED
        return State.RESTARTING if self.restarts_itself else State.DEAD

    async def _live(self) -> None:
        """Start it, and return when it has ended."""
        self._become(State.STARTING)
        self._since = self._clock.monotonic()
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the supervisor, which ends all in order
            preexec_fn=_tie_to(os.getpid()),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(process.stdout, self._spoke))
                tasks.create_task(self._read(process.stderr, self._wrote))
                probing = tasks.create_task(self._probed()) if self._probe is not None else None
                await process.wait()
                if probing is not None:
                    probing.cancel()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._process = None
            self._exit_code = process.returncode
        if self._is_wanted:
            self._log(self.name, f"ended with exit code {self._exit_code}")

    async def _read(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        async for line in _lines(stream):
            take(line)

    def _spoke(self, line: str) -> None:
        if self._probe is None:
            try:
                self._ready(msgspec.json.decode(line, type=_Said))
            except msgspec.MsgspecError:
                pass
            else:
                return
        self._wrote(line)

    def _wrote(self, line: str) -> None:
        self._last.append(line)
        self._log(self.name, line)

    async def _probed(self) -> None:
        assert self._probe is not None
        assert self._process is not None
        url = await self._probe()
        self._ready(_Said(self.name, url, self._process.pid))

    def _ready(self, said: _Said) -> None:
        self._said = said
        self._become(State.READY)
        self._on_ready()

    def _become(self, state: State) -> None:
        self._state = state
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_changed(self, wait_s: float | None) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            pass


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while chunk := await stream.read(LINE_BYTES_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        if len(rest) > LINE_BYTES_MAX:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


def _tie_to(parent: int) -> Callable[[], None]:
    """Return what a new process does first: have itself killed when its parent ends. Source: prctl(2)."""
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            os._exit(1)

    return tie
