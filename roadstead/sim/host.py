"""What an actor of a simulated cluster sees of its machine, and what the world asks of an actor.

An actor is a shell without asyncio: it owns a core, hands it what comes in, and sends what comes out. It sees local
time only. Like a real process it loses everything in a crash but its disk, and it is not told that it was stalled:
a real shell finds out by itself, because its loop runs again far later than it had asked for. So does an actor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from base.clock import Instant
from base.ids import Incarnation
from roadstead.sim.dice import Dice

__all__ = ["Actor", "Died", "Host", "LocalClock"]

PPM = 1_000_000


class Died(Exception):
    """The actor's life ended in the middle of a call."""


class Actor(Protocol):
    """One life of a process. The world calls it, one call at a time, always with its local time."""

    def start(self, now: Instant) -> None:
        """Begin. Called once, before anything else."""
        ...

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take a message from another host."""
        ...

    def wake(self, now: Instant) -> None:
        """Do what is due; called when `next_deadline` has come, later after a stall."""
        ...

    def next_deadline(self) -> Instant | None:
        """Return when to be woken, None for never. The world asks after each call."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """The machine in the hands of one life of an actor."""

    name: str
    incarnation: Incarnation
    """The number of this life, 1 for the first."""
    disk: dict[str, int]
    """What survives a crash. A write is durable at once."""
    dice: Dice
    """Chance, for jitter and choice."""
    send: Callable[[str, object], None]
    """`send(target, message)`: hand a message to the network. Messages must be immutable values."""
    reach: Callable[[str], None]
    """`reach(point)`: this is a named point at which the history may want a crash; then it does not return."""


class LocalClock:
    """A machine's monotonic clock as a function of true time, drifting like `base.clock.SimClock`.

    A function rather than a clock that is advanced: the world also needs the way back, from a deadline to the true
    instant at which the machine wakes.
    """

    def __init__(self, *, start_ms: int, drift_ppm: int) -> None:
        """`start_ms`: what it shows at true time 0, different on each machine as boot times are."""
        assert drift_ppm > -PPM
        self._start_ms = start_ms
        self._drift_ppm = drift_ppm

    def at(self, true_ms: int) -> Instant:
        """Return the local time at a true instant."""
        return Instant(self._start_ms + true_ms + true_ms * self._drift_ppm // PPM)

    def reaches(self, instant: Instant) -> int:
        """Return the first true instant at which the local time is `instant` or later."""
        return -(-(instant - self._start_ms) * PPM // (PPM + self._drift_ppm))
