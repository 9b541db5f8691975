"""What is wanted of the moves, by what the registry says; and what it is told of how they get on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest

from base.ids import Incarnation, NodeId
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.core.moving import MoveRequest, Progress
from scheduler.movers import Movers, MoverStatus
from scheduler.orders import MOVES, PREFIX, REBALANCE, MovesRecord, RebalanceRecord
from scheduler.wishes import Wishes
from tests.scheduler.admin_site import AdminSite, admin_site

REBALANCING = MoveRequest(id="b1", kind="rebalance")
DOCUMENT = """\
rollout: {name}
pool: {{version: {version}}}
steps: [{{percent: 50, migrate: {{rate: 20/s}}}}, {{percent: 100}}]
on_failure: {{assign: stop, move: {{rate: 30/s, deadline: 60s}}}}
"""


class FakeMovers:
    """Has a status, and takes what is wanted."""

    def __init__(self) -> None:
        self.shown = MoverStatus(wanted=None, is_mover=False)

    def status(self) -> MoverStatus:
        return self.shown

    def show(self, plan: str, phase: str = "complete", **counts: Any) -> None:
        counted = dict.fromkeys(("minimum", "moved", "waiting", "arrived", "closed", "verified", "left"), 0) | counts
        progress = Progress(phase=phase, reason="", unanswered=0, eta_ms=None, is_late=False, **counted)  # type: ignore[arg-type]
        self.shown = MoverStatus(wanted=None, is_mover=True, plan=plan, progress=progress)


class Teller:
    """A scheduler's wishes, without its loop."""

    def __init__(self, site: AdminSite, name: str = "scheduler-1") -> None:
        self.site = site
        self.movers = FakeMovers()
        place = Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=site.registry,
            clock=site.clock,
            trust=Trust.of_key("peer-key"),
            credentials=site.admin._credentials,
            config=NodeConfig(),
        )
        self.wishes = Wishes(place, site.orders, site.rollouts, cast("Movers", self.movers))

    async def wanted(self) -> str | None:
        """What is wanted after a look at the registry, by its id."""
        await self.site.take()
        found = self.wishes.wanted()
        return found.id if found is not None else None

    async def tell(self, plan: str, phase: str = "complete") -> None:
        """Tell of a plan."""
        self.movers.show(plan, phase)
        await self.site.take()
        await self.wishes._tell()
        await self.site.take()


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        yield made


async def rebalance(site: AdminSite, **fields: Any) -> None:
    record = RebalanceRecord(REBALANCING, 0, "ann", **fields)
    await site.registry.put(REBALANCE, msgspec.json.encode(record))


async def test_a_rebalancing_is_wanted_until_it_is_carried_out_and_never_again(site: AdminSite) -> None:
    """By nobody: not by one that begins later, nor when the news are of other moves."""
    teller = Teller(site)
    await rebalance(site)
    assert await teller.wanted() == "b1"
    await teller.tell("b1-1", "running")
    assert await teller.wanted() == "b1"
    await teller.tell("b1-1")
    await teller.tell("r2-3")
    for anybody in (teller, Teller(site, "scheduler-2")):
        assert await anybody.wanted() is None
    assert site.orders.moves is not None
    assert site.orders.moves.request == "r2"
    await rebalance(site, is_aborted=True)
    assert await teller.wanted() is None


async def test_the_order_of_another_is_not_closed_by_what_was_carried_out(site: AdminSite) -> None:
    """It came in the meantime; one that nobody can read is left alone."""
    teller = Teller(site)
    await rebalance(site)
    await teller.tell("b0-1")
    assert await teller.wanted() == "b1"
    await site.registry.put(REBALANCE, b"{}")
    await teller.tell("b1-2")
    entry = await site.registry.get(REBALANCE)
    assert entry is not None
    assert entry.value == b"{}"


async def test_who_began_it_once_more_does_not_say_that_it_is_not_complete(site: AdminSite) -> None:
    """Somebody took the lock before it knew; its plan is broken off."""
    first, second = Teller(site), Teller(site, "scheduler-2")
    await first.tell("r1-1")
    await second.tell("r1-2", "aborted")
    assert site.orders.moves is not None
    assert (site.orders.moves.is_complete, site.orders.moves.plan) == (True, "r1-1")


async def test_the_same_news_are_told_once(site: AdminSite) -> None:
    """Whoever waits for changes is not woken for nothing."""
    teller = Teller(site)
    await teller.tell("r1-1", "running")
    before = (await site.registry.scan(PREFIX)).index
    site.clock.advance(1_000)
    await teller.tell("r1-1", "running")
    assert (await site.registry.scan(PREFIX)).index == before
    await teller.tell("r1-1")
    after = (await site.registry.scan(PREFIX)).index
    assert after > before
    site.clock.advance(1_000)
    await teller.tell("r1-1")
    assert (await site.registry.scan(PREFIX)).index == after


async def test_the_way_back_comes_first_then_the_way_to_a_canary_then_evenness(site: AdminSite) -> None:
    """The oldest rollout first among equals."""
    teller = Teller(site)
    await rebalance(site)
    await site.register("access-10", region="sh", version="2.0.0", connections=1)
    await site.register("access-20", version="3.0.0", connections=1)
    await site.take()
    for name, version in (("older", "2.0.0"), ("newer", "3.0.0")):
        await site.good("POST", "/v1/admin/rollouts", {"document": DOCUMENT.format(name=name, version=version)})
        site.clock.advance(1_000)
    wanted = teller.wishes.wanted()
    assert wanted is not None
    assert (wanted.kind, wanted.arm, wanted.rate_per_s, wanted.share) == ("to_canary", "older", 20, 50_000)
    await site.good("POST", "/v1/admin/rollouts/newer/abort")
    site.clock.advance(50_000)
    wanted = teller.wishes.wanted()
    assert wanted is not None
    assert (wanted.kind, wanted.arm, wanted.rate_per_s, wanted.deadline_ms) == ("to_stable", "newer", 30, 10_000)
    site.clock.advance(50_000)
    late = teller.wishes.wanted()
    assert late is not None
    assert late.deadline_ms == 1
    await site.good("POST", "/v1/admin/rollouts/older/abort")
    await site.register("access-10", region="sh", version="2.0.0")
    await site.register("access-20", version="3.0.0")
    assert await teller.wanted() == "b1"


async def test_whoever_comes_to_a_canary_that_was_left_is_brought_back_too(site: AdminSite) -> None:
    """Each time by a request of another id: one that was carried out is not carried out again."""
    teller = Teller(site)
    await site.good("POST", "/v1/admin/rollouts", {"document": DOCUMENT.format(name="next", version="2.0.0")})
    await site.good("POST", "/v1/admin/rollouts/next/abort")
    ids = []
    for _ in range(3):
        ids.append(await teller.wanted())
        assert ids[-1] is not None
        await teller.tell(f"{ids[-1]}-1", "running")
        assert await teller.wanted() == ids[-1]
        await teller.tell(f"{ids[-1]}-1")
    assert ids == [ids[0], f"{ids[0]}.1", f"{ids[0]}.2"]
    await site.registry.put(MOVES, msgspec.json.encode(MovesRecord(0, "a", f"{ids[0]}.x", "p", True, {})))
    assert await teller.wanted() == f"{ids[0]}.1"
    await site.register("access-10", region="sh", version="2.0.0")
    assert await teller.wanted() is None
