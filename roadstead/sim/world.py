"""Simulated time: which actor runs next, on what, and who crashes meanwhile.

A heap of (true time, sequence, happening). The world takes the first, lets one actor act on it, and then asks every
checker to look at the whole cluster. No two things happen at once, and nothing happens that was not drawn from the
seed or asked for by the history.

Faults of hosts: a *crash* discards the actor, its memory and what waited for it; its factory makes the next life, with
a greater incarnation, a while later. A *stall* is SIGSTOP: messages and timers wait, and come late all at once; an
actor notices by its own clock. *Drift* makes each host's clock run at its own rate. Those of messages: `network`.

Invariants:
    I1  Equal seeds and equal calls give equal histories, whatever the process or machine (`trace_digest`).
    I2  True time never goes back, nor does any host's local time, over its crashes too.
    I3  An actor is never called while its host is down or stalled, nor after its life ended.
    I4  After every call of an actor, every checker has run before the next call.

It does not know what the actors do. A history (see `leases`) brings the actors and the checkers.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn, assert_never

from base.clock import Instant
from base.ids import Incarnation
from roadstead.sim.dice import Dice
from roadstead.sim.faults import Faults
from roadstead.sim.host import Actor, Died, Host, LocalClock
from roadstead.sim.network import Network
from roadstead.sim.report import Report, Trace, Violation

__all__ = ["SimWorld"]

BOOT_MS_MAX = 1_000_000


# ---------------------------------------------------------------- what can happen


@dataclass(frozen=True, slots=True)
class _Delivery:
    source: str
    target: str
    message: object


@dataclass(frozen=True, slots=True)
class _Wake:
    name: str


@dataclass(frozen=True, slots=True)
class _Restart:
    name: str
    after: Incarnation


@dataclass(frozen=True, slots=True)
class _Resume:
    name: str
    stalled_at: int


class _Trouble(Enum):
    CUT = "cut"
    CRASH = "crash"
    STALL = "stall"


_Happening = _Delivery | _Wake | _Restart | _Resume | _Trouble


@dataclass(slots=True)
class _Machine:
    """A host as the world sees it. `actor` is None while it is down."""

    name: str
    clock: LocalClock
    factory: Callable[[Host], Actor]
    disk: dict[str, int] = field(default_factory=dict)
    incarnation: Incarnation = Incarnation(0)
    actor: Actor | None = None
    wake_at: int | None = None
    stalled_at: int | None = None
    backlog: list[_Delivery] = field(default_factory=list)
    lost_ms: int = 0


class SimWorld:
    """A cluster and its weather. Add hosts, register checkers, run."""

    def __init__(self, seed: int, faults: Faults, *, trace_lines: int = 60, crash_at: str | None = None) -> None:
        """`crash_at`: the named point at which whoever reaches it first crashes, on top of all weather."""
        self.seed = seed
        self.crash_at = crash_at
        """None once it was reached."""
        self.reached: Counter[str] = Counter()
        """How often each named point was."""
        self.dice = Dice(seed)
        self._faults = faults
        self._network = Network(self.dice, faults)
        self._machines: dict[str, _Machine] = {}
        self._checks: list[Callable[[], None]] = []
        self._heap: list[tuple[int, int, _Happening]] = []
        self._trace = Trace(keep=trace_lines)
        self._now = 0
        self._sequence = 0
        self._events = 0
        self._checks_made = 0
        for kind in _Trouble:
            self._expect(kind)

    # ------------------------------------------------------------ for the history

    @property
    def now(self) -> int:
        """True time in ms since the history began. Actors never see it."""
        return self._now

    def add(self, name: str, factory: Callable[[Host], Actor]) -> None:
        """Add a host. Its first life starts when the world runs, in the order of adding."""
        assert name not in self._machines
        drift = self.dice.between(-self._faults.drift_ppm_max, self._faults.drift_ppm_max)
        clock = LocalClock(start_ms=self.dice.between(1, BOOT_MS_MAX), drift_ppm=drift)
        self._machines[name] = _Machine(name, clock, factory)
        self._push(self._now, _Restart(name, Incarnation(0)))

    def on_event(self, check: Callable[[], None]) -> None:
        """Register a checker. It looks and, when something is wrong, calls `fail`; it changes nothing."""
        self._checks.append(check)

    def run(self, until: int) -> None:
        """Let everything happen up to the true instant `until`, which is then now.

        Raises:
            Violation: a checker failed, or a core's own assertion did.
        """
        try:
            while self._heap and self._heap[0][0] <= until:
                self._now, _, happening = heapq.heappop(self._heap)
                self._happen(happening)
        except AssertionError as error:
            raise Violation(self.seed, self._now, f"assertion failed: {error}", self._trace.last()) from error
        self._now = max(self._now, until)

    def crash(self, name: str, *, down_ms: int) -> None:
        """End the host's life now and begin the next one later."""
        machine = self._machines[name]
        assert machine.actor is not None
        self._note(f"{name} crashes for {down_ms} ms")
        machine.actor = machine.wake_at = machine.stalled_at = None
        machine.backlog = []
        self._push(self._now + down_ms, _Restart(name, machine.incarnation))

    def stall(self, name: str, *, lag_ms: int) -> None:
        """Let the host handle nothing for a while."""
        machine = self._machines[name]
        assert machine.actor is not None
        assert machine.stalled_at is None
        self._note(f"{name} stalls for {lag_ms} ms")
        machine.stalled_at, machine.wake_at = self._now, None
        self._push(self._now + lag_ms, _Resume(name, self._now))

    def cut(self, sources: Iterable[str], targets: Iterable[str], *, lasting_ms: int) -> None:
        """Stop all messages from the sources to the targets; the other direction is another call."""
        sources, targets = sorted(sources), sorted(targets)
        self._note(f"{','.join(sources)} cut off towards {','.join(targets)} for {lasting_ms} ms")
        self._network.cut(sources, targets, until=self._now + lasting_ms)

    def heal(self) -> None:
        """End all faults: cuts close, the stalled resume, the crashed restart. What is in flight stays so."""
        self._note("everything heals")
        self._faults = self._faults.healed()
        self._network.heal()
        for name in sorted(self._machines):
            machine = self._machines[name]
            self._push(self._now, _Restart(name, machine.incarnation))
            if machine.stalled_at is not None:
                self._push(self._now, _Resume(name, machine.stalled_at))

    # ------------------------------------------------------------ for checkers

    def fail(self, message: str) -> NoReturn:
        """End the history: an invariant does not hold."""
        raise Violation(self.seed, self._now, message, self._trace.last())

    def is_up(self, name: str) -> bool:
        """Return whether the host has a life, stalled or not."""
        return self._machines[name].actor is not None

    def local(self, name: str) -> Instant:
        """Return what the host's clock shows now."""
        return self._machines[name].clock.at(self._now)

    def lost_ms(self, name: str) -> int:
        """Return how long the host stood still in stalls that are over, on its own clock."""
        return self._machines[name].lost_ms

    def trace_digest(self) -> str:
        """Return the digest of everything that happened so far."""
        return self._trace.digest()

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines of the trace, oldest first."""
        return self._trace.last()

    def report(self, counts: dict[str, int]) -> Report:
        """Return the summary of the history up to now."""
        return Report(self.seed, self._now, self._events, self._checks_made, self.trace_digest(), counts)

    # ------------------------------------------------------------ the loop

    def _happen(self, happening: _Happening) -> None:
        match happening:
            case _Delivery(source, target, _):
                if self._network.is_cut(self._now, source, target):
                    self._note(f"{source} > {target}: lost at the cut")
                else:
                    self._deliver(self._machines[target], happening)
            case _Wake(name):
                machine = self._machines[name]
                # Only the wake-up that was asked for last counts; the world leaves the others in the heap.
                if machine.actor is not None and machine.wake_at == self._now:
                    self._wake(machine, machine.actor)
            case _Restart(name, after):
                machine = self._machines[name]
                if machine.incarnation == after and machine.actor is None:
                    self._start(machine)
            case _Resume(name, stalled_at):
                machine = self._machines[name]
                if machine.actor is not None and machine.stalled_at == stalled_at:
                    self._resume(machine, machine.actor)
            case _Trouble():
                self._strike(happening)
            case _:
                assert_never(happening)

    def _start(self, machine: _Machine) -> None:
        machine.incarnation = Incarnation(machine.incarnation + 1)
        self._note(f"{machine.name} starts life {machine.incarnation}")

        def send(target: str, message: object) -> None:
            self._send(machine.name, target, message)

        host = Host(machine.name, machine.incarnation, machine.disk, self.dice, send, self._reach)
        machine.actor = actor = machine.factory(host)
        self._call(machine, actor, lambda: actor.start(machine.clock.at(self._now)))

    def _deliver(self, machine: _Machine, delivery: _Delivery) -> None:
        if machine.actor is None:
            self._note(f"{delivery.source} > {delivery.target}: nobody is up")
        elif machine.stalled_at is not None:
            machine.backlog.append(delivery)
        else:
            self._receive(machine, machine.actor, delivery)

    def _receive(self, machine: _Machine, actor: Actor, delivery: _Delivery) -> None:
        self._note(f"{delivery.source} > {delivery.target}: {delivery.message}")
        now = machine.clock.at(self._now)
        self._call(machine, actor, lambda: actor.receive(now, delivery.source, delivery.message))

    def _wake(self, machine: _Machine, actor: Actor) -> None:
        machine.wake_at = None
        self._note(f"{machine.name} wakes")
        self._call(machine, actor, lambda: actor.wake(machine.clock.at(self._now)))

    def _resume(self, machine: _Machine, actor: Actor) -> None:
        assert machine.stalled_at is not None
        machine.lost_ms += machine.clock.at(self._now) - machine.clock.at(machine.stalled_at)
        machine.stalled_at = None
        waiting, machine.backlog = machine.backlog, []
        self._note(f"{machine.name} resumes, {len(waiting)} messages wait")
        # A loop that was stopped finds sockets and timers ready at once, and which it serves first is its affair.
        deadline = actor.next_deadline()
        is_due = deadline is not None and deadline <= machine.clock.at(self._now)
        if is_due and self.dice.chance(500):
            self._wake(machine, actor)
        for delivery in waiting:
            if machine.actor is actor:
                self._receive(machine, actor, delivery)
        if machine.actor is actor:
            self._arm(machine, actor)

    def _reach(self, point: str) -> None:
        self.reached[point] += 1
        if point == self.crash_at:
            self.crash_at = None
            raise Died(point)

    def _call(self, machine: _Machine, actor: Actor, call: Callable[[], None]) -> None:
        self._events += 1
        try:
            call()
        except Died as died:
            self._note(f"{machine.name} dies at {died}")
            self.crash(machine.name, down_ms=self.dice.between(0, self._faults.down_ms_max))
        else:
            self._arm(machine, actor)
        for check in self._checks:
            check()
            self._checks_made += 1

    def _arm(self, machine: _Machine, actor: Actor) -> None:
        deadline = actor.next_deadline()
        # A deadline that is past is due at the next instant, so that an actor can't hold time still.
        wake_at = None if deadline is None else max(machine.clock.reaches(deadline), self._now + 1)
        if wake_at is not None and wake_at != machine.wake_at:
            self._push(wake_at, _Wake(machine.name))
        machine.wake_at = wake_at

    def _send(self, source: str, target: str, message: object) -> None:
        assert target in self._machines, target
        for delay_ms in self._network.fates(self._now, source, target):
            self._push(self._now + delay_ms, _Delivery(source, target, message))

    # ------------------------------------------------------------ faults of hosts

    def _expect(self, kind: _Trouble) -> None:
        every_ms = {
            _Trouble.CUT: self._faults.cut_every_ms,
            _Trouble.CRASH: self._faults.crash_every_ms,
            _Trouble.STALL: self._faults.stall_every_ms,
        }[kind]
        if every_ms > 0:
            self._push(self._now + self.dice.between(1, 2 * every_ms), kind)

    def _strike(self, kind: _Trouble) -> None:
        faults = self._faults
        names = sorted(self._machines)
        running = [name for name in names if self._is_running(self._machines[name])]
        if kind is _Trouble.CUT and faults.cut_every_ms and len(names) > 1:
            lasting_ms = self.dice.between(1, faults.cut_ms_max)
            side = self.dice.some(names)
            others = [name for name in names if name not in side]
            self.cut(side, others, lasting_ms=lasting_ms)
            if self.dice.chance(500):
                self.cut(others, side, lasting_ms=lasting_ms)
        elif kind is _Trouble.CRASH and faults.crash_every_ms and running:
            self.crash(self.dice.pick(running), down_ms=self.dice.between(0, faults.down_ms_max))
        elif kind is _Trouble.STALL and faults.stall_every_ms and running:
            lag_ms = self.dice.between(faults.stall_ms_min, faults.stall_ms_max)
            self.stall(self.dice.pick(running), lag_ms=lag_ms)
        self._expect(kind)

    @staticmethod
    def _is_running(machine: _Machine) -> bool:
        return machine.actor is not None and machine.stalled_at is None

    def _push(self, at: int, happening: _Happening) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, happening))

    def _note(self, line: str) -> None:
        self._trace.add(f"{self._now} {line}")
