"""Who may act on a resource, and until when: the lease table and its holder's side.

A lease is a promise by the granter not to give the resource to anybody else before it ends. Renewals keep it
alive; silence ends it. Two numbers keep late messages harmless:

- the **incarnation** is the holder's restart number. A newer life of the same holder takes over at once, since
  the older one is gone, and everything that the older one still had in flight is refused (I3);
- the **epoch** is the fencing token. It grows with each new grant of the resource, never falls, and outlives the
  lease, so that whoever wakes up after its lease ended carries a number that every store can refuse (I2).

Giving up is final per epoch. A holder that released and asks again says which epoch it gave up, and gets a new one
even if its `Release` is still under way: late on arrival, that `Release` then ends nothing (I6).

Safety against clocks: the granter counts from when it *answered*, the holder from when it *asked*, and the
holder ends earlier by a margin for drift. Asking comes before answering, so the holder always stops first (I4).

A granter that was itself stalled (a paused process, a blocked event loop) must not convict the others of
silence that it caused: `Stalled` pushes every deadline out by the time it lost (I5).

```
            Acquire                    Renew (same incarnation and epoch)
    free ───────────▶ held ◀──────────────────────┐
     ▲                 │ │ └──────────────────────┘
     └─────────────────┘ └─ Acquire by a newer incarnation, or after giving up: held, epoch + 1
       Release, or Tick past expires_at
```

Invariants:
    I1  A resource has at most one lease.
    I2  Epochs of one resource strictly increase over grants, for the life of the table.
    I3  A message of an older incarnation or epoch changes nothing.
    I4  While a `HeldLease` says valid, its granter's table holds that very lease (the simulator proves it).
    I5  No lease ends before `ttl_ms` of the granter's own running time has passed since its last renewal.
    I6  An epoch that its holder gave up is never valid again, whatever is still under way about it.

It does not elect, persist or transport. A table that must survive its process is written by its shell before
the effects leave (see `base.registry`).

Sources: C. Gray and D. Cheriton, "Leases" (SOSP 1989), for the clock argument; the fencing token is the
sequencer of M. Burrows, "The Chubby lock service" (OSDI 2006).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from base.clock import Instant
from base.ids import Epoch, Incarnation

__all__ = ["HeldLease", "Lease", "LeaseTable", "Reason"]


class Reason(Enum):
    """Why a request was refused."""

    HELD = "held"
    """Somebody else holds a valid lease; `current` says who."""
    STALE_INCARNATION = "stale_incarnation"
    """The sender is an older life of the holder."""
    STALE_EPOCH = "stale_epoch"
    """The sender's epoch is not the lease's; it must acquire anew."""
    NOT_HELD = "not_held"
    """There is no lease to renew or release: it ended, or never was."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One grant. `expires_at` is on the granter's clock."""

    resource: str
    holder: str
    incarnation: Incarnation
    epoch: Epoch
    ttl_ms: int
    expires_at: Instant


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for the resource. A holder that asks again with its own incarnation renews.

    `given_up` is the newest epoch that this life of the holder gave up (`HeldLease.given_up`).
    """

    resource: str
    holder: str
    incarnation: Incarnation
    ttl_ms: int
    given_up: Epoch = Epoch(0)


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep a lease alive. Its epoch proves that the sender knows which grant it holds."""

    resource: str
    holder: str
    incarnation: Incarnation
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lease back before its end."""

    resource: str
    holder: str
    incarnation: Incarnation
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: end what is over."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The granter did not run for `lag_ms`. To be stepped before anything that waited meanwhile."""

    lag_ms: int


Event = Acquire | Renew | Release | Tick | Stalled

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Granted:
    """Tell the holder: the lease is yours, new or renewed."""

    lease: Lease
    is_new: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Tell the sender why not, and what is."""

    resource: str
    holder: str
    reason: Reason
    current: Lease | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Tell whoever acts on the holder's behalf: this lease is over. `expired` is False when it was given up."""

    lease: Lease
    expired: bool


Effect = Granted | Refused | Ended


class LeaseTable:
    """The granter's side: every lease it gave, by resource.

    A step machine. Call `step` with each event in order of arrival and carry out the effects in their order; call
    it with `Tick` at `next_deadline`. Costs O(log n) a step.
    """

    def __init__(self, *, first_epoch: Epoch = Epoch(0)) -> None:
        """`first_epoch`: the greatest epoch that an earlier life of this table may have given."""
        self._leases: dict[str, Lease] = {}
        self._epochs: dict[str, Epoch] = {}
        # The newest life known of each holder, kept after its leases: a message can outlive them (I3).
        self._incarnations: dict[str, Incarnation] = {}
        self._first_epoch = first_epoch
        # Deadlines as they were pushed: an entry is live only while its lease still ends at that instant.
        self._deadlines: list[tuple[Instant, str]] = []

    def step(self, now: Instant, event: Event) -> list[Effect]:
        """Apply one event. Whatever ended before `now` ends first, so that no event meets a lease past its end."""
        if isinstance(event, Stalled):
            self._extend(event.lag_ms)
            return []
        effects = self._expire(now)
        match event:
            case Acquire():
                effects.extend(self._acquire(now, event))
            case Renew():
                effects.append(self._renew(now, event))
            case Release():
                effects.append(self._release(event))
            case Tick():
                pass
            case _:
                assert_never(event)
        return effects

    def next_deadline(self) -> Instant | None:
        """Return when the next lease ends, None when none is held."""
        while self._deadlines:
            at, resource = self._deadlines[0]
            lease = self._leases.get(resource)
            if lease is not None and lease.expires_at == at:
                return at
            heapq.heappop(self._deadlines)
        return None

    def get(self, resource: str) -> Lease | None:
        """Return the resource's lease. It may be past its end if no step came since: see `is_valid`."""
        return self._leases.get(resource)

    def is_valid(self, now: Instant, resource: str, incarnation: Incarnation) -> bool:
        """Return whether this life of the holder has the resource now."""
        lease = self._leases.get(resource)
        return lease is not None and lease.incarnation == incarnation and now < lease.expires_at

    def is_current(self, resource: str, epoch: Epoch) -> bool:
        """Return whether the epoch is the newest ever granted: the fence that a store checks before a write."""
        return self._epochs.get(resource) == epoch

    def leases(self) -> tuple[Lease, ...]:
        """Return every lease, ordered by resource."""
        return tuple(self._leases[resource] for resource in sorted(self._leases))

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I1 and half of I2); tests call it after every step."""
        for resource, lease in self._leases.items():
            assert lease.resource == resource, "I1"
            assert lease.epoch == self._epochs[resource] > self._first_epoch, "I2"
            assert lease.incarnation <= self._incarnations[lease.holder], "I3"
            assert (lease.expires_at, resource) in self._deadlines, "every lease has its deadline"

    def _acquire(self, now: Instant, event: Acquire) -> list[Effect]:
        current = self._leases.get(event.resource)
        if self._is_of_old_life(event):
            return [Refused(event.resource, event.holder, Reason.STALE_INCARNATION, current)]
        self._incarnations[event.holder] = event.incarnation
        if current is None:
            return [Granted(self._grant(now, event), is_new=True)]
        if current.holder != event.holder:
            return [Refused(event.resource, event.holder, Reason.HELD, current)]
        if event.incarnation > current.incarnation or event.given_up >= current.epoch:
            # The holder restarted, or gave this lease up, before it ended: it said so itself. In the second case
            # the same epoch must not be granted again, because the Release that is under way would end it (I6).
            return [Ended(current, expired=False), Granted(self._grant(now, event), is_new=True)]
        # A duplicate, or a holder that lost our answer: the same grant again, so that both ends agree on its epoch.
        return [Granted(self._put(now, current, event.ttl_ms), is_new=False)]

    def _renew(self, now: Instant, event: Renew) -> Effect:
        found = self._claimed(event)
        if isinstance(found, Refused):
            return found
        return Granted(self._put(now, found, found.ttl_ms), is_new=False)

    def _release(self, event: Release) -> Effect:
        found = self._claimed(event)
        if isinstance(found, Refused):
            return found
        del self._leases[event.resource]
        return Ended(found, expired=False)

    def _claimed(self, event: Renew | Release) -> Lease | Refused:
        current = self._leases.get(event.resource)
        if current is None:
            reason = Reason.NOT_HELD
        elif current.holder != event.holder:
            reason = Reason.HELD
        elif event.incarnation != current.incarnation or self._is_of_old_life(event):
            reason = Reason.STALE_INCARNATION
        elif event.epoch != current.epoch:
            reason = Reason.STALE_EPOCH
        else:
            return current
        return Refused(event.resource, event.holder, reason, current)

    def _is_of_old_life(self, event: Acquire | Renew | Release) -> bool:
        return event.incarnation < self._incarnations.get(event.holder, event.incarnation)

    def _grant(self, now: Instant, event: Acquire) -> Lease:
        epoch = Epoch(self._epochs.get(event.resource, self._first_epoch) + 1)
        self._epochs[event.resource] = epoch
        fresh = Lease(event.resource, event.holder, event.incarnation, epoch, event.ttl_ms, now)
        return self._put(now, fresh, event.ttl_ms)

    def _put(self, now: Instant, lease: Lease, ttl_ms: int) -> Lease:
        assert ttl_ms > 0
        # max: a renewal never shortens a lease that the holder already counts on (I5).
        expires_at = Instant(max(lease.expires_at, now + ttl_ms))
        renewed = replace(lease, ttl_ms=ttl_ms, expires_at=expires_at)
        self._leases[lease.resource] = renewed
        heapq.heappush(self._deadlines, (expires_at, lease.resource))
        return renewed

    def _expire(self, now: Instant) -> list[Effect]:
        ended: list[Effect] = []
        while (at := self.next_deadline()) is not None and at <= now:
            _, resource = heapq.heappop(self._deadlines)
            ended.append(Ended(self._leases.pop(resource), expired=True))
        return ended

    def _extend(self, lag_ms: int) -> None:
        assert lag_ms >= 0
        for lease in self._leases.values():
            self._leases[lease.resource] = replace(lease, expires_at=Instant(lease.expires_at + lag_ms))
        self._deadlines = [(lease.expires_at, resource) for resource, lease in self._leases.items()]
        heapq.heapify(self._deadlines)


class HeldLease:
    """The holder's side of one lease: may I act now?

    Keep the instant at which a request leaves, and call `granted` with it when the answer comes. A late answer to an
    early question then extends the lease only from when the question was asked (I4).
    """

    def __init__(self, *, drift_ppm: int = 100_000) -> None:
        """`drift_ppm`: how much slower than the granter's this clock may run; 100,000 is 10 %, far beyond quartz."""
        self._drift_ppm = drift_ppm
        self._epoch: Epoch | None = None
        self._given_up = Epoch(0)
        self._valid_until: Instant | None = None

    @property
    def epoch(self) -> Epoch | None:
        """The fencing token to send with every act, None before the first grant and after `lost`."""
        return self._epoch

    @property
    def given_up(self) -> Epoch:
        """The newest epoch that was given up or refused, to send with the next `Acquire`."""
        return self._given_up

    def granted(self, asked_at: Instant, epoch: Epoch, ttl_ms: int) -> None:
        """Take note of a grant or renewal that answers the question asked at `asked_at`."""
        if epoch <= self._given_up or (self._epoch is not None and epoch < self._epoch):
            return  # a late answer or a duplicate, from before the last grant or `lost` (I6)
        margin = ttl_ms * self._drift_ppm // 1_000_000
        until = Instant(asked_at + ttl_ms - margin)
        if self._epoch == epoch and self._valid_until is not None:
            until = Instant(max(until, self._valid_until))
        self._epoch = epoch
        self._valid_until = until

    def lost(self) -> None:
        """Give up what is held: before a `Release` leaves, and when a renewal of this epoch was refused."""
        if self._epoch is not None:
            self._given_up = self._epoch
        self._epoch = None
        self._valid_until = None

    def is_valid(self, now: Instant) -> bool:
        """Return whether the holder may act at this instant."""
        return self._valid_until is not None and now < self._valid_until

    def valid_until(self) -> Instant | None:
        """Return the instant at which the holder must stop acting if no renewal comes."""
        return self._valid_until
