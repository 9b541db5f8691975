"""How a node empties: which clients are told to move when, to where, and who is closed in the end.

```
    pending ──step: told to move──▶ waiting ──gone──▶ arrived
       │                               └──grace is over──▶ closed
       └──gone by itself──▶ departed
```

What is left is spread evenly over the time that is left. So whatever disturbs the pace (clients that go by themselves,
steps that come late) is made up for slowly over the rest of the drain, not at once. Above that stands a bound: in any
second at most 1.2 times the even pace with which the drain began, rounded up to a whole client. If that does not
suffice, the drain ends late: a late drain harms nobody, while a burst makes the other nodes' handshakes slow for all.

The node lets nobody in while it drains; that is its shell's part.

Invariants:
    I1  No client is told to move twice, nor after it went.
    I2  In any second at most ceil(1.2 * clients / duration) clients are told to move.
    I3  Every client is in one of the five places above. A drain that is over has none pending, unless it was aborted,
        and none waiting.
    I4  A waiting client is closed by the first step at or after its deadline, whether the drain is paused, aborted or
        not: it was told so.
    I5  No target is given more clients than it had free slots.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from base.clock import Instant

__all__ = ["DrainPlan", "Move", "Progress", "Step", "Targets"]

WINDOW_MS = 1_000
BOUND_PERCENT = 120
CLIENT = 1_000_000
"""A client in millionths: steps are shorter than the time between two moves, and their fractions add up."""


@dataclass(frozen=True, slots=True)
class Move:
    """Tell the client to go to `target` before `deadline`. None: nobody has room; it should ask the scheduler."""

    client: str
    target: str | None
    deadline: Instant


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: tell these to move, and close those, whose grace is over."""

    move: tuple[Move, ...]
    close: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain is, for an operator. Counts of clients; `total` is the sum of the other five."""

    total: int
    pending: int
    """Not told yet."""
    waiting: int
    """Told to move, and still here."""
    arrived: int
    """Told to move, and gone before the deadline: at the target, as far as this node can tell."""
    closed: int
    departed: int
    """Gone by themselves before they were told."""
    eta_ms: int | None
    """Time until the drain is over, as things stand. None while it is paused with clients pending."""


class Targets:
    """The nodes to move to. Each client goes to the one that is the least full: of its capacity, not of its room."""

    __slots__ = ("_open",)

    def __init__(self, nodes: Iterable[tuple[str, int, int]]) -> None:
        """`nodes`: id, connections and capacity of each."""
        # (part that is full, -capacity, id, connections): of equally full ones the largest first, then by name.
        self._open = [
            (connections / capacity, -capacity, node, connections)
            for node, connections, capacity in nodes
            if connections < capacity
        ]
        heapq.heapify(self._open)

    def take(self) -> str | None:
        """Take a slot at the least full node. None: there is none left anywhere."""
        if not self._open:
            return None
        _, negative, node, connections = self._open[0]
        connections += 1
        if connections < -negative:
            heapq.heapreplace(self._open, (connections / -negative, negative, node, connections))
        else:
            heapq.heappop(self._open)
        return node

    def drop(self, node: str) -> None:
        """Give the node nobody more: it filled up by others, drains, or is gone."""
        self._open = [entry for entry in self._open if entry[2] != node]
        heapq.heapify(self._open)


class DrainPlan:
    """One drain of one node. Call `step` every 200 ms or oftener; moves are evened out by the second, not below."""

    def __init__(self, clients: Iterable[str], now: Instant, *, over_ms: int, grace_ms: int, targets: Targets) -> None:
        """`over_ms`: in which time to tell all clients. `grace_ms`: how long each may take to go."""
        assert over_ms > 0
        assert grace_ms >= 0
        ordered = list(clients)
        ordered.reverse()
        # Taken from the end, where a dictionary does so in O(1): the first client named is the first to move.
        self._pending = dict.fromkeys(ordered)
        assert len(self._pending) == len(ordered), "clients are named once"
        self._total = len(ordered)
        self._targets = targets
        self._grace_ms = grace_ms
        self._over_ms = over_ms
        self._window_max = -(-self._total * BOUND_PERCENT * WINDOW_MS // (100 * over_ms))
        self._end = Instant(now + over_ms)
        self._stepped_at = now
        self._paused_at: Instant | None = None
        self._is_aborted = False
        self._fraction = 0
        # When how many were told within the last second.
        self._recent: deque[tuple[Instant, int]] = deque()
        # In the order of their deadlines. Those who went stay until then; `_waiting` has those still here.
        self._deadlines: deque[tuple[Instant, str]] = deque()
        self._waiting: set[str] = set()
        self._arrived = 0
        self._closed = 0
        self._departed = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and (self._is_aborted or not self._pending)

    def step(self, now: Instant) -> Step:
        """Return what to do now. Early calls do little, late ones at most a second's worth."""
        close = self._expire(now)
        return Step(self._move(now), close)

    def gone(self, client: str) -> None:
        """The client's connection is closed, whoever closed it. Unknown clients are no error."""
        if client in self._waiting:
            self._waiting.remove(client)
            self._arrived += 1
        elif client in self._pending:
            del self._pending[client]
            self._departed += 1

    def pause(self, now: Instant) -> None:
        """Tell nobody more until `resume`. Who was told is still closed at its deadline."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: Instant) -> None:
        """Go on where `pause` stopped: the end is later by the time in between."""
        if self._paused_at is not None:
            paused_ms = now - self._paused_at
            self._end = Instant(self._end + paused_ms)
            self._stepped_at = Instant(self._stepped_at + paused_ms)
            self._paused_at = None

    def abort(self) -> None:
        """Tell nobody more, for good: who is pending stays. Who was told is still closed at its deadline."""
        self._is_aborted = True

    def progress(self, now: Instant) -> Progress:
        """Return how far the drain is."""
        return Progress(
            total=self._total,
            pending=len(self._pending),
            waiting=len(self._waiting),
            arrived=self._arrived,
            closed=self._closed,
            departed=self._departed,
            eta_ms=self._eta_ms(now),
        )

    def check_invariants(self) -> None:
        """Assert I2 for the last second, and I3."""
        assert sum(count for _, count in self._recent) <= self._window_max, "I2"
        places = (len(self._pending), len(self._waiting), self._arrived, self._closed, self._departed)
        assert sum(places) == self._total, "I3"
        assert self._waiting <= {client for _, client in self._deadlines}, "I3"
        assert self._waiting.isdisjoint(self._pending), "I3"

    def _expire(self, now: Instant) -> tuple[str, ...]:
        close: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, client = self._deadlines.popleft()
            if client in self._waiting:
                self._waiting.remove(client)
                close.append(client)
        self._closed += len(close)
        return tuple(close)

    def _move(self, now: Instant) -> tuple[Move, ...]:
        if self._paused_at is not None or self._is_aborted:
            return ()
        count = self._due(now)
        if count:
            self._recent.append((now, count))
        deadline = Instant(now + self._grace_ms)
        moves: list[Move] = []
        for _ in range(count):
            client, _ = self._pending.popitem()
            self._waiting.add(client)
            self._deadlines.append((deadline, client))
            moves.append(Move(client, self._targets.take(), deadline))
        return tuple(moves)

    def _due(self, now: Instant) -> int:
        """Return how many to tell now, and count the time since the last step as used."""
        assert now >= self._stepped_at
        left_ms = max(self._end - self._stepped_at, 1)
        passed_ms = min(now - self._stepped_at, left_ms)
        self._stepped_at = now
        self._fraction += (len(self._pending) * CLIENT - self._fraction) * passed_ms // left_ms
        # What the bound does not allow is not kept as a debt: it is pending, so the rest of the time has it.
        due, self._fraction = divmod(self._fraction, CLIENT)
        while self._recent and self._recent[0][0] <= now - WINDOW_MS:
            self._recent.popleft()
        return min(due, self._window_max - sum(count for _, count in self._recent))

    def _eta_ms(self, now: Instant) -> int | None:
        if not self._pending or self._is_aborted:
            return max(self._deadlines[-1][0] - now, 0) if self._waiting else 0
        if self._paused_at is not None:
            return None
        fastest_ms = -(-len(self._pending) * WINDOW_MS // self._window_max)
        return max(self._end - now, fastest_ms) + self._grace_ms
