"""Who vouches for what: the beats of access nodes, as proof that what they told is still so.

A beat vouches for all that its life told to this node, for a lease's time, counted from the last answer of ours that it
echoes: so one that was long on its way vouches for as little as it knows. It vouches only while its sender knows since
when it is known here, and told all since then.

Silence is proof too, of the contrary: who vouched here and fell silent for a lease's time has no lease. But not the
silence of while this node itself was stopped or heard nobody, and not of who never spoke here yet.

```
    heard ──▶ vouches until its lease ends ──▶ silent: not shown ──▶ convicted: forgotten, a beat begins anew
```

Invariants:
    I1  Of each access node the newest life that was heard counts; an older one is never heard again.
    I2  Nothing vouches longer than a lease's time, less the drift, after an answer of this node that it echoes.
    I3  Nobody is convicted before a lease's time, plus the drift, in which this node was there to listen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.api import Beat, Stamp
from status.core.records import Life, Sources

__all__ = ["LEASE_MS", "Beats", "Noted", "Vouching"]

LEASE_MS = 3_000
"""How long an access node's sessions are shown without a beat, by any clock; a beat vouches for that less the drift."""
DRIFT_PERCENT = 10


@dataclass(slots=True)
class Beats:
    """What the beats of one life of an access node prove here."""

    life: Life
    source: bytes
    since: Instant
    """Since when it is known; what it told before was forgotten."""
    heard_at: Instant
    vouched_at: Instant
    """When the last beat came that vouched."""
    epoch: Epoch
    until: Instant
    convicted_at: Instant


class Noted(NamedTuple):
    """What a beat changed: `replaced` is what was known of the life before, of which nothing will come any more."""

    beats: Beats
    replaced: Beats | None
    is_new: bool
    has_newer_table: bool


class Vouching:
    """The lives of access nodes that one status node hears."""

    def __init__(self, incarnation: Incarnation, sources: Sources, lease_ms: int) -> None:
        """`incarnation` is this node's; `lease_ms` must be the same on all status nodes."""
        self.lease_ms = lease_ms
        self.vouch_ms = lease_ms - lease_ms * DRIFT_PERCENT // 100
        self.grace_ms = lease_ms + lease_ms * DRIFT_PERCENT // 100
        """Who was not heard for so long has no lease, whoever granted it."""
        self._incarnation = incarnation
        self._sources = sources
        self._beats: dict[NodeId, Beats] = {}
        self._blind_from = Instant(0)
        """The last instant before which this node may have missed beats."""

    def stalled(self, now: Instant) -> None:
        """This node heard nobody for a while: the silence was its own."""
        self._blind_from = now

    def of(self, node: NodeId) -> Beats | None:
        """Return what is known of the access node."""
        return self._beats.get(node)

    def heard(self, now: Instant, node: NodeId, beat: Beat) -> Noted:
        """Take note of a beat, which must not be of an older life than known."""
        beats = replaced = self._beats.get(node)
        is_new = beats is None or beat.incarnation > beats.life.incarnation
        if beats is None or is_new:
            life = Life(node, beat.incarnation)
            source = self._sources.prefix(life)
            beats = self._beats[node] = Beats(life, source, now, now, Instant(-1), beat.epoch, Instant(0), Instant(0))
        beats.heard_at = now
        until = self.vouches_until(beats, beat)
        if until > now:
            beats.vouched_at = now
        beats.convicted_at = max(beats.convicted_at, until)
        is_newer = beat.epoch > beats.epoch
        if is_newer:
            beats.epoch, beats.until = beat.epoch, until
        elif beat.epoch == beats.epoch:
            beats.until = max(beats.until, until)
        return Noted(beats, replaced if is_new else None, is_new, is_newer)

    def vouches_until(self, beats: Beats, beat: Beat) -> Instant:
        """Return until when a beat vouches (I2)."""
        if (beat.echo.incarnation, beat.echo.since) != (self._incarnation, beats.since):
            return Instant(0)
        return Instant(beat.echo.at + self.vouch_ms)

    def stamp(self, now: Instant, node: NodeId) -> Stamp:
        """Return what an answer to the access node is stamped with, to be echoed."""
        beats = self._beats.get(node)
        return Stamp(self._incarnation, now, beats.since if beats is not None else Instant(0))

    def all_vouch(self, now: Instant) -> bool:
        """Return whether every life that is known vouches now."""
        return all(now < beats.until for beats in self._beats.values())

    def silent(self, now: Instant) -> frozenset[NodeId]:
        """Return the access nodes whose beats vouch for nothing now."""
        return frozenset(node for node, beats in self._beats.items() if now >= beats.until)

    def by_beats(self, life: Life, vouch_from: Epoch) -> Beats | None:
        """Return the beats that speak for a life's entries, if it routes by a table of that epoch or a newer one."""
        beats = self._beats.get(life.node)
        return beats if beats is not None and beats.life == life and beats.epoch >= vouch_from else None

    def is_over(self, life: Life) -> bool:
        """Return whether a newer life of the access node is known: the sockets of this one are gone (I1)."""
        beats = self._beats.get(life.node)
        return beats is not None and beats.life.incarnation > life.incarnation

    def is_known(self, life: Life) -> bool:
        """Return whether this is the life of the access node that is heard here."""
        beats = self._beats.get(life.node)
        return beats is not None and beats.life == life

    def is_alive(self, now: Instant, life: Life) -> bool:
        """Return whether the life may still vouch for what it reported."""
        beats = self._beats.get(life.node)
        if beats is None:
            return True  # not heard yet: the last owner may have vouched for it
        return beats.life == life and now < self._convicted_from(beats)

    def grace_until(self, until: Instant) -> Instant:
        """Return until when silence proves nothing: `until`, or longer if this node heard nobody."""
        return Instant(max(until, self._blind_from + self.grace_ms))

    def silence_counts_from(self, life: Life, vouch_from: Epoch, grace_until: Instant) -> Instant:
        """Return from when on it is proven that nobody vouches for a life's entries (I3)."""
        beats = self._beats.get(life.node)
        by_beats = self.by_beats(life, vouch_from)
        if by_beats is not None and by_beats.vouched_at >= self._blind_from:
            return by_beats.convicted_at  # it spoke here, and fell silent
        return max(self.grace_until(grace_until), beats.convicted_at if beats is not None else Instant(0))

    def convict(self, now: Instant) -> list[Beats]:
        """Forget the lives that were silent for so long that nobody vouches for them anywhere; return them."""
        gone = [beats for beats in self._beats.values() if now >= self._convicted_from(beats)]
        for beats in gone:
            del self._beats[beats.life.node]
        return gone

    def vouches(self, vouch_from: Epoch) -> dict[NodeId, tuple[Incarnation, Instant]]:
        """Return which lives vouch until when for a partition, by tables of that epoch or newer ones."""
        return {
            node: (beats.life.incarnation, beats.until)
            for node, beats in self._beats.items()
            if beats.epoch >= vouch_from
        }

    def __len__(self) -> int:
        return len(self._beats)

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        for node, beats in self._beats.items():
            assert beats.life.node == node, "I1"
            assert beats.until <= max(beats.convicted_at, Instant(0)), "I3"

    def _convicted_from(self, beats: Beats) -> Instant:
        return Instant(max(beats.convicted_at, beats.heard_at, self._blind_from) + self.grace_ms)
