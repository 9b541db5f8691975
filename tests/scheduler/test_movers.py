"""Movers over access nodes in memory: who moves, who is told, and what happens when somebody is not there.

Time is simulated. The nodes answer at once or not at all; clients that are told go a second later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from access.api import (
    ClientsMoved,
    MoveClients,
)
from base.errors import BadRequest, DeadlineExceeded, PeerUnavailable
from base.ids import NodeId
from scheduler.core.moving import Fleet, MoveRequest
from scheduler.movers import LOCK_KEY, PAGES_MAX, Movers
from tests.scheduler.moving_nodes import FakeFleet, Outage


def request(kind: str = "rebalance", **fields: object) -> MoveRequest:
    arm = {} if kind == "rebalance" else {"arm": "v2"}
    settings = {"id": "m1", "kind": kind, "rate_per_s": 40, "grace_ms": 5_000}
    return MoveRequest(**settings | arm | fields)  # type: ignore[arg-type]


@asynccontextmanager
async def running(*movers: Movers) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(one.run()) for one in movers]
        yield
        for task in started:
            task.cancel()


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


# ---------------------------------------------------------------- plans that go well


async def test_a_rebalance_moves_the_newest_where_they_lack(fleet: FakeFleet) -> None:
    """The fewest, each told once; and then the lock is free, and nothing is asked any more."""
    source, target = fleet.add("access-1", 100), fleet.add("access-2")
    movers = fleet.movers()
    movers.want(request())
    async with running(movers):
        await fleet.pass_time(20)
        status = movers.status()
        assert status.progress is not None
        assert (status.progress.phase, status.progress.moved, status.progress.verified) == ("complete", 49, 49)
        assert status.plan.startswith("m1-")
        assert not status.is_mover
        asked = len(source.orders)
        await fleet.pass_time(5)
        assert len(source.orders) == asked
    assert fleet.loads() == {"access-1": 51, "access-2": 49}
    assert {entry.user for entry in target.clients.values()} == {f"access-1-{n}" for n in range(51, 100)}
    told = [move.client for order in source.orders for move in order.moves]
    assert len(told) == len(set(told)) == 49
    assert {order.plan for order in source.orders} == {status.plan}
    assert {move.arm for order in source.orders for move in order.moves} == {"stable"}
    entry = await fleet.registry.get(LOCK_KEY)
    assert entry is not None
    assert (entry.session, entry.value) == (None, b"")


async def test_those_go_to_the_canary_whose_arm_it_is(fleet: FakeFleet) -> None:
    """Found page by page, also where they are few; and to the node that was chosen for them if it has room for them."""
    source = fleet.add("access-1", PAGES_MAX * 1_000 + 500)
    fleet.add("access-2", version="2")
    fleet.add("access-3", version="2")
    canary = {f"access-1-{number}" for number in (3, 2_500, 5_300)}
    fleet.arms = dict.fromkeys(canary, "v2")
    fleet.chosen = dict.fromkeys(canary, NodeId("access-3")) | {"access-1-3": NodeId("access-9")}
    movers = fleet.movers()
    movers.want(request("to_canary", share=2_000))
    async with running(movers):
        await fleet.pass_time(30)
        progress = movers.status().progress
    assert progress is not None
    assert (progress.phase, progress.moved) == ("complete", 3)
    found = {name: {entry.user for entry in fleet.nodes[NodeId(name)].clients.values()} for name in fleet.loads()}
    assert found["access-2"] | found["access-3"] == canary
    assert {"access-1-2500", "access-1-5300"} <= found["access-3"]
    assert {move.arm for order in source.orders for move in order.moves} == {"v2"}


async def test_little_more_is_read_than_is_wanted(fleet: FakeFleet) -> None:
    """What is found and not picked would be kept, at each of a thousand sources."""
    source = fleet.add("access-1", 2_000)
    fleet.add("access-2", version="2")
    fleet.arms = {f"access-1-{number}": "v2" for number in range(2_001)}
    movers = fleet.movers()
    movers.want(request("to_canary", share=1_000))
    async with running(movers):
        await fleet.pass_time(15)
    assert fleet.loads() == {"access-1": 1_980, "access-2": 20}
    assert sum(asked.limit for asked in source.listed) == 100


async def test_everybody_leaves_a_canary_that_is_taken_back(fleet: FakeFleet) -> None:
    """Whatever its arm."""
    fleet.add("access-1", 10)
    fleet.add("access-2", 30, version="2")
    fleet.arms = {"access-2-1": "v2"}
    movers = fleet.movers()
    movers.want(request("to_stable"))
    async with running(movers):
        await fleet.pass_time(15)
    assert fleet.loads() == {"access-1": 40, "access-2": 0}


# ---------------------------------------------------------------- somebody is not there


async def test_a_silent_source_is_counted_and_the_others_go_on(fleet: FakeFleet) -> None:
    """Until it answers again. A call that was not sent is no order; of one that was, nobody is told twice."""
    silent, other = fleet.add("access-1", 100), fleet.add("access-2", 100)
    fleet.add("access-3")
    silent.error = DeadlineExceeded("no reply")
    movers = fleet.movers()
    movers.want(request(rate_per_s=20))
    async with running(movers):
        await fleet.pass_time(5)
        progress = movers.status().progress
        assert progress is not None
        assert (progress.unanswered, progress.phase) == (1, "running")
        assert not silent.orders
        assert len(other.orders) > 2
        silent.error = None
        await fleet.pass_time(30)
        progress = movers.status().progress
    assert progress is not None
    assert progress.phase == "complete"
    assert progress.moved <= 1.1 * progress.minimum
    assert all(65 <= load <= 69 for load in fleet.loads().values())


async def test_an_order_whose_answer_is_lost_counts_as_carried_out(fleet: FakeFleet) -> None:
    """It was, or not: who went by it is not replaced by others, and the totals say later what became of it."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2")
    move = source.move

    def lost(request: MoveClients) -> ClientsMoved:
        move(request)
        raise DeadlineExceeded("no reply")

    movers = fleet.movers()
    source.move = lost  # type: ignore[method-assign]
    movers.want(request(grace_ms=30_000))
    async with running(movers):
        await fleet.pass_time(2.5)
        assert source.orders
        source.move = move  # type: ignore[method-assign]
        await fleet.pass_time(60)
        progress = movers.status().progress
    told = [one.client for order in source.orders for one in order.moves]
    assert len(told) == len(set(told))
    assert progress is not None
    assert (progress.phase, progress.unanswered, progress.moved) == ("complete", 1, len(told))


async def test_an_order_that_a_source_does_not_understand_was_not_carried_out(fleet: FakeFleet) -> None:
    """One of an older version, say."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2")

    def refuse(_request: MoveClients) -> ClientsMoved:
        raise BadRequest("what?")

    source.move = refuse  # type: ignore[method-assign]
    movers = fleet.movers()
    movers.want(request())
    async with running(movers):
        await fleet.pass_time(5)
        progress = movers.status().progress
    assert progress is not None
    assert (progress.unanswered, progress.waiting) == (1, 0)


async def test_a_target_that_is_gone_is_not_waited_for(fleet: FakeFleet) -> None:
    """The source refuses: nobody was told, and others may be sent to where they can go."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2")
    source.refuses = True
    movers = fleet.movers()
    movers.want(request())
    async with running(movers):
        await fleet.pass_time(4)
        progress = movers.status().progress
        assert progress is not None
        assert (progress.moved, progress.waiting, progress.phase) == (0, 0, "running")
        assert any(order.moves for order in source.orders)
        source.refuses = False
        await fleet.pass_time(40)
    assert fleet.loads() == {"access-1": 51, "access-2": 49}


@pytest.mark.parametrize("fault", ["refused", "not carried out", "carried out"])
async def test_nobody_whose_arm_it_is_is_left_behind_by_an_order_that_failed(fleet: FakeFleet, fault: str) -> None:
    """The share is not reached by those whose arm it is: over is the plan when none of them is on stable any more."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2", version="2")
    fleet.arms = {f"access-1-{n}": "v2" for n in range(0, 100, 5)}
    move = source.move

    def fail(request: MoveClients) -> ClientsMoved:
        source.move = move  # type: ignore[method-assign]
        if fault == "refused":
            return ClientsMoved(0, [], 0, 0, 0, [order.client for order in request.moves])
        if fault == "carried out":
            move(request)
        raise PeerUnavailable("the stream broke before the reply")

    source.move = fail  # type: ignore[method-assign]
    movers = fleet.movers()
    movers.want(request("to_canary", share=25_000, rate_per_s=100, accept_per_s=100.0, grace_ms=30_000))
    async with running(movers):
        await fleet.pass_time(90)
        progress = movers.status().progress
    assert source.move is move
    assert progress is not None
    assert (progress.phase, progress.moved) == ("complete", 20)
    assert not [entry.user for entry in source.clients.values() if entry.user in fleet.arms]


async def test_an_order_names_nobody_twice(fleet: FakeFleet) -> None:
    """Also where it takes the last of those found before, and the list is read from its beginning again."""
    source = fleet.add("access-1", 95)
    fleet.add("access-2", version="2")
    fleet.arms = {f"access-1-{n}": "v2" for n in range(40)}
    movers = fleet.movers()
    movers.want(request("to_canary", share=50_000, rate_per_s=60, accept_per_s=60.0))
    async with running(movers):
        await fleet.pass_time(10)
        progress = movers.status().progress
    assert progress is not None
    assert (progress.phase, progress.moved) == ("complete", 40)
    for order in source.orders:
        assert len(order.moves) == len({move.client for move in order.moves})
    assert sum(len(order.moves) for order in source.orders) == 40


async def test_a_target_that_goes_while_it_is_filled_stops_the_plan(fleet: FakeFleet) -> None:
    """Nobody is told for as long as its clients look for new places."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    fleet.add("access-3")
    movers = fleet.movers()
    movers.want(request(rate_per_s=10))
    async with running(movers):
        await fleet.pass_time(5)
        del fleet.nodes[NodeId("access-3")]
        await fleet.pass_time(1)
        told = sum(len(order.moves) for order in source.orders)
        await fleet.pass_time(20)
        progress = movers.status().progress
        assert progress is not None
        assert (progress.phase, progress.reason) == ("open", "access-3 was lost")
        assert sum(len(order.moves) for order in source.orders) == told


async def test_a_source_that_goes_is_no_error(fleet: FakeFleet) -> None:
    """Between the view and the call."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2")
    source.on_list = lambda: fleet.nodes.pop(NodeId("access-1"), None) and None
    movers = fleet.movers()
    movers.want(request())
    async with running(movers):
        await fleet.pass_time(3)
        progress = movers.status().progress
    assert progress is not None
    assert (progress.unanswered, progress.moved) == (1, 0)


# ---------------------------------------------------------------- what operators want


async def test_a_plan_is_paused_resumed_and_aborted(fleet: FakeFleet) -> None:
    """By what is wanted; it may be paused from the beginning."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    movers = fleet.movers()
    wanted = request(rate_per_s=10, is_paused=True)
    movers.want(wanted)
    async with running(movers):

        async def told_in(seconds: float) -> int:
            before = sum(len(order.moves) for order in source.orders)
            await fleet.pass_time(seconds)
            return sum(len(order.moves) for order in source.orders) - before

        assert await told_in(5) == 0
        movers.want(msgspec.structs.replace(wanted, is_paused=False))
        assert await told_in(5) > 20
        movers.want(wanted)
        await fleet.pass_time(1)
        assert await told_in(5) == 0
        assert movers.status().progress is not None
        assert movers.status().progress.reason == "paused by an operator"  # type: ignore[union-attr]
        movers.want(msgspec.structs.replace(wanted, is_paused=False, resumes=1))
        assert await told_in(5) > 20
        movers.want(None)
        await fleet.pass_time(1)
        assert await told_in(10) == 0
        status = movers.status()
        assert status.wanted is None
        assert status.progress is not None
        assert (status.progress.phase, status.is_mover) == ("aborted", False)


async def test_a_plan_that_paused_itself_goes_on_when_an_operator_says_so(fleet: FakeFleet) -> None:
    """One more `resumes`, though nobody had paused it."""
    fleet.add("access-1", 300)
    fleet.add("access-2")
    view, is_panic = fleet.view, True
    fleet.view = lambda plan: in_panic(view(plan), is_panic=is_panic)  # type: ignore[method-assign]
    movers = fleet.movers()
    movers.want(request())
    async with running(movers):
        for _ in range(3):
            is_panic = True
            await fleet.pass_time(3)
            is_panic = False
            await fleet.pass_time(16)
        is_panic = False
        progress = movers.status().progress
        assert progress is not None
        assert progress.phase == "paused"
        movers.want(request(resumes=1))
        await fleet.pass_time(30)
        progress = movers.status().progress
        assert progress is not None
        assert progress.phase == "complete"


def in_panic(fleet: Fleet, *, is_panic: bool) -> Fleet:
    return Fleet(fleet.nodes, fleet.admitted, fleet.turned_away, is_panic)


async def test_another_request_takes_the_place_of_the_one_before(fleet: FakeFleet) -> None:
    """When those are where they should be that the first one told."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    movers = fleet.movers()
    movers.want(request(rate_per_s=10))
    async with running(movers):
        await fleet.pass_time(5)
        first = movers.status().plan
        movers.want(request(id="m2"))
        await fleet.pass_time(30)
        assert movers.status().plan.startswith("m2-")
        progress = movers.status().progress
    assert progress is not None
    assert (first[:3], progress.phase) == ("m1-", "complete")
    plans = [order.plan for order in source.orders if order.moves]
    assert plans == sorted(plans, key=lambda plan: plan != first)
    assert fleet.loads() == {"access-1": 154, "access-2": 146}


async def test_what_was_broken_off_for_something_else_goes_on_after_it(fleet: FakeFleet) -> None:
    """It was not carried out, other than what is complete."""
    fleet.add("access-1", 100)
    fleet.add("access-2")
    movers = fleet.movers()
    movers.want(request(rate_per_s=4))
    async with running(movers):
        await fleet.pass_time(5)
        assert 0 < fleet.loads()["access-2"] < 25
        movers.want(None)
        await fleet.pass_time(10)
        assert not movers.has_work()
        movers.want(request())
        await fleet.pass_time(20)
        assert fleet.loads()["access-2"] == 49
        assert not movers.has_work()


async def test_a_plan_that_is_not_wanted_any_more_as_nobody_is_left_is_complete(fleet: FakeFleet) -> None:
    """Who looks at the nodes' reports knows it before the plan has heard of the last ones."""
    fleet.add("access-1")
    fleet.add("access-2", 30, version="2")
    movers = fleet.movers()
    movers.want(request("to_stable"))
    async with running(movers):
        while fleet.loads()["access-2"]:
            await fleet.pass_time(0.25)
        movers.want(None)
        told = len(fleet.nodes[NodeId("access-2")].orders)
        await fleet.pass_time(5)
        progress = movers.status().progress
        assert progress is not None
        assert (progress.phase, progress.moved, progress.verified) == ("complete", 30, 30)
        assert not any(order.moves for order in fleet.nodes[NodeId("access-2")].orders[told:])


async def test_no_plan_is_begun_by_a_view_of_before_an_outage(fleet: FakeFleet) -> None:
    """The lock may be there again sooner than the view: the plan would stop at once, and rest."""
    source = fleet.add("access-1", 100)
    fleet.add("access-2")
    movers = fleet.movers()
    movers._fleet = lambda plan: replace(fleet.view(plan), is_registry_away=True)
    movers.want(request())
    async with running(movers):
        await fleet.pass_time(5)
        assert movers.status().progress is None
        movers._fleet = fleet.view
        await fleet.pass_time(3)
        assert source.orders


async def test_nothing_is_done_while_nothing_is_wanted(fleet: FakeFleet) -> None:
    """No lock, no session, no calls; nor for a request that was taken back before it began."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    movers = fleet.movers()
    async with running(movers):
        await fleet.pass_time(3)
        movers.want(None)
        await fleet.pass_time(3)
        movers.want(request())
        movers.want(None)
        await fleet.pass_time(3)
        assert await fleet.registry.get(LOCK_KEY) is None
        assert not source.listed
        assert movers.status().progress is None


# ---------------------------------------------------------------- the lock


async def test_one_of_several_schedulers_moves(fleet: FakeFleet) -> None:
    """And the next one takes over when it is gone, after the grace of those that it cannot know of."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    first, second = fleet.movers("scheduler-1"), fleet.movers("scheduler-2")
    wanted = request(rate_per_s=5, grace_ms=8_000)
    for movers in (first, second):
        movers.want(wanted)
    async with running(first):
        await fleet.pass_time(2)
        async with running(second):
            await fleet.pass_time(8)
            assert (first.status().is_mover, second.status().is_mover) == (True, False)
            plans = {order.plan for order in source.orders}
            assert plans == {first.status().plan}
    async with running(second):
        await fleet.pass_time(7.5)
        assert second.status().is_mover
        assert {order.plan for order in source.orders} == plans
        await fleet.pass_time(5)
        assert {order.plan for order in source.orders} == {*plans, second.status().plan}


async def test_a_mover_that_loses_its_lock_stops_at_once(fleet: FakeFleet) -> None:
    """Also in the middle of an order: the clients were listed, and nobody is told."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    movers = fleet.movers()
    movers.want(request(rate_per_s=10))
    async with running(movers):
        await fleet.pass_time(5)
        assert movers.status().is_mover
        told = sum(len(order.moves) for order in source.orders)
        # The process stood still for longer than its session lives, in the middle of a call.
        source.on_list = lambda: fleet.clock.advance(6_000)
        await fleet.pass_time(1)
        source.on_list = lambda: None
        assert sum(len(order.moves) for order in source.orders) == told
        status = movers.status()
        assert status.progress is not None
        assert status.progress.phase == "aborted"
        await fleet.pass_time(15)
        assert movers.status().is_mover
        assert movers.status().plan != status.plan


async def test_without_a_registry_it_stops_when_its_lease_is_over(fleet: FakeFleet) -> None:
    """Nobody says that it may go on. When the registry is back it begins anew."""
    source = fleet.add("access-1", 300)
    fleet.add("access-2")
    away = Outage(fleet.registry)
    fleet.registry = away  # type: ignore[assignment]
    movers = fleet.movers()
    movers.want(request(rate_per_s=10))
    async with running(movers):
        away.is_away = True
        await fleet.pass_time(3)
        assert not source.listed
        away.is_away = False
        await fleet.pass_time(5)
        assert movers.status().is_mover
        away.is_away = True
        await fleet.pass_time(6)
        assert not movers.status().is_mover
        told = sum(len(order.moves) for order in source.orders)
        await fleet.pass_time(5)
        assert sum(len(order.moves) for order in source.orders) == told > 0


def test_a_request_without_a_name_is_our_own_bug(fleet: FakeFleet) -> None:
    """Its plan's id is the issuer of tickets, and must fit there."""
    for wrong in ("", "x" * 17):
        with pytest.raises(AssertionError):
            fleet.movers().want(request(id=wrong))
