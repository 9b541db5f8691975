"""A version is rolled out on live connections: by shares, with moves, back again, and by itself when it is bad."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from access.identity import Identity
from access.service import AccessNode
from base.errors import Unauthenticated
from scheduler import movers, rollouts, wishes
from scheduler.core.buckets import bucket
from tests.system.conftest import eventually
from tests.system.fleet import Fleet, clients_of, fleet_of, nodes
from tests.system.light_clients import Clients, LightClient, now

NAME = "next"
STEPS = """\
rollout: next
pool: {version: 2.0.0}
steps:
  - {percent: 30, hold: 1h}
  - {percent: 60, migrate: {rate: 200/s}}
  - {pause: manual}
  - {percent: 100}
on_failure: {assign: stop, move: {rate: 200/s, deadline: 20s}}
"""
RATE = 200
JUDGED = """\
rollout: next
pool: {version: 2.0.0}
steps:
  - {percent: 50, hold: 1h}
  - {percent: 100}
analysis:
  interval: 1s
  failure_limit: 2
  checks:
    - {metric: connect_success, min: 0.9}
on_failure: {assign: stop, move: {rate: 200/s, deadline: 20s}}
"""
BURST_MS = 1_000
"""A plan saves up to 600 ms of its pace, and who is told first may hear of it last."""
INTERVAL_MS, FAILURE_LIMIT, REPORT_MS = 1_000, 2, 1_000
SLACK_MS = 2_000
"""For a machine that has other things to do."""
USERS = [f"user-{number}" for number in range(200)]
CANARIES = ("access-3", "access-4")


def taken(percent: int) -> set[str]:
    """Users whom the canary takes at a share, by their buckets alone."""
    return {user for user in USERS if bucket(NAME, user) < percent * 1_000}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than once a second."""
    monkeypatch.setattr(wishes, "LOOK_S", 0.2)
    monkeypatch.setattr(movers, "RENEW_MS", 200)
    monkeypatch.setattr(rollouts, "TICK_S", 0.2)


@pytest.mark.spec("AR-1")
async def test_a_share_is_the_same_for_all_moved_to_and_given_back() -> None:
    """Both schedulers assign alike; live connections follow and return at their pace; nobody misses anything."""
    async with fleet_of(nodes(2, 2)) as fleet, clients_of(fleet) as clients:
        await fleet.scheduler(2).rollouts.create(STEPS, who="ann")
        await fleet.until_state(NAME, percent=30_000)
        await clients.join(USERS)
        await newcomers_are_assigned_by_bucket(clients)
        await the_share_of_live_connections_is_known(fleet, len(taken(30)))

        await fleet.scheduler(1).rollouts.order(NAME, "step", who="ben")
        sent = await moved_to_the_canary(fleet, clients)

        late = await clients.ask("late", "scheduler-1")
        await fleet.scheduler(2).rollouts.order(NAME, "abort", who="ann")
        await given_back(fleet, clients, sent)
        await whoever_comes_late_is_given_back(clients, late)
        assert clients.untold == []


async def newcomers_are_assigned_by_bucket(clients: Clients) -> None:
    """Those who are connected, and those who only ask, whomever they ask."""
    assert {client.user for client in clients.at(*CANARIES)} == taken(30)
    assert all((client.arm == NAME) == (client.user in taken(30)) for client in clients.all)
    for user in USERS[:40]:
        arms = {(await clients.ask(user, scheduler))["arm"] for scheduler in ("scheduler-1", "scheduler-2")}
        assert arms == {NAME if user in taken(30) else "stable"}


async def the_share_of_live_connections_is_known(fleet: Fleet, canary: int) -> None:
    async def look() -> bool:
        return all(fleet.live(NAME, number) == (canary, len(USERS)) for number in (1, 2))

    await eventually(look)
    for number in (1, 2):
        shown = await fleet.admin("GET", f"/v1/admin/rollouts/{NAME}", number=number)
        assert shown["live"] == {"connections": canary, "total": len(USERS), "percent": 100 * canary / len(USERS)}
        assert 20 < shown["assigned"]["percent"] < 55  # of those who asked this scheduler


async def moved_to_the_canary(fleet: Fleet, clients: Clients) -> list[Any]:
    """As many as the step says, and none but those whose arm it is. The rollout goes on then: to the pause.

    Returns what was sent to everybody meanwhile.
    """
    before = {client.user for client in clients.at(*CANARIES)}
    sent: list[Any] = []
    while fleet.state(NAME).phase != "paused":
        sent.append(len(sent))
        await clients.send(sent[-1])
        await asyncio.sleep(0.3)
    await clients.have(*sent)
    after = {client.user for client in clients.at(*CANARIES)}
    assert before < after <= taken(60)
    assert len(after) >= 0.97 * 0.6 * len(USERS) or after == taken(60)
    assert sent
    await the_share_of_live_connections_is_known(fleet, len(after))
    moved = [client for client in clients.all if client.moves]
    assert {client.user for client in moved} == after - before
    assert pace(moved) <= RATE
    return sent


async def given_back(fleet: Fleet, clients: Clients, sent: list[Any]) -> None:
    """All of them, within the deadline, at most at the rate."""
    began = now()
    canaries = clients.at(*CANARIES)
    for client in clients.all:
        client.moves.clear()
    await eventually(lambda: _has_left(clients))
    took = now() - began
    assert took < 20_000
    assert [len(client.moves) for client in canaries] == [1] * len(canaries)
    assert pace(canaries) <= RATE

    async def is_told() -> bool:
        told = [one.orders.moves for one in fleet.schedulers]
        return all(one is not None and one.is_complete and one.progress["moved"] == len(canaries) for one in told)

    await eventually(is_told)
    await fleet.until_state(NAME, phase="aborted")
    await clients.send("last")
    await clients.have(*sent, "last")


async def whoever_comes_late_is_given_back(clients: Clients, answer: dict[str, Any]) -> None:
    """With a ticket of before."""
    late = LightClient(clients, "late", "scheduler-1")
    assert answer["arm"] == NAME
    assert await late.use(answer)
    assert late.node in CANARIES
    clients.all.append(late)
    await eventually(lambda: _has_left(clients))


async def _has_left(clients: Clients) -> bool:
    return not clients.at(*CANARIES)


def pace(moved: list[LightClient]) -> float:
    """How many a second were told to go, from the first to the last, without what may come at once."""
    times = [at for client in moved for at, _ in client.moves]
    return 1_000 * len(times) / (max(times) - min(times) + BURST_MS)


async def newcomers(fleet: Fleet, clients: Clients) -> None:
    """Fifty users a second, by all schedulers in turn, until cancelled."""
    for number in count():
        scheduler = fleet.schedulers[number % len(fleet.schedulers)]
        clients.spawn(clients.join([f"new-{number}"], scheduler.node.site.name))
        await asyncio.sleep(0.02)


@pytest.mark.spec("AR-1", "AR-7")
async def test_a_bad_canary_is_failed_within_its_intervals_and_left_by_all() -> None:
    """Whoever judges: here the one that took over from the one that died, with evidence of its own."""
    async with fleet_of(nodes(2, 1)) as fleet, clients_of(fleet) as clients:
        await fleet.scheduler(1).rollouts.create(JUDGED, who="ann")
        await fleet.until_state(NAME, percent=50_000)
        async with asyncio.TaskGroup() as tasks:
            coming = tasks.create_task(newcomers(fleet, clients))
            await eventually(lambda: _has_passed(fleet, 1))
            (judge,) = [one for one in fleet.schedulers if one.rollouts.is_judging]
            epoch, dead = fleet.state(NAME).epoch, judge.node.site.name
            await fleet.kill(dead)
            await eventually(lambda: _has_passed(fleet, epoch + 1))
            breaks_at = now()
            connects_fail_at(fleet.access(CANARIES[0]))
            await fleet.until_state(NAME, phase="failed")
            failed_at = now()
            await eventually(lambda: _has_left(clients))
            coming.cancel()
        last_at = max(at for at, _, arm in clients.assigned if arm == NAME)
        assert last_at - breaks_at < INTERVAL_MS * FAILURE_LIMIT + REPORT_MS + SLACK_MS
        assert len([arm for at, _, arm in clients.assigned if at > failed_at and arm != NAME]) > 20
        assert clients.untold == []


async def _has_passed(fleet: Fleet, epoch: int) -> bool:
    """Whether an analysis found the canary good, by enough connects of that epoch or a later one."""
    state = fleet.schedulers[0].orders.rollouts[NAME].record.state
    return state.epoch >= epoch and state.outcome == "passed" and state.connects > 10


def connects_fail_at(node: AccessNode) -> None:
    """Have the node take no ticket from now on, as one would that was started with another key."""

    def refuse(*_: Any) -> Identity:
        raise Unauthenticated("the ticket is not valid: it has an unknown key")

    node._way_in._identities.admit = refuse
