"""The lease history: does a lease, through all that can happen, ever have two holders?

One granter, three holders that compete for two resources, one store that they write to; a bad time for a while, then
everything heals. Safety is checked after every event at true time, which none of the hosts knows.

Invariants (the numbers of `base.core.lease`, then the history's own):
    I2  The epochs that the granter gives for a resource strictly increase, over its crashes too.
    I4  At most one holder believes that it holds a resource, and the granter's table agrees with it.
    I5  No lease runs out before the granter itself ran for the lease's time since it was granted or renewed.
    H1  The store never accepts an older epoch after a newer one, nor two holders' writes under one epoch.
    H2  Once all faults are healed, each resource is held by somebody within `HEAL_MS_MAX`.

While a restarted granter can't know which leases its former life gave, I4's first half alone is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import assert_never

from base.clock import Instant
from base.core.lease import Ended, Granted, Refused
from base.ids import Epoch, Incarnation
from roadstead.sim.faults import Faults
from roadstead.sim.host import Host
from roadstead.sim.lease_hosts import TICK_MS, TTL_MS, Granter, Guards, Holder, Store, Write
from roadstead.sim.report import Report
from roadstead.sim.world import SimWorld

__all__ = ["run", "run_history"]

RESOURCES = ("r1", "r2")
HOLDERS = ("h1", "h2", "h3")
CHAOS_MS = 12_000
HEAL_MS_MAX = 3 * TTL_MS
"""A granter's silence, then a lease that a late message gave to somebody who knows nothing of it, then asking."""


class Referee:
    """Sees all hosts at true time, and what leaves the granter and enters the store."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()
        self.granter: Granter | None = None
        self.holders: dict[str, Holder] = {}
        self.held: set[str] = set()
        """Resources that somebody held since this was last cleared."""
        self._granted: dict[str, Epoch] = {}
        self._renewed: dict[str, tuple[Instant, int]] = {}
        self._written: dict[str, tuple[Epoch, str, Incarnation]] = {}

    def hear(self, now: Instant, effect: Granted | Refused | Ended) -> None:
        """Check what the granter says (I2, I5)."""
        match effect:
            case Granted(lease, is_new):
                last = self._granted.get(lease.resource, Epoch(0))
                if is_new and lease.epoch <= last:
                    self._world.fail(f"I2: {lease.resource} granted at epoch {lease.epoch} after {last}")
                self._granted[lease.resource] = lease.epoch
                self._renewed[lease.resource] = (now, self._world.lost_ms("granter"))
                self.counts["grants" if is_new else "renewals"] += 1
            case Ended(lease, expired) if expired:
                since, lost_ms = self._renewed[lease.resource]
                ran_ms = (now - since) - (self._world.lost_ms("granter") - lost_ms)
                # Two ticks less, since a stall that the healing cut short may be too short to be noticed.
                if ran_ms < lease.ttl_ms - 2 * TICK_MS:
                    self._world.fail(f"I5: {lease.resource} ended after {ran_ms} of {lease.ttl_ms} ms")
                self.counts["expiries"] += 1
            case Ended():
                self.counts["releases"] += 1
            case Refused():
                self.counts["refusals"] += 1
            case _:
                assert_never(effect)

    def write(self, write: Write, is_accepted: bool) -> None:  # noqa: FBT001 - one fact about the write
        """Check what the store accepted (H1)."""
        self.counts["writes" if is_accepted else "fenced"] += 1
        if not is_accepted:
            return
        writer = (write.epoch, write.holder, write.incarnation)
        last = self._written.get(write.resource, writer)
        if write.epoch < last[0]:
            self._world.fail(f"H1: {write.resource} written at epoch {write.epoch} after {last[0]}")
        if write.epoch == last[0] and writer != last:
            self._world.fail(f"H1: {write.resource} written by {writer} and by {last}")
        self._written[write.resource] = writer

    def look(self) -> None:
        """Check what the hosts believe at this instant (I4)."""
        for resource in RESOURCES:
            believers = self._believers(resource)
            if not believers:
                continue
            self.held.add(resource)
            if len(believers) > 1:
                self._world.fail(f"I4: {resource} is held by {believers}")
            self._compare(resource, *believers[0])

    def _believers(self, resource: str) -> list[tuple[str, Epoch]]:
        believers: list[tuple[str, Epoch]] = []
        for name, holder in self.holders.items():
            if self._world.is_up(name):
                epoch = holder.belief(self._world.local(name), resource)
                if epoch is not None:
                    believers.append((name, epoch))
        return believers

    def _compare(self, resource: str, name: str, epoch: Epoch) -> None:
        now = self._world.local("granter")
        if self.granter is None or not self._world.is_up("granter") or now < self.granter.started_at + TTL_MS:
            return  # nobody, or a life so young that it need not know what its former life gave
        lease = self.granter.table.get(resource)
        if lease is None or (lease.holder, lease.epoch) != (name, epoch) or lease.expires_at <= now:
            self._world.fail(f"I4: {name} holds {resource} at epoch {epoch}, the table says {lease} at {now}")


def run_history(
    seed: int, *, guards: Guards | None = None, faults: Faults | None = None, chaos_ms: int = CHAOS_MS
) -> Report:
    """Run one history: `chaos_ms` of faults, then healing, then until each resource is held.

    Raises:
        Violation: an invariant did not hold.
    """
    world = SimWorld(seed, faults or Faults())
    referee = _people(world, guards or Guards())
    world.run(chaos_ms)
    world.heal()
    referee.held.clear()
    while len(referee.held) < len(RESOURCES):
        if world.now >= chaos_ms + HEAL_MS_MAX:
            idle = [resource for resource in RESOURCES if resource not in referee.held]
            world.fail(f"H2: nobody held {idle} for {HEAL_MS_MAX} ms after everything healed")
        world.run(world.now + TICK_MS)
    return world.report(dict(referee.counts))


def run(seed: int, without: Collection[str] = ()) -> Report:
    """Run the history for the command line, with the named guards removed."""
    return run_history(seed, guards=Guards().without(*without))


def _people(world: SimWorld, guards: Guards) -> Referee:
    """Add the hosts and the referee to an empty world."""
    referee = Referee(world)

    def granter(host: Host) -> Granter:
        referee.granter = Granter(host, guards, referee.hear)
        return referee.granter

    def holder(host: Host) -> Holder:
        referee.holders[host.name] = Holder(host, guards, RESOURCES)
        return referee.holders[host.name]

    world.add("granter", granter)
    for name in HOLDERS:
        world.add(name, holder)
    world.add("store", lambda host: Store(host, guards, referee.write))
    world.on_event(referee.look)
    return referee
