"""The actors of the lease history: a granter, holders that compete, and the store that they write to.

Each is the shell that a real service puts around `base.core.lease`, without asyncio, and does no more for safety than
such a shell must:

- the granter stores the epoch before a grant leaves, steps `Stalled` when its loop ran late, and after a crash says
  nothing until every promise of its former life is over;
- a holder remembers when it asked, counts from there, and gives a lease up before it releases it;
- the store refuses whoever writes with an epoch older than the newest it has seen.

`Guards` takes any one of these away, to show that the checker would notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import assert_never

from base.clock import Instant
from base.core.lease import (
    Acquire,
    Ended,
    Granted,
    HeldLease,
    LeaseTable,
    Refused,
    Release,
    Renew,
    Stalled,
    Tick,
)
from base.ids import Epoch, Incarnation
from roadstead.sim.host import Host

__all__ = ["Granter", "Guards", "Holder", "Store", "Write"]

TTL_MS = 1_000
TICK_MS = 100
"""The granter runs at least this often: a greater gap was a stall."""
ASK_MS_MIN, ASK_MS_MAX = 100, 400
RELEASE_PERMILLE = 100

assert TICK_MS * 3 < TTL_MS
assert ASK_MS_MAX * 2 < TTL_MS, "one lost renewal must not cost a lease"


@dataclass(frozen=True, slots=True)
class Guards:
    """What keeps leases safe. All hold, but for the sensitivity test, which removes one at a time."""

    counts_from_asking: bool = True
    """The holder counts a lease from when it asked, not from when the answer came."""
    drift_margin: bool = True
    """The holder ends earlier by a margin, as its clock may be the slower one."""
    waits_after_crash: bool = True
    """A restarted granter grants nothing until its former life's promises are over."""
    stores_epochs: bool = True
    """The granter's epochs survive its crashes."""
    notices_stalls: bool = True
    """A granter that was stalled does not count that time against the holders."""
    store_fence: bool = True
    """The store checks epochs."""
    incarnation_fence: bool = True
    """A holder's lives are told apart."""
    gives_up_for_good: bool = True
    """A holder that asks again after a release says which epoch it gave up."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the name of each guard."""
        return tuple(guard.name for guard in fields(cls))

    def without(self, *names: str) -> Guards:
        """Return the guards with these removed."""
        return replace(self, **dict.fromkeys(names, False))


# ---------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True)
class Ask:
    """A holder's question, numbered within its life so that it knows when it asked."""

    number: int
    event: Acquire | Renew | Release


@dataclass(frozen=True, slots=True)
class Answer:
    """The granter's answer to one question of one life."""

    number: int
    incarnation: Incarnation
    effect: Granted | Refused


@dataclass(frozen=True, slots=True)
class Write:
    """An act under a lease."""

    resource: str
    epoch: Epoch
    holder: str
    incarnation: Incarnation


# ---------------------------------------------------------------- actors


class Granter:
    """Owns the lease table. `observe` is the checker's ear and hears each effect as it leaves."""

    def __init__(
        self, host: Host, guards: Guards, observe: Callable[[Instant, Granted | Refused | Ended], None]
    ) -> None:
        self._host = host
        self._guards = guards
        self._observe = observe
        self._ran_at = Instant(0)
        self.started_at = Instant(0)
        self.table = LeaseTable(first_epoch=Epoch(host.disk.get("epoch", 0)))

    def start(self, now: Instant) -> None:
        """Begin; in a later life with silence, since the former one's promises are out there and unknown."""
        self._ran_at = self.started_at = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Answer a question."""
        assert isinstance(message, Ask)
        self._notice_stall(now)
        if self._is_silent(now):
            return
        for effect in self._step(now, message.event):
            if not isinstance(effect, Ended):
                answer = Answer(message.number, message.event.incarnation, effect)
                self._host.send(source, answer)

    def wake(self, now: Instant) -> None:
        """End what is over."""
        self._notice_stall(now)
        self._step(now, Tick())

    def next_deadline(self) -> Instant | None:
        """Return the next lease's end, or the tick by which a stall is noticed."""
        tick_at = Instant(self._ran_at + TICK_MS)
        ends_at = self.table.next_deadline()
        return tick_at if ends_at is None else min(ends_at, tick_at)

    def _is_silent(self, now: Instant) -> bool:
        is_first_life = self._host.incarnation == 1
        return not is_first_life and self._guards.waits_after_crash and now < self.started_at + TTL_MS

    def _step(self, now: Instant, event: Acquire | Renew | Release | Tick | Stalled) -> list[Granted | Refused | Ended]:
        effects = self.table.step(now, event)
        self.table.check_invariants()
        for effect in effects:
            if isinstance(effect, Granted) and effect.is_new and self._guards.stores_epochs:
                # Before the grant leaves: a number that somebody knows must never be given again.
                self._host.disk["epoch"] = max(self._host.disk.get("epoch", 0), effect.lease.epoch)
            self._observe(now, effect)
        return effects

    def _notice_stall(self, now: Instant) -> None:
        gap_ms = now - self._ran_at
        self._ran_at = now
        # Twice a tick, because wake-ups are late by a little without any stall. The whole gap counts, up to a tick
        # more than the stall: a lease that ends later than it must is safe, one that ends earlier convicts a holder.
        if gap_ms >= 2 * TICK_MS and self._guards.notices_stalls:
            self._step(now, Stalled(gap_ms))


@dataclass(slots=True)
class _Want:
    """A resource that a holder wants, and what it has of it."""

    held: HeldLease
    due_at: Instant


class Holder:
    """Competes for every resource; writes and renews while it holds one, and gives it up now and then."""

    def __init__(self, host: Host, guards: Guards, resources: tuple[str, ...]) -> None:
        self._host = host
        self._guards = guards
        self._resources = resources
        self._incarnation = host.incarnation if guards.incarnation_fence else Incarnation(1)
        self._wants: dict[str, _Want] = {}
        self._asked: dict[int, tuple[Instant, Acquire | Renew | Release]] = {}
        self._questions = 0

    def start(self, now: Instant) -> None:
        """Want everything, soon."""
        for resource in self._resources:
            due_at = Instant(now + self._host.dice.between(0, ASK_MS_MAX))
            self._wants[resource] = _Want(self._nothing_held(), due_at)

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Learn what the granter said. Its duplicates reach the core as well: only age ends a question."""
        assert source == "granter"
        assert isinstance(message, Answer)
        if message.incarnation != self._incarnation or message.number not in self._asked:
            return
        asked_at, event = self._asked[message.number]
        held = self._wants[event.resource].held
        match message.effect:
            case Granted(lease):
                counted_from = asked_at if self._guards.counts_from_asking else now
                held.granted(counted_from, lease.epoch, lease.ttl_ms)
            case Refused():
                # Only for what is held now: a late refusal of an earlier lease says nothing about this one.
                if isinstance(event, Renew) and event.epoch == held.epoch:
                    held.lost()
            case _:
                assert_never(message.effect)

    def wake(self, now: Instant) -> None:
        """Go through what is due: use, renew or give up what is held, ask for what is not."""
        self._asked = {number: asked for number, asked in self._asked.items() if now < asked[0] + 4 * TTL_MS}
        for resource in self._resources:
            want = self._wants[resource]
            if now < want.due_at:
                continue
            want.due_at = Instant(now + self._host.dice.between(ASK_MS_MIN, ASK_MS_MAX))
            epoch = self.belief(now, resource)
            if epoch is None:
                given_up = want.held.given_up if self._guards.gives_up_for_good else Epoch(0)
                self._ask(now, Acquire(resource, self._host.name, self._incarnation, TTL_MS, given_up))
                continue
            self._host.send("store", Write(resource, epoch, self._host.name, self._host.incarnation))
            if self._host.dice.chance(RELEASE_PERMILLE):
                self._give_up(want)
                self._ask(now, Release(resource, self._host.name, self._incarnation, epoch))
            else:
                self._ask(now, Renew(resource, self._host.name, self._incarnation, epoch))

    def next_deadline(self) -> Instant | None:
        """Return when the next resource is due."""
        return min(want.due_at for want in self._wants.values())

    def belief(self, now: Instant, resource: str) -> Epoch | None:
        """Return the epoch under which this holder would act now, None when it would not."""
        held = self._wants[resource].held
        return held.epoch if held.is_valid(now) else None

    def _ask(self, now: Instant, event: Acquire | Renew | Release) -> None:
        self._questions += 1
        self._asked[self._questions] = (now, event)
        self._host.send("granter", Ask(self._questions, event))

    def _give_up(self, want: _Want) -> None:
        if self._guards.gives_up_for_good:
            want.held.lost()
        else:
            want.held = self._nothing_held()

    def _nothing_held(self) -> HeldLease:
        return HeldLease() if self._guards.drift_margin else HeldLease(drift_ppm=0)


class Store:
    """Keeps the newest epoch of each resource on disk and accepts no older one.

    `observe` hears of each write, and whether it was accepted.
    """

    def __init__(self, host: Host, guards: Guards, observe: Callable[[Write, bool], None]) -> None:
        self._host = host
        self._guards = guards
        self._observe = observe

    def start(self, now: Instant) -> None:
        """Nothing to do: the fence is on disk."""

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Accept a write, or drop it at the fence."""
        assert isinstance(message, Write)
        del now, source
        newest = self._host.disk.get(message.resource, 0)
        is_accepted = message.epoch >= newest or not self._guards.store_fence
        if is_accepted:
            self._host.disk[message.resource] = message.epoch
        self._observe(message, is_accepted)

    def wake(self, now: Instant) -> None:
        """Nothing is ever due."""

    def next_deadline(self) -> Instant | None:
        """Return None: a store only answers."""
        return None
