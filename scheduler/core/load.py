"""How many connections an access node has, as far as one of several schedulers can know.

A report is old when it is read, and a client that was sent to a node is not there yet. So the estimate is

    reported + pending / share

`pending` are this scheduler's own assignments that the report cannot contain yet; `share` is its part of all
assignments, so that dividing by it assumes that the other schedulers, of whom nothing is known, did likewise.

Both come from what the nodes report of tickets: how many connections each let in that came with a ticket of this
scheduler, and of any. An assignment is pending until it is among those, or until it should have been: `window_ms`
before the report was made. What did not arrive until then is written off; what arrived unexpectedly (a client that
fell back to this node) is taken on the same account. Counts do not tell who it was that did not arrive: where clients
come without a break and some never arrive, pending grows to all that was assigned within the window. That is too much,
and alike at all nodes.

The share is learned over a long time, so that chance hardly shows in it: credit is divided by it, and a scheduler that
thinks itself smaller than it is would let its clients wait. When what came of late cannot be by chance, clients are
divided in another way than before, and what was learned until then is forgotten.

A scheduler that just began has sent nobody yet whom a node could have let in by now: until the first clients can have
arrived it takes an equal share, and learns from there.

Invariants:
    I1  Per node and life: pending = assigned - admitted - written off, and
        0 <= pending <= assigned since (report - window).
    I2  0 < share <= 1.

Source for the correction: G. Goren, S. Vargaftik, Y. Moses, "Distributed Dispatching in the Parallel Server Model"
(DISC 2020): with several dispatchers more accurate information makes joining the shortest queue worse, unless their
number is taken into account.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

from base.ids import NodeId
from scheduler.core.node import AccessNode

__all__ = ["Share", "Tally"]

PRIOR = 100.0
"""How many admissions the assumption of equal shares weighs as much as."""
HALF_LIFE_MS = 1_200_000.0
RECENT_HALF_LIFE_MS = 60_000.0
RECENT_MIN = 50.0
CHANCE = 4.0
"""Standard deviations that chance explains: beyond, about once in 16,000 looks by mistake."""
SHARE_MIN = 0.01
HISTORY_MAX = 64
"""Bound of what is remembered of a node that does not report any more; beyond, times become coarse."""


class Tally:
    """What this scheduler sent to one node, and what of it has arrived."""

    __slots__ = ("_admitted", "_history", "_incarnation", "_written_off", "assigned")

    def __init__(self) -> None:
        self.assigned = 0
        """Total of assignments."""
        self._incarnation = 0
        self._admitted = 0
        self._written_off = 0
        # (time, total assigned by then), both ascending, from before the window of the last report on.
        self._history: deque[tuple[int, int]] = deque()

    def pending(self, node: AccessNode, now: int, window_ms: int) -> int:
        """Take the node's report into account and return how many assignments it does not contain yet."""
        if node.incarnation != self._incarnation:  # a new life counts from 0, and nobody is on the way to it
            self._incarnation = node.incarnation
            self._written_off = self.assigned
        self._admitted = node.admitted
        history = self._history
        if not history or history[-1][1] < self.assigned:
            history.append((now, self.assigned))
            if len(history) > HISTORY_MAX:
                del history[1]
        edge = node.reported_at - window_ms
        while len(history) > 1 and history[1][0] <= edge:
            history.popleft()
        before, total = history[0]
        recent = self.assigned - (total if before <= edge else 0)
        unseen = self.assigned - self._admitted - self._written_off
        settled = min(max(unseen, 0), recent)
        self._written_off += unseen - settled
        return settled

    def check_invariants(self) -> None:
        """Assert that what is pending was assigned, and that the history is in order and bounded."""
        history = list(self._history)
        assert len(history) <= HISTORY_MAX
        assert history == sorted(history)
        assert all(one[1] < other[1] for one, other in pairwise(history))
        assert 0 <= self.assigned - self._admitted - self._written_off <= self.assigned, "I1"


class Share:
    """This scheduler's part of all assignments, by the admissions that the nodes reported of late."""

    __slots__ = ("_at", "_begins_at", "_long", "_recent", "_schedulers", "_seen", "_settle_ms")

    def __init__(self, *, settle_ms: int) -> None:
        """`settle_ms`: how long after it began the first clients may still be on their way."""
        self._settle_ms = settle_ms
        # (own, of all): admissions that fade slowly, and that fade quickly.
        self._long = (0.0, 0.0)
        self._recent = (0.0, 0.0)
        self._at = 0
        self._begins_at: int | None = None
        self._schedulers = 0
        self._seen: dict[NodeId, tuple[int, int, int]] = {}

    def observe(self, nodes: tuple[AccessNode, ...], now: int, schedulers: int) -> float:
        """Take the reports into account and return the share; `schedulers` is how many are registered."""
        if schedulers != self._schedulers:  # one came or went: how they share from now on has to be learned anew
            self._schedulers = schedulers
            self._long = self._recent = (0.0, 0.0)
        own, of_all = self._arrived(nodes, now)
        elapsed = max(0, now - self._at)
        self._at = now
        self._long = _faded(self._long, elapsed / HALF_LIFE_MS, own, of_all)
        self._recent = _faded(self._recent, elapsed / RECENT_HALF_LIFE_MS, own, of_all)
        share = self._estimate()
        recent_own, recent_all = self._recent
        chance = CHANCE * math.sqrt(max(1.0, recent_all * share * (1 - share)))
        if recent_all >= RECENT_MIN and abs(recent_own - recent_all * share) > chance:
            self._long = self._recent
            share = self._estimate()
        return share

    def _estimate(self) -> float:
        own, of_all = self._long
        share = (own + PRIOR / max(1, self._schedulers)) / (of_all + PRIOR)
        return min(1.0, max(SHARE_MIN, share))

    def _arrived(self, nodes: tuple[AccessNode, ...], now: int) -> tuple[int, int]:
        """Return how many were let in since the last view: of this scheduler's, and of all."""
        if self._begins_at is None and nodes:
            self._begins_at = now + self._settle_ms
        is_settled = self._begins_at is not None and now >= self._begins_at
        seen = {}
        total = total_of_all = 0
        for node in nodes:
            seen[node.id] = (node.incarnation, node.admitted, node.admitted_of_all)
            life, own, of_all = self._seen.get(node.id, seen[node.id])
            if is_settled and life == node.incarnation:
                arrived = max(0, node.admitted - own)
                total += arrived
                total_of_all += max(arrived, node.admitted_of_all - of_all)  # a node forgets issuers of long ago
        self._seen = seen
        return total, total_of_all


def _faded(counts: tuple[float, float], half_lives: float, own: int, of_all: int) -> tuple[float, float]:
    fade = 0.5**half_lives
    return counts[0] * fade + own, counts[1] * fade + of_all
