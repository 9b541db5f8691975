"""Schedulers whose registry, or what it shows, cannot be relied on: clients are assigned all the same."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from base.errors import StoreUnavailable
from scheduler import movers
from scheduler.core.moving import MoveRequest
from scheduler.orders import REBALANCE, RebalanceRecord
from tests.system.conftest import eventually
from tests.system.fleet import CANARY, QUICK, Fleet, clients_of, encoded, fleet_of, nodes
from tests.system.light_clients import Clients, now

USERS = [f"user-{number}" for number in range(60)]
ROLLOUT = f"""\
rollout: next
pool: {{version: {CANARY}}}
steps:
  - {{percent: 0, hold: 3s}}
  - {{percent: 100}}
"""
LOCK_MS, RENEW_MS = 2_000, 500
AWAY_MS = 3_000
"""Longer than a lock is held without the registry, and so by which a plan of moves has stopped."""


async def test_without_the_registry_clients_are_assigned_and_nothing_else_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No order is taken, no step made, nobody moved; all of it goes on where it was as soon as it is back."""
    monkeypatch.setattr(movers, "SESSION_TTL_MS", LOCK_MS)
    monkeypatch.setattr(movers, "RENEW_MS", RENEW_MS)
    first, second, canary = nodes(2, 1).items()
    async with fleet_of(dict([first, canary]), QUICK) as fleet, clients_of(fleet) as clients:
        await fleet.admin("POST", "/v1/admin/rollouts", {"document": ROLLOUT})
        await fleet.until_state("next", phase="running")
        await clients.join(USERS)
        assert Counter(client.node for client in clients.all) == {"access-1": len(USERS)}
        fleet.configs |= [second]
        await fleet.start("access-2")
        order = MoveRequest(id="b1", kind="rebalance", rate_per_s=3, grace_ms=1_000)
        await fleet.registry.put(REBALANCE, encoded(RebalanceRecord(order, 0, "ann")))
        await eventually(lambda: _were_moved(clients, 1))

        for way in fleet.ways.values():
            way.cut()
        asked = await everybody_is_assigned_for(clients, AWAY_MS)
        with pytest.raises(StoreUnavailable):
            await fleet.admin("POST", "/v1/admin/rollouts/next/step")
        assert (fleet.state("next").step, fleet.state("next").phase) == (0, "running")
        moved = sum(len(client.moves) for client in clients.all)
        await everybody_is_assigned_for(clients, 600)
        assert sum(len(client.moves) for client in clients.all) == moved < len(USERS) // 2
        assert asked > 100

        for way in fleet.ways.values():
            way.mend()
        await fleet.until_state("next", phase="complete", percent=100_000)
        await eventually(lambda: _were_moved(clients, moved + 1))
        assert clients.untold == []


async def everybody_is_assigned_for(clients: Clients, time_ms: int) -> int:
    """Ask all the while. Returns how often: each time there was an answer."""
    until, asked = now() + time_ms, 0
    while now() < until:
        answer = await clients.ask(f"asking-{asked}", "scheduler-1")
        assert answer["candidates"]
        assert answer["arm"] == "stable"
        asked += 1
        await asyncio.sleep(0.02)
    return asked


async def _were_moved(clients: Clients, count: int) -> bool:
    return sum(len(client.moves) for client in clients.all) >= count


async def test_shares_are_learned_from_tickets_and_vanished_nodes_kept_until_somebody_knows_better() -> None:
    """Of two schedulers one has three times the other's clients; then the registry loses three nodes of four."""
    async with fleet_of(nodes(4, 0)) as fleet, clients_of(fleet) as clients:
        await asyncio.sleep(1.1)  # the first clients of a scheduler that just began may still be on their way
        await shares_are_learned(fleet, clients)
        await vanished_nodes_are_kept(fleet, clients)


async def shares_are_learned(fleet: Fleet, clients: Clients) -> None:
    """By what the nodes count; and so the nodes are equally full, though neither knows what the other one does."""
    await asyncio.gather(
        clients.join([f"many-{number}" for number in range(150)], "scheduler-1"),
        clients.join([f"few-{number}" for number in range(50)], "scheduler-2"),
    )

    async def look() -> bool:
        return all(one.decider.snapshot.share != 0.5 for one in fleet.schedulers) and all(
            sum(node.admitted_of_all for node in one.decider.snapshot.nodes) == 200 for one in fleet.schedulers
        )

    await eventually(look)
    many, few = [one.decider.snapshot.share for one in fleet.schedulers]
    assert 0.6 < many < 0.75
    assert 0.25 < few < 0.4
    held = Counter(client.node for client in clients.all)
    assert max(held.values()) <= 1.2 * 200 / 4


async def vanished_nodes_are_kept(fleet: Fleet, clients: Clients) -> None:
    """Until an operator accepts the loss at one scheduler; the other waits, and they come back."""
    lost = ("access-2", "access-3", "access-4")
    await fleet.lose(*lost)

    async def is_panic() -> bool:
        return all([(await fleet.admin("GET", "/v1/admin/access/nodes", number=n))["is_panic"] for n in (1, 2)])

    await eventually(is_panic)
    await clients.join([f"more-{number}" for number in range(40)])
    assert set(Counter(client.node for client in clients.all[-40:])) == {"access-1", *lost}

    accepted = await fleet.admin("POST", "/v1/admin/access/panic/accept")
    assert accepted == {"is_panic": False, "lost": list(lost)}
    for number, wanted in ((1, {"access-1"}), (2, {"access-1", *lost})):
        seen = {one["id"] for _ in range(20) for one in (await clients.ask("ann", f"scheduler-{number}"))["candidates"]}
        assert seen == wanted

    for name in lost:
        fleet.ways[name].mend()

    async def is_over() -> bool:
        shown = [await fleet.admin("GET", "/v1/admin/access/nodes", number=n) for n in (1, 2)]
        return all(not one["is_panic"] and len(one["nodes"]) == 4 for one in shown)

    await eventually(is_over)
    assert clients.untold == []
