"""Who vouches for what: the beats of access nodes, as proof that what they told is still so.

A beat vouches for all that its life told to this node, for a lease's time, counted from the last answer of ours that it
echoes: so one that was long on its way vouches for as little as it knows. It vouches only while its sender knows since
when it is known here, and told all since then.

Silence is proof too, of the contrary: who vouched here and fell silent for a lease's time has no lease. But not the
silence of while this node itself was stopped or heard nobody, so silence is counted in *listened* time, which stands
still then; not of who never spoke here yet; and not if most fall silent at once: then it is likely this node that is
cut off, and what it says is in *doubt* until they are heard, or the registry does not list them any more.

```
    heard ──▶ vouches until its lease ends ──▶ silent: not shown ──▶ convicted: forgotten, a beat begins anew
```

Invariants:
    I1  Of each access node the newest life that was heard counts; an older one is never heard again.
    I2  Nothing vouches longer than a lease's time, less the drift, after an answer of this node that it echoes.
    I3  Nobody is convicted before a lease's time, plus the drift, in which this node was there to listen.
    I4  Nobody is convicted in doubt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
DOUBT_MIN = 2
"""One access node that falls silent says nothing about who listens, be it the only one."""


@dataclass(slots=True)
class Beats:
    """What the beats of one life of an access node prove here."""

    life: Life
    source: bytes
    since: Instant
    """Since when it is known; what it told before was forgotten."""
    heard_at: Instant
    """When it was heard last, in listened time."""
    epoch: Epoch
    until: Instant
    silent_from: Instant | None = None
    """From when on its silence is proof, in listened time; None if it never vouched."""


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
        self._deaf_ms = 0

    def stalled(self, now: Instant, lag_ms: int) -> None:
        """This node heard nobody for so long until now: the silence was its own.

        Others may have given it up meanwhile, and have to find it again: what they do not say until then is no proof.
        They get as long as it was away, at most a lease's time.
        """
        self._deaf_ms += lag_ms
        patience = Instant(self.listened(now) + min(lag_ms, self.vouch_ms))
        for beats in self._beats.values():
            if beats.silent_from is not None:
                beats.silent_from = max(beats.silent_from, patience)

    def listened(self, now: Instant) -> Instant:
        """Return the listened time: how long this node was there to hear anybody."""
        return Instant(now - self._deaf_ms)

    def grace_from(self, now: Instant) -> Instant:
        """Return until when, in listened time, the silence of who may have spoken elsewhere until now is no proof."""
        return Instant(self.listened(now) + self.grace_ms)

    def of(self, node: NodeId) -> Beats | None:
        """Return what is known of the access node."""
        return self._beats.get(node)

    def heard(self, now: Instant, node: NodeId, beat: Beat) -> Noted:
        """Take note of a beat, which must not be of an older life than known."""
        beats = replaced = self._beats.get(node)
        is_new = beats is None or beat.incarnation > beats.life.incarnation
        listened = self.listened(now)
        if beats is None or is_new:
            life = Life(node, beat.incarnation)
            source = self._sources.prefix(life)
            beats = self._beats[node] = Beats(life, source, now, listened, beat.epoch, Instant(0))
        beats.heard_at = listened
        until = self.vouches_until(beats, beat)
        if until > now:
            beats.silent_from = Instant(max(beats.silent_from or 0, until - self._deaf_ms))
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
        return beats.life == life and self.listened(now) < self._convicted_from(beats)

    def is_awaited(self, now: Instant, node: NodeId, grace_until: Instant) -> bool:
        """Return whether the access node may still tell what it has: it is heard, or its silence proves nothing yet.

        `grace_until` is in listened time.
        """
        beats = self._beats.get(node)
        if beats is not None:
            grace_until = Instant(max(grace_until, beats.heard_at + self.grace_ms))
        return self.listened(now) < grace_until

    def proves_silence(self, now: Instant, life: Life, vouch_from: Epoch, grace_until: Instant) -> bool:
        """Return whether it is proven that nobody vouches for a life's entries (I3). `grace_until` as above."""
        beats = self._beats.get(life.node)
        silent_from = beats.silent_from if beats is not None else None
        if silent_from is None or self.by_beats(life, vouch_from) is None:
            silent_from = max(grace_until, silent_from or grace_until)  # it did not speak here yet, or of this
        return self.listened(now) >= silent_from

    def is_in_doubt(self, now: Instant, listed: Collection[NodeId]) -> bool:
        """Return whether most of the access nodes fell silent that the registry still lists."""
        listened = self.listened(now)
        silent = sum(
            beats.silent_from is not None and listened >= beats.silent_from and beats.life.node in listed
            for beats in self._beats.values()
        )
        return silent >= DOUBT_MIN and silent * 2 > len(self._beats)

    def convict(self, now: Instant, listed: Collection[NodeId]) -> list[Beats]:
        """Forget the lives that were silent for so long that nobody vouches for them anywhere; return them (I4)."""
        listened = self.listened(now)
        gone = [beats for beats in self._beats.values() if listened >= self._convicted_from(beats)]
        if gone and self.is_in_doubt(now, listed):
            return []
        for beats in gone:
            del self._beats[beats.life.node]
        return gone

    def nodes(self) -> Iterable[NodeId]:
        """Return the access nodes that are heard here."""
        return self._beats.keys()

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
            silent_from = max(beats.heard_at, beats.silent_from or beats.heard_at)
            assert beats.until - self._deaf_ms <= silent_from, "I3"

    def _convicted_from(self, beats: Beats) -> Instant:
        return Instant(max(beats.silent_from or beats.heard_at, beats.heard_at) + self.grace_ms)
