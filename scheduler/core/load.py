"""How many connections an access node has, as far as one of several schedulers can know.

A report is old when it is read, and a client that was sent to a node is not there yet. So the estimate is

    reported + pending / share

`pending` are this scheduler's own assignments that the report cannot contain yet; `share` is its part of all
assignments, so that dividing by it assumes that the other schedulers, of whom nothing is known, did likewise.

Both come from what the nodes report of tickets: how many connections each let in that came with a ticket of this
scheduler, and of any. An assignment is pending until it is among those, or until it should have been: `window_ms`
before the report was made. What did not arrive until then is written off; what arrived unexpectedly (a client that
fell back to this node) is taken on the same account.

A scheduler that just began has sent nobody yet whom a node could have let in by now: until the first clients can have
arrived it takes an equal share, and learns from there.

Invariants, per node and life:
    I1  pending = assigned - admitted - written off, and 0 <= pending <= assigned since (report - window).
    I2  0 < share <= 1.

Source for the correction: G. Goren, S. Vargaftik, Y. Moses, "Distributed Dispatching in the Parallel Server Model"
(DISC 2020): with several dispatchers more accurate information makes joining the shortest queue worse, unless their
number is taken into account.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from base.ids import NodeId
from scheduler.core.node import AccessNode

__all__ = ["Share", "Tally"]

PRIOR = 100.0
"""How many admissions the assumption of equal shares weighs as much as."""
HALF_LIFE_MS = 300_000.0
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

    __slots__ = ("_all", "_at", "_begins_at", "_own", "_schedulers", "_seen", "_settle_ms")

    def __init__(self, *, settle_ms: int) -> None:
        """`settle_ms`: how long after it began the first clients may still be on their way."""
        self._settle_ms = settle_ms
        self._own = 0.0
        self._all = 0.0
        self._at = 0
        self._begins_at: int | None = None
        self._schedulers = 0
        self._seen: dict[NodeId, tuple[int, int, int]] = {}

    def observe(self, nodes: tuple[AccessNode, ...], now: int, schedulers: int) -> float:
        """Take the reports into account and return the share; `schedulers` is how many are registered."""
        fade = 0.5 ** (max(0, now - self._at) / HALF_LIFE_MS)
        if schedulers != self._schedulers:  # one came or went: how they share from now on has to be learned anew
            self._schedulers, fade = schedulers, 0.0
        self._at = now
        self._own *= fade
        self._all *= fade
        if self._begins_at is None and nodes:
            self._begins_at = now + self._settle_ms
        is_settled = self._begins_at is not None and now >= self._begins_at
        seen = {}
        for node in nodes:
            seen[node.id] = (node.incarnation, node.admitted, node.admitted_of_all)
            life, own, of_all = self._seen.get(node.id, seen[node.id])
            if is_settled and life == node.incarnation:
                arrived = max(0, node.admitted - own)
                self._own += arrived
                self._all += max(arrived, node.admitted_of_all - of_all)  # a node forgets issuers of long ago
        self._seen = seen
        share = (self._own + PRIOR / max(1, schedulers)) / (self._all + PRIOR)
        return min(1.0, max(SHARE_MIN, share))
