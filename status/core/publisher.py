"""What an access node tells one status node: every session of its partitions, in numbered beats, one in flight.

Waiting changes go into the next beat together, so that a storm of connects costs a beat, not a beat each. A beat that
got no answer is sent again as it was: the receiver knows it by its number. When the receiver asks for it, or a new
stream was made, a new generation starts: all sessions again, in chunks, then changes as before.

Invariants:
    I1  At most one beat is in flight; its content does not change until it is answered.
    I2  Within a generation beats are numbered 1, 2, 3 ... without a gap.
    I3  A beat says `is_complete` only if every open session was sent in this generation.
    I4  A session is reported as confirmed only after a beat that carried it was applied.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from base.ids import Epoch, Incarnation, NodeId
from status.api import Beat, BeatReply, Closed, Delta, Opened

__all__ = ["LinkPublisher"]

DELTAS_PER_BEAT = 500
BACKLOG_MAX = 50_000
"""Changes that may wait for a receiver, on top of all sessions; beyond, everything is told anew when it is back."""


class LinkPublisher:
    """The sending end of one (access node, status node) pair. The shell sends what `next_beat` returns."""

    def __init__(self, node: NodeId, incarnation: Incarnation) -> None:
        self._node = node
        self._incarnation = incarnation
        self._sessions: dict[str, Opened] = {}
        self._backlog: deque[Delta] = deque()
        self._generation = 0
        self._seq = 0
        self._inflight: Beat | None = None
        self._is_stale = True

    @property
    def has_news(self) -> bool:
        """Whether a beat should leave now rather than at the next regular time."""
        return self._inflight is None and (self._is_stale or bool(self._backlog))

    def open(self, opened: Opened) -> None:
        """Report a session that was opened or changed."""
        self._sessions[opened.session] = opened
        self._queue(opened)

    def close(self, closed: Closed) -> None:
        """Report that a session ended. Unknown sessions are no error: the link may have taken over in between."""
        self._sessions.pop(closed.session, None)
        self._queue(closed)

    def resync(self) -> None:
        """Start a new generation with the next beat: whatever the receiver knew may be gone."""
        self._is_stale = True
        self._inflight = None
        self._backlog.clear()

    def next_beat(self, epoch: Epoch) -> Beat | None:
        """Return the beat to send now, None while one is in flight.

        Called at each regular time and whenever `has_news`. After `failed` it returns the same beat again.
        """
        if self._inflight is not None:
            return None
        if self._is_stale:
            self._is_stale = False
            self._generation += 1
            self._seq = 0
            self._backlog = deque(self._sessions.values())
        self._seq += 1
        deltas = list(islice(self._backlog, DELTAS_PER_BEAT))
        for _ in deltas:
            self._backlog.popleft()
        self._inflight = Beat(
            node=self._node,
            incarnation=self._incarnation,
            generation=self._generation,
            seq=self._seq,
            # What is still in the backlog may be part of the full synchronisation: not complete before it is out (I3).
            is_complete=not self._backlog,
            epoch=epoch,
            deltas=deltas,
        )
        return self._inflight

    def answered(self, beat: Beat, reply: BeatReply) -> list[str]:
        """Take note of the answer to `beat`; return the sessions that are now confirmed at the receiver (I4)."""
        if beat is not self._inflight:
            return []  # the answer to a beat of before a resync
        self._inflight = None
        if reply.needs_resync:
            self.resync()
            return []
        return [delta.session for delta in beat.deltas if isinstance(delta, Opened)]

    def failed(self, beat: Beat) -> Beat | None:
        """Take note that no answer came; return the beat to send again, None when a resync made it void."""
        return beat if beat is self._inflight else None

    def sessions(self) -> tuple[Opened, ...]:
        """Return every session that this link reports, oldest first."""
        return tuple(self._sessions.values())

    def _queue(self, delta: Delta) -> None:
        if self._is_stale:
            return  # the next generation will tell
        if len(self._backlog) >= len(self._sessions) + BACKLOG_MAX:
            # The receiver is away. What is open now says it all, and does not grow with the time that it is away. A
            # synchronisation of many sessions is no such case: begun anew at each change, it would never end.
            self.resync()
        else:
            self._backlog.append(delta)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"sessions": len(self._sessions), "backlog": len(self._backlog), "generation": self._generation}

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        assert self._inflight is None or self._inflight.seq == self._seq, "I1, I2"
        assert not (self._is_stale and self._backlog), "a stale link keeps no deltas, it will send everything"
