"""Judging rollouts where others change them at the same time: nobody's evidence is mixed up, and nothing ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scheduler import rollouts as module
from scheduler.orders import PREFIX, ROLLOUTS, Orders
from scheduler.promql import Measured, Measurement
from scheduler.rollouts import Rollouts
from tests.scheduler.admin_site import ROLLOUT, AdminSite, admin_site

SETTLE_S = 5.0
DOCUMENT = """\
rollout: {name}
pool: {{version: {version}}}
steps:
  - {{percent: 0, hold: 1h}}
  - {{percent: 10, hold: 1h}}
  - {{percent: 100}}
analysis:
  interval: 1s
  checks: [{{metric: promql, query: bad, max: 1}}]
"""


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdminSite]:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    async with admin_site() as made:
        yield made


async def created(site: AdminSite, name: str = "next", version: str = "2.0.0") -> None:
    await site.good("POST", "/v1/admin/rollouts", {"document": DOCUMENT.format(name=name, version=version)})


@asynccontextmanager
async def judging(rollouts: Rollouts) -> AsyncIterator[None]:
    """Let it judge until the block ends: it must not end by itself."""
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(rollouts.run())
        async with asyncio.timeout(SETTLE_S):
            while not rollouts.is_judging:  # noqa: ASYNC110 - it is seen from outside only
                await asyncio.sleep(0.01)
        yield
        assert not running.done()
        running.cancel()


async def until_judged(site: AdminSite, orders: Orders, name: str, *, epoch: int) -> None:
    """Wait for an analysis in that epoch, as time goes on."""
    async with asyncio.timeout(SETTLE_S):
        while (state := orders.rollouts[name].record.state).epoch != epoch or not state.judged_at:
            site.clock.advance(100)
            await asyncio.sleep(0.01)


async def test_who_takes_over_before_it_knows_the_rollouts_begins_new_evidence_all_the_same(site: AdminSite) -> None:
    """It was elected before it had read them. One that begins later is its own from the beginning."""
    await created(site)
    orders = Orders(site.registry, site.clock, node="scheduler-2")
    rollouts = Rollouts(site.registry, site.clock, orders, node="scheduler-2", nodes=tuple)
    async with judging(rollouts):
        await asyncio.sleep(0.05)
        orders.read((await site.registry.scan(PREFIX)).items)
        orders.is_known.set()
        await until_judged(site, orders, "next", epoch=2)
        assert orders.rollouts["next"].record.history[-1].action == "judging taken over"
        await created(site, "later", "3.0.0")
        orders.read((await site.registry.scan(PREFIX)).items)
        await until_judged(site, orders, "later", epoch=1)


async def test_a_rollout_that_is_deleted_while_it_is_judged_is_no_error(site: AdminSite) -> None:
    """Another scheduler took the order, and the news came between two looks."""
    await created(site)

    async def change(*_: object) -> None:
        site.orders.rollouts = {}

    site.rollouts._change = change  # type: ignore[method-assign,assignment]
    await site.rollouts._judge("next")
    assert not site.orders.rollouts


async def test_a_record_that_nobody_can_read_stops_nobody(site: AdminSite) -> None:
    """The others are judged."""
    await created(site)
    await created(site, "other", "3.0.0")
    site.orders.is_known.set()
    async with judging(site.rollouts):
        await until_judged(site, site.orders, "next", epoch=2)
        await site.registry.put(ROLLOUTS + "next", b'{"from": "a later version"}')
        at = site.orders.rollouts["other"].record.state.judged_at
        async with asyncio.timeout(SETTLE_S):
            while site.orders.rollouts["other"].record.state.judged_at < at + 3_000:
                site.clock.advance(100)
                await asyncio.sleep(0.01)


async def test_a_rollout_carries_the_lists_that_it_names_alone(site: AdminSite) -> None:
    """A recording has what rollouts carry, once for each: it would be over its bound before it began."""
    await site.good("PUT", "/v1/admin/lists/staff", ["ann"])
    await site.good("PUT", "/v1/admin/lists/testers", ["bob"])
    await created(site, version="3.0.0")
    await site.good("POST", "/v1/admin/rollouts", {"document": ROLLOUT})
    named = {active.rollout.name: active.lists for active in site.rollouts.active()}
    assert named == {"next": {}, "fast": {"staff": frozenset({"ann"})}}


async def test_what_was_asked_in_the_step_before_is_no_verdict_on_this_one(site: AdminSite) -> None:
    """An operator ordered the next step while Prometheus thought about it."""
    await created(site)

    async def measure(_check: str, _query: str) -> Measurement:
        await site.rollouts.order("next", "step", who="ann")
        return Measured(9.0)

    site.rollouts.ask_with(measure)
    site.clock.advance(1_000)
    await site.rollouts._analyse("next", site.orders.rollouts["next"])
    state = site.orders.rollouts["next"].record.state
    assert (state.step, state.percent, state.epoch, state.judged_at, state.failures) == (1, 10_000, 2, 0, 0)
