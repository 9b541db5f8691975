"""Which access nodes a client shall try, in which order.

    locate (before) -> rule of the policy -> arm by segment or bucket -> region by order and room -> draw -> candidates

**Arm.** The rollouts are asked in order; the first that takes the client gives the arm. It is left when it has no node,
or none that takes anybody, in the region that the client would go to anyway: a canary is no reason to be far away. When
stable takes nobody at all, a canary is better than no service.

**Region.** The first in the client's order that has room (`limit`) and credit (a slot now). When none has both, those
with credit share what comes by the room that they have left; when none has credit, the one whose slot is the earliest,
and the client is told to wait for it. So a lost region becomes a queue at the others and no storm. A pool of which
nothing was heard for `report_expiry_ms` is not taken for full: its estimate only grows, as nobody is seen to leave.

**Draw.** Nobody takes the minimum of old reports: all schedulers and all clients of a second would pick the same node.
Nodes are drawn at random and compared in pairs, the better one is the next candidate, the other is compared with the
next one drawn. A node without credit loses against one with credit; otherwise the lower load per weight wins.

A decision is a function of what the engine was told before, in this order, and of its seed: another engine that is
told the same decides the same. A decision carries the facts of which `explanation` makes sentences.

Invariants:
    I1  Candidates are distinct nodes that the snapshot did not leave out: neither draining, cordoned nor full. There
        are `candidates` of them, or as many as the arm has in all regions.
    I2  `not_before_ms` is at most `slot_horizon_ms`; beyond, nobody is assigned.
    I3  Two engines with the same settings and seed that are told the same make the same decisions.

Sources: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS, 2001); credit before
load is the hot-before-cold rule of B. Wydrowski et al., "Load is not what you should balance" (NSDI 2024); rendezvous
hashing: D. Thaler, C. Ravishankar (IEEE/ACM ToN, 1998), bounded as in V. Mirrokni et al., "Consistent Hashing with
Bounded Loads" (SODA 2018).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from enum import IntEnum
from operator import attrgetter

import mmh3
import msgspec

from scheduler.core.churn import Churn
from scheduler.core.cohorts import ActiveRollout, Cohort, Placed
from scheduler.core.conditions import Lists
from scheduler.core.load import Share, Tally
from scheduler.core.node import AccessNode
from scheduler.core.panic import PanicGuard
from scheduler.core.policy import DEFAULT_POLICY, CompiledPolicy, Policy
from scheduler.core.pools import Dice, Pool, draw
from scheduler.core.regions import Regions
from scheduler.core.request import Request
from scheduler.core.snapshot import STABLE, Settings, Snapshot

__all__ = ["Credit", "Decision", "Engine", "Passed", "Picked"]

U = 1 / 4_294_967_297
"""Makes of a hash of 32 bits, plus one, a number above 0 and below 1."""
RETRY_MS = 1_000
"""When to ask again where nobody takes clients now."""


class Picked(IntEnum):
    """How the region was found."""

    NEAREST = 0
    """The first of the client's order with room and credit."""
    BY_ROOM = 1
    """None had both; those with credit share by the room that is left."""
    BY_SLOT = 2
    """None had credit: the earliest slot."""
    NOBODY = 3


class Passed(IntEnum):
    """Why a region or arm was left."""

    NO_CREDIT = 0
    NO_ROOM = 1
    ARM_NOT_HERE = 2
    """The arm has no node in the region where stable takes the client."""
    ARM_FULL = 3
    """Its nodes there take nobody now; without a region: nowhere."""
    NO_SLOT = 4
    """Its next slot is beyond the horizon."""


class Decision(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was decided, and the facts behind it. Node numbers are indexes into the snapshot's nodes.

    Without candidates nobody takes clients now; `not_before_ms` is then when to ask again.
    """

    seq: int
    at: int
    generation: int
    region: str
    arm: str
    candidates: tuple[int, ...]
    not_before_ms: int = 0
    rule: int = 0
    picked: int = 0
    placed: tuple[Placed, ...] = ()
    """How each rollout that was asked placed the client, in order."""
    passed: tuple[tuple[str, str, int], ...] = ()
    """Pools (arm, region) that were left, and why (`Passed`)."""
    drawn: tuple[int, ...] = ()
    """The nodes drawn, in order; the first candidate is the better of the first two, and so on."""
    loads: tuple[float, ...] = ()
    """Load per weight of each of them, as compared; infinite where the node had no credit."""
    carrier: str = ""
    """The carrier whose nodes it was drawn from; "" for all of the region."""


class Credit(msgspec.Struct, frozen=True):
    """The slots that were given and are still to come: when each node, and each pool, takes the next newcomer.

    Pools by arm, region and carrier. What is over is left out.
    """

    nodes: dict[str, float] = {}
    pools: dict[tuple[str, str, str], float] = {}


NO_CREDIT = Credit()


class Engine:
    """See the module. All times are monotonic ms."""

    def __init__(self, settings: Settings, random: Dice, *, seq: int = 0, credit: Credit = NO_CREDIT) -> None:
        """Know nobody yet. Decisions are numbered from `seq` + 1 on; `credit` is what was given before."""
        self.settings = settings
        self._random = random
        self._guard = PanicGuard(percent=settings.panic_percent, hold_ms=settings.panic_hold_ms)
        self._tallies: dict[str, Tally] = {}
        self._share = Share(settle_ms=settings.connect_window_ms)
        self._churn = Churn()
        self._credit = credit
        self._cohorts: tuple[Cohort, ...] = ()
        self._regions = Regions()
        self._policy = CompiledPolicy(DEFAULT_POLICY)
        self._view: tuple[AccessNode, ...] = ()
        self._schedulers = 1
        self.seq = seq
        """Number of the last decision."""
        self._generation = 0
        self._by_index: list[Tally] = []
        self.snapshot = self._compile((), 0)

    @property
    def is_panic(self) -> bool:
        """Whether nodes that vanished are kept, see `core.panic`."""
        return self._guard.is_panic

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy.policy

    def accept_loss(self) -> None:
        """An operator says that the nodes which panic keeps are dead."""
        self._guard.accept()

    def configure(
        self, *, rollouts: Iterable[ActiveRollout], policy: Policy, lists: Lists, regions: Regions, now: int
    ) -> None:
        """Go by these from here on; `lists` are those that the policy's conditions may name."""
        self._cohorts = tuple(Cohort(active) for active in rollouts)
        self._policy = CompiledPolicy(policy, lists)
        self._regions = regions
        self._renew(self._view, now)

    def observe(self, nodes: Sequence[AccessNode], now: int, *, schedulers: int = 1) -> None:
        """Take a view of the registry: all access nodes that are registered, and how many schedulers are."""
        self._view = self._guard.sees(nodes, now)
        self._schedulers = schedulers
        self._renew(self._view, now)

    def decide(self, request: Request, now: int) -> Decision:
        """Decide, and count on the client to go to the first candidate."""
        decision = self._decide(request, now, self.seq + 1)
        self.seq += 1
        if decision.candidates:
            self._assigned(decision, now)
        return decision

    def consider(self, request: Request, now: int, dice: Dice) -> Decision:
        """Return what `decide` could answer, by other dice, and leave everything as it is."""
        own, self._random = self._random, dice
        try:
            return self._decide(request, now, 0)
        finally:
            self._random = own

    # ---------------------------------------------------------------- views

    def credit(self, now: int) -> Credit:
        """Return the slots that were given and are still to come, of those too who are not there at the moment."""
        snapshot, kept = self.snapshot, self._credit
        nodes = kept.nodes | dict(zip((node.id for node in snapshot.nodes), snapshot.next_at, strict=True))
        pools = kept.pools | {(one.arm, one.region, one.carrier): one.next_at for one in snapshot.every_pool()}
        return Credit(
            {key: at for key, at in nodes.items() if at > now}, {key: at for key, at in pools.items() if at > now}
        )

    def _renew(self, nodes: tuple[AccessNode, ...], now: int) -> None:
        self._credit = self.credit(now)
        self.snapshot = self._compile(nodes, now)
        self._by_index = [self._tallies[node.id] for node in self.snapshot.nodes]

    def _compile(self, nodes: tuple[AccessNode, ...], now: int) -> Snapshot:
        nodes = tuple(sorted(nodes, key=attrgetter("id")))
        self._tallies = {node.id: self._tallies.get(node.id) or Tally() for node in nodes}
        share = self._share.observe(nodes, now, self._schedulers)
        window_ms = self.settings.connect_window_ms
        self._churn.observe(nodes, now)
        loads = [
            self._churn.left(node, now) + self._tallies[node.id].pending(node, now, window_ms) / share for node in nodes
        ]
        self._generation += 1
        snapshot = Snapshot(
            nodes,
            loads,
            cohorts=self._cohorts,
            regions=self._regions,
            settings=self.settings,
            share=share,
            now=now,
            generation=self._generation,
        )
        kept = self._credit
        for index, node in enumerate(nodes):
            if snapshot.step_ms[index] or index in snapshot.left_out:
                snapshot.next_at[index] = kept.nodes.get(node.id, 0.0)
        for pool in snapshot.every_pool():
            if pool.step_ms:
                pool.next_at = kept.pools.get((pool.arm, pool.region, pool.carrier), 0.0)
        return snapshot

    def _assigned(self, decision: Decision, now: int) -> None:
        snapshot = self.snapshot
        first = decision.candidates[0]
        self._by_index[first].assigned += 1
        weight = snapshot.unit
        snapshot.load[first] += weight
        for pool in snapshot.homes[first]:
            pool.used += weight
            if pool.step_ms:
                pool.next_at = max(now, pool.next_at) + pool.step_ms
        step_ms = snapshot.step_ms[first]
        if step_ms:
            # From the slot on and not from now: the client comes then, be it the node or the pool that it waits for.
            snapshot.next_at[first] = max(now + decision.not_before_ms, snapshot.next_at[first]) + step_ms

    # ---------------------------------------------------------------- deciding

    def _decide(self, request: Request, now: int, seq: int) -> Decision:
        snapshot, settings = self.snapshot, self.settings
        location = request.location
        rule_number, rule = self._policy.rule_for(request)
        region = location.region if rule.by_proximity else ""
        limit = now + settings.burst_ms
        passed: list[tuple[str, str, int]] = []
        placed: tuple[Placed, ...] = ()
        pool: Pool | None = None
        if rule.by_canary and snapshot.cohorts:
            pool, picked, placed = self._canary(request, region, limit, passed)
        if pool is None:
            pool, picked = self._pool(STABLE, region, limit, passed)
        if pool is None and snapshot.cohorts:
            pool, picked = self._last_resort(region, limit, passed)
        if pool is None:
            return self._nobody(seq, now, rule_number, placed, passed)
        part, carrier = pool, location.carrier
        if carrier and pool.carriers:
            part = pool.carriers.get(carrier, pool)
            # Rather another carrier's nodes than full ones, or a longer wait.
            if part.used >= part.capacity or (part.next_at > limit and part.next_at > pool.next_at):
                part = pool
        if rule.pick == "least_connections":
            candidates, drawn, loads = self._least(part, limit)
        elif rule.pick == "sticky":
            candidates, drawn, loads = self._sticky(part, request.user, limit)
        else:
            candidates, drawn, loads = self._weighted(part, limit)
        next_at = snapshot.next_at
        wait = next_at[candidates[0]]
        if wait > limit:
            candidates = _soonest_first(candidates, next_at, limit)
            wait = next_at[candidates[0]]
        wait = max(wait, pool.next_at)
        not_before = math.ceil(wait - limit) if wait > limit else 0
        if not_before > settings.slot_horizon_ms:
            passed.append((pool.arm, pool.region, Passed.NO_SLOT))
            return self._nobody(seq, now, rule_number, placed, passed)
        if len(candidates) < settings.candidates:
            candidates = self._filled(candidates, pool)
        return Decision(
            seq,
            now,
            snapshot.generation,
            pool.region,
            pool.arm,
            candidates,
            not_before,
            rule_number,
            picked,
            placed,
            tuple(passed),
            drawn,
            loads,
            part.carrier,
        )

    def _nobody(
        self, seq: int, now: int, rule: int, placed: tuple[Placed, ...], passed: list[tuple[str, str, int]]
    ) -> Decision:
        generation = self.snapshot.generation
        return Decision(seq, now, generation, "", STABLE, (), RETRY_MS, rule, Picked.NOBODY, placed, tuple(passed))

    def _canary(
        self, request: Request, region: str, limit: int, passed: list[tuple[str, str, int]]
    ) -> tuple[Pool | None, int, tuple[Placed, ...]]:
        """Return where a rollout sends the client, None for stable; and how each that was asked placed it."""
        placed: list[Placed] = []
        for cohort in self.snapshot.cohorts:
            place = cohort.place(request)
            placed.append(place)
            if place.is_canary:
                pool, picked = self._canary_pool(cohort.rollout.name, region, limit, passed)
                if pool is not None:
                    return pool, picked, tuple(placed)
        return None, Picked.NOBODY, tuple(placed)

    def _canary_pool(
        self, arm: str, region: str, limit: int, passed: list[tuple[str, str, int]]
    ) -> tuple[Pool | None, int]:
        if region:
            for where, pool, stable in self.snapshot.walk(arm, region):
                if pool is not None and pool.used < pool.limit and pool.next_at <= limit:
                    return pool, Picked.NEAREST
                if stable is not None and stable.used < stable.limit and stable.next_at <= limit:
                    passed.append((arm, where, Passed.ARM_NOT_HERE if pool is None else Passed.ARM_FULL))
                    return None, Picked.NOBODY
        pool, picked = self._shared(arm, self.snapshot.order(arm, region), limit, passed)
        if pool is None:
            passed.append((arm, "", Passed.ARM_FULL))
        return pool, picked

    def _last_resort(self, region: str, limit: int, passed: list[tuple[str, str, int]]) -> tuple[Pool | None, int]:
        """Rather a canary than no service, and one that failed the last of all: stable takes nobody."""
        passed.append((STABLE, "", Passed.ARM_FULL))
        for cohort in sorted(self.snapshot.cohorts, key=attrgetter("is_failed")):
            pool, picked = self._pool(cohort.rollout.name, region, limit, passed)
            if pool is not None:
                return pool, picked
        return None, Picked.NOBODY

    def _pool(self, arm: str, region: str, limit: int, passed: list[tuple[str, str, int]]) -> tuple[Pool | None, int]:
        """Return where to send the client within the arm, see the module; None when it takes nobody anywhere."""
        order = self.snapshot.order(arm, region)
        if region:
            for pool in order:
                if pool.used >= pool.limit:
                    passed.append((arm, pool.region, Passed.NO_ROOM))
                elif pool.next_at > limit:
                    passed.append((arm, pool.region, Passed.NO_CREDIT))
                else:
                    return pool, Picked.NEAREST
        return self._shared(arm, order, limit, passed)

    def _shared(
        self, arm: str, order: tuple[Pool, ...], limit: int, passed: list[tuple[str, str, int]]
    ) -> tuple[Pool | None, int]:
        """Return one of the pools by the room that they have, or the one with the earliest slot."""
        expired = limit - self.settings.burst_ms - self.settings.report_expiry_ms
        # A canary's limit is the operator's word; beyond stable's there is still room that was kept in reserve.
        open_pools = [
            pool
            for pool in order
            if pool.used < (pool.capacity if arm == STABLE else pool.limit) or pool.heard_at < expired
        ]
        ready = [pool for pool in open_pools if pool.next_at <= limit]
        if ready:
            room = [max(pool.capacity - pool.used, 0.01 * pool.capacity) for pool in ready]
            at = self._random.random() * sum(room) if len(ready) > 1 else 0.0
            for pool, part in zip(ready, room, strict=True):  # noqa: B007 - the last, where rounding leaves some
                at -= part
                if at < 0:
                    break
            return pool, Picked.BY_ROOM
        if open_pools:
            first = min(open_pools, key=attrgetter("next_at"))
            if first.next_at - limit <= self.settings.slot_horizon_ms:
                return first, Picked.BY_SLOT
            passed.append((arm, first.region, Passed.NO_SLOT))
        return None, Picked.NOBODY

    # ---------------------------------------------------------------- drawing

    def _least(self, pool: Pool, limit: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
        snapshot = self.snapshot
        load, per_unit, next_at, vague = snapshot.load, snapshot.per_unit, snapshot.next_at, snapshot.vague
        count = self.settings.candidates
        drawn = draw(pool, count + 1, self._random)
        chosen: list[int] = []
        loads: list[float] = []
        held, held_load = -1, -1.0
        for node in drawn:
            its_load = load[node] * per_unit[node] if next_at[node] <= limit else math.inf
            loads.append(its_load)
            if held < 0:
                held, held_load = node, its_load
                continue
            # Of two that are equal, of two without credit above all, the one who has waited longer for a newcomer.
            is_better = its_load < held_load or (its_load == held_load and next_at[node] < next_at[held])
            # A report so old tells nothing: as they were drawn.
            if is_better and (vague is None or self._random.random() >= max(vague[held], vague[node])):
                chosen.append(node)
            else:
                chosen.append(held)
                held, held_load = node, its_load
        if len(chosen) < count:
            chosen.append(held)
        return tuple(chosen), tuple(drawn), tuple(loads)

    def _weighted(self, pool: Pool, limit: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
        drawn = candidates = tuple(draw(pool, self.settings.candidates + 1, self._random))
        if self.snapshot.next_at[drawn[0]] > limit:
            candidates = _soonest_first(drawn, self.snapshot.next_at, limit)
        return candidates[: self.settings.candidates], drawn, ()

    def _sticky(self, pool: Pool, user: str, limit: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
        snapshot = self.snapshot
        load, per_unit, next_at = snapshot.load, snapshot.per_unit, snapshot.next_at
        count = self.settings.candidates
        if not pool.seeds:
            pool.seeds = tuple([mmh3.hash(snapshot.nodes[i].id, signed=False) for i in pool.members])
        hashes = [mmh3.hash(user, seed, False) for seed in pool.seeds]
        # A weighted rendezvous: -ln(u) / weight, the smallest first; by the hash alone where all weigh the same.
        if pool.cumulative is None:
            drawn = tuple([i for _, i in heapq.nlargest(count + 1, zip(hashes, pool.members, strict=True))])
        else:
            scores = [-math.log((u + 1) * U) * per_unit[i] for u, i in zip(hashes, pool.members, strict=True)]
            drawn = tuple([i for _, i in heapq.nsmallest(count + 1, zip(scores, pool.members, strict=True))])
        loads = tuple([math.inf if next_at[i] > limit else load[i] * per_unit[i] for i in drawn])
        bound = (1 + self.settings.sticky_excess) * (pool.used + 1) / pool.total
        candidates = [i for i, one in zip(drawn, loads, strict=True) if one <= bound]
        candidates += [i for i in drawn if i not in candidates]
        return tuple(candidates[:count]), drawn, loads

    def _filled(self, candidates: tuple[int, ...], pool: Pool) -> tuple[int, ...]:
        """Add nodes of other carriers, then of the next regions, as far as there are too few."""
        filled = candidates
        for other in (pool, *self.snapshot.order(pool.arm, pool.region)):
            missing = self.settings.candidates - len(filled)
            if missing and (other is not pool or len(filled) < len(pool.members)):
                # As many more as there are candidates, for those may be drawn again.
                drawn = draw(other, missing + len(filled), self._random)
                filled += tuple([index for index in drawn if index not in filled][:missing])
        return filled


def _soonest_first(candidates: tuple[int, ...], next_at: list[float], limit: int) -> tuple[int, ...]:
    """Return them with the first that has credit in front, or the one who has it the soonest."""
    best = candidates[0]
    at = next_at[best]
    for index in candidates:
        if next_at[index] < at:
            best, at = index, next_at[index]
            if at <= limit:
                break
    return candidates if best == candidates[0] else (best, *[index for index in candidates if index != best])
