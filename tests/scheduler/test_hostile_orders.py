"""What nobody should write into the registry, and who should not order: nothing of it ends a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from access.api import SERVICE, NodeReport, capacity_of, report_of
from base.clock import SystemClock
from base.core.histogram import Histogram
from base.core.registry import ServiceInstance
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.keys import KeyList, KeyRing
from base.registry import leadership
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler import lists_api, orders, rollouts
from scheduler.config import SchedulerConfig
from scheduler.core.analysis import judge
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_machine import start
from scheduler.core.rollout_record import created
from scheduler.orders import CORDONS, LISTS, MOVES, POLICY, PREFIX, REBALANCE, ROLLOUTS
from scheduler.service import Scheduler
from tests.scheduler.admin_site import KEYS, ROLLOUT, AdminSite, admin_site

KEY = "a-secret-of-at-least-thirty-two-bytes"
ALL = "/v1/admin/rollouts"
FAST = f"{ALL}/fast"
DEEP = b'{"at":1,"who":"","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LIMITS = {"capacity": "10", "client_url": "http://a:80"}


@pytest.fixture
async def site() -> AsyncIterator[AdminSite]:
    async with admin_site() as made:
        yield made


def record(name: str, document: str = ROLLOUT, **state: Any) -> bytes:
    """A rollout's record with something else in its state."""
    rollout = parse_rollout(document)
    assert isinstance(rollout, Rollout)
    good = created(name, document, start(rollout, 1_000), who="ann", now=1_000)
    return msgspec.json.encode(msgspec.structs.replace(good, state=msgspec.structs.replace(good.state, **state)))


def rebalance(**request: Any) -> bytes:
    """An order to rebalance."""
    order = {"id": "b1", "kind": "rebalance", **request}
    return msgspec.json.encode({"request": order, "at": 1, "who": "ann"})


HOSTILE = {
    CORDONS + "access-7": DEEP,
    CORDONS + "access-8": b"[]",
    LISTS + "staff": b"\xff\xfe",
    ROLLOUTS + "other": record("fast"),
    ROLLOUTS + "fast": record("fast", step=7),
    ROLLOUTS + "f1": record("f1", ROLLOUT.replace("rollout: fast", "rollout: f1"), percent=100_001),
    ROLLOUTS + "f2": record("f2", ROLLOUT.replace("rollout: fast", "rollout: f2"), epoch=0),
    ROLLOUTS + "f3": record("f3", ROLLOUT.replace("rollout: fast", "rollout: f3"), since=9_999),
    ROLLOUTS + "f4": record("f4", ROLLOUT.replace("rollout: fast", "rollout: f4"), step=-1),
    ROLLOUTS + "f5": record("f5", ROLLOUT.replace("rollout: fast", "rollout: f5"), phase="failed"),
    ROLLOUTS + "f6": b"null",
    ROLLOUTS + "f7": DEEP,
    POLICY: b'{"revision":1,"document":"rules: [","shadow":"\\u0000"}',
    REBALANCE: rebalance(id="much-too-long-for-a-ticket"),
    MOVES: b'{"at":1,"mover":"","request":"r.x","plan":"","is_complete":true,"progress":{"a":' + DEEP + b"}}",
    PREFIX + "mover": b"9" * 5_000,
    PREFIX + "what": b"is this",
}


async def test_no_value_in_the_registry_ends_a_scheduler() -> None:
    """Each is shown as bad, the others are in force, and access is answered. Its loops go over all of it meanwhile."""
    clock = SystemClock()
    registry = MemoryRegistry(clock)
    for key, value in HOSTILE.items():
        await registry.put(key, value)
    await registry.put(CORDONS + "access-9", b'{"at":1,"who":"ann"}')
    note = msgspec.msgpack.encode(NodeReport(number=1, connections=3, uptime_ms=1))
    for name, meta, its_note in (
        ("access-1", LIMITS, note),
        ("access-2", LIMITS, note),
        ("huge", LIMITS | {"capacity": "1" + "0" * 30}, note),
        ("long", LIMITS | {"capacity": "9" * 5_000, "accepts_per_second": "9" * 5_000}, note),
        ("odd", LIMITS | {"region": "\u202e/../\n", "carrier": "\0"}, msgspec.msgpack.encode([1, -5])),
        ("nameless", {"capacity": "10"}, b"\x91" * 4_000),
        ("no-url", LIMITS, note),
    ):
        url = "http://[::1" if name == "no-url" else "http://same:1"
        life = Incarnation(1)
        one = ServiceInstance(id=name, service=SERVICE, url=url, incarnation=life, meta=meta, note=its_note)
        await registry.register(one, ttl_ms=60_000)
    site = Site(
        name=NodeId("scheduler-1"),
        incarnation=Incarnation(1),
        host="127.0.0.1",
        port=0,
        registry=registry,
        clock=clock,
        trust=Trust.of_key("peer-key"),
        credentials=Credentials({"admin-key": Role.ADMIN}),
        config=NodeConfig(),
    )
    scheduler = Scheduler(SchedulerConfig(), site, user_keys=KeyList.of(KEY), ticket_keys=KeyRing.of({"k1": KEY}))
    headers = {"Authorization": "Bearer admin-key"}
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession(headers=headers) as http:
        running = tasks.create_task(scheduler.run())
        await scheduler.start()
        await asyncio.sleep(1.2)  # each loop went round once
        assert not running.done()
        bad = scheduler.orders.bad
        assert HOSTILE.keys() - bad.keys() == {PREFIX + "mover", PREFIX + "what"}
        assert scheduler.orders.cordons.keys() == {"access-7", "access-8", "access-9"}
        assert not scheduler.orders.rollouts
        for path in (
            "/v1/access?user=ann&why",
            "/v1/admin/access/nodes",
            "/v1/discovery/prometheus",
            "/debug/statistics",
        ):
            async with http.get(scheduler.node.http.url + path) as answer:
                assert answer.status == 200, await answer.text()
        async with http.get(f"{scheduler.node.http.url}/v1/access?user=ann") as answer:
            names = {candidate["id"] for candidate in (await answer.json())["candidates"]}
        assert names == {"access-1", "access-2", "no-url"}
        running.cancel()
    await scheduler.stop()


@pytest.mark.parametrize(
    "note",
    [
        b"\xc1",
        msgspec.msgpack.encode([1, -1]),
        msgspec.msgpack.encode([2**60]),
        msgspec.msgpack.encode([1, 1.5]),
        msgspec.msgpack.encode([0] * 14 + [{"a": -1}]),
        msgspec.msgpack.encode([1, 1, False, *[0] * 6, "", 0, b"", b"", {}, 0, 0])[:-1] + b"\x91" * 3_000 + b"\xc0",
    ],
)
def test_a_report_that_is_none_counts_as_draining(note: bytes) -> None:
    """Negative counts, counts beyond any machine, the wrong types, too deep: nobody is sent there."""
    assert report_of(note).is_draining


@pytest.mark.parametrize("text", ["9" * 5_000, "1" + "0" * 30, "-1", "1e9", "", "٣٣"])
def test_a_capacity_that_is_none_is_no_capacity(text: str) -> None:
    """Whatever a registration says."""
    assert capacity_of({"capacity": text}) == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"id": ""},
        {"id": "b-1"},
        {"id": "b" * 17},
        {"kind": "to_canary", "arm": "fast"},
        {"arm": "fast"},
        {"rate_per_s": 0},
        {"rate_per_s": 1e300},
        {"accept_per_s": -1},
        {"accept_percent": 0},
        {"grace_ms": -1},
        {"tolerance": -1},
        {"deadline_ms": 2**60},
        {"resumes": 0.5},
    ],
)
async def test_an_order_to_rebalance_that_is_none_is_not_carried_out(site: AdminSite, request_: dict[str, Any]) -> None:
    """A plan takes it at its word: it ended whoever moved. Another order may take its place."""
    await site.registry.put(REBALANCE, rebalance())
    await site.take()
    assert (site.orders.rebalance is not None, site.orders.bad) == (True, {})
    await site.registry.put(REBALANCE, rebalance(**request_))
    await site.take()
    assert site.orders.rebalance is None
    assert site.orders.bad.keys() == {REBALANCE}
    await site.good("POST", "/v1/admin/access/rebalance")
    assert (site.orders.rebalance is not None, site.orders.bad) == (True, {})


# ---------------------------------------------------------------- rollouts that cannot be read


async def test_what_becomes_unreadable_stays_in_force_and_can_be_aborted(site: AdminSite) -> None:
    """An order is for what is in force: it writes over what nobody can read. The judge does not."""
    await site.good("POST", ALL, ROLLOUT)
    await site.registry.put(ROLLOUTS + "fast", b"[1]")
    await site.take()
    assert site.orders.rollouts["fast"].record.state.percent == 10_000
    assert "fast" in (await site.good("GET", ALL))["unreadable"]
    async with judging(site):
        site.clock.advance(3_600_000)
        await asyncio.sleep(0.05)
    entry = await site.registry.get(ROLLOUTS + "fast")
    assert entry is not None
    assert entry.value == b"[1]"
    assert (await site.refused("DELETE", FAST))[0] == 409
    shown = await site.good("POST", f"{FAST}/abort")
    assert (shown["phase"], shown["percent"]) == ("aborted", 0.0)
    assert (await site.good("GET", ALL))["unreadable"] == {}


async def test_what_was_never_readable_can_be_deleted(site: AdminSite) -> None:
    """And nothing else."""
    await site.registry.put(ROLLOUTS + "fast", b"[1]")
    await site.take()
    assert (await site.refused("POST", f"{FAST}/abort"))[0] == 409
    assert (await site.refused("POST", ALL, ROLLOUT))[0] == 409
    await site.good("DELETE", FAST)
    assert (await site.good("GET", ALL)) == {"rollouts": [], "unreadable": {}}


# ---------------------------------------------------------------- judging


class judging:  # noqa: N801 - reads as what it does
    """The judge at work, with ticks of a millisecond."""

    def __init__(self, site: AdminSite) -> None:
        self._site = site

    async def __aenter__(self) -> None:
        self._site.orders.is_known.set()
        self._task = asyncio.create_task(self._site.rollouts.run())
        while not self._site.rollouts.is_judging:  # noqa: ASYNC110 - it is a test
            await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        is_alive = not self._task.done()
        self._task.cancel()
        await asyncio.wait([self._task])
        assert is_alive


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "TICK_S", 0.001)
    monkeypatch.setattr(leadership, "RENEW_MS", 1)


def measured(count: int) -> bytes:
    """So many handshakes."""
    histogram = Histogram()
    for _ in range(count):
        histogram.observe(5)
    return histogram.encode()


async def report(site: AdminSite, number: int, handshakes: int) -> None:
    """The canary's node reports."""
    news = NodeReport(number=number, version="2.0.0", connections=60, handshakes=measured(handshakes), uptime_ms=1)
    await site.registry.heartbeat("access-10", 1, msgspec.msgpack.encode(news))
    await site.take()


async def step(site: AdminSite, ms: int) -> None:
    """Let time go on, and the judge with it. Its lock lives on wall time of the test."""
    site.clock.advance(ms)
    await asyncio.sleep(0.02)
    await site.take()


async def test_evidence_of_one_document_is_none_of_the_next(site: AdminSite) -> None:
    """Who revises a rollout at once, to another version, begins without what the version before it did."""
    await site.good("POST", ALL, ROLLOUT)
    async with judging(site):
        await report(site, 2, 10)
        await step(site, 2_100)
        await report(site, 3, 50)
        await step(site, 2_100)
        await site.good("POST", f"{FAST}/abort")
        await site.good("POST", ALL, ROLLOUT.replace("2.0.0", "1.0.0"))
        await report(site, 4, 90)
        for _ in range(12):
            await step(site, 3_000)
    state = site.orders.rollouts["fast"].record.state
    assert state.judged_at > 0
    assert state.connects == 0


async def test_a_wall_clock_that_is_set_back_does_not_blind_the_judge(site: AdminSite) -> None:
    """It was a day ahead when the rollout began: analyses go on by the other clock."""
    site.clock.jump(86_400_000)
    await site.good("POST", ALL, ROLLOUT)
    site.clock.jump(-86_400_000)
    async with judging(site):
        await report(site, 2, 10)
        await step(site, 2_100)
        await report(site, 3, 50)
        for _ in range(12):
            await step(site, 3_000)
    assert site.orders.rollouts["fast"].record.state.connects == 40


async def test_what_goes_wrong_with_one_rollout_stays_with_it(site: AdminSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in judging it would end one scheduler after the other."""

    def judge_or_fail(rollout: Rollout, *args: Any, **more: Any) -> Any:
        assert rollout.name != "fast"
        return judge(rollout, *args, **more)

    monkeypatch.setattr(rollouts, "judge", judge_or_fail)
    await site.good("POST", ALL, ROLLOUT)
    await site.good("POST", ALL, ROLLOUT.replace("fast", "slow").replace("2.0.0", "1.0.0"))
    async with judging(site):
        for _ in range(12):
            await step(site, 3_000)
    assert site.orders.rollouts["fast"].record.state.judged_at == 0
    assert site.orders.rollouts["slow"].record.state.judged_at > 0


async def test_no_step_is_over_because_no_node_is_known(site: AdminSite) -> None:
    """Of nobody all are moved already: who judges before it has seen the nodes waits for them."""
    document = ROLLOUT.replace("{percent: 10, hold: 10m}", "{percent: 10, migrate: {rate: 1/s}}")
    await site.good("POST", ALL, document)
    for node in ("access-1", "access-2", "access-10"):
        await site.registry.deregister(node, 1)
    await site.take()
    site.decider.accept_loss()
    assert not site.decider.snapshot.nodes
    async with judging(site):
        for _ in range(12):
            await step(site, 3_000)
    state = site.orders.rollouts["fast"].record.state
    assert (state.phase, state.percent) == ("running", 10_000)


# ---------------------------------------------------------------- bounds


async def test_there_are_bounds_for_rollouts_and_for_all_orders(
    site: AdminSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions ask rollout by rollout, and all orders travel in one message."""
    await site.good("POST", ALL, ROLLOUT)
    other = ROLLOUT.replace("fast", "other").replace("2.0.0", "3.0.0")
    monkeypatch.setattr(rollouts, "ROLLOUTS_MAX", 1)
    assert (await site.refused("POST", ALL, other))[0] == 409
    monkeypatch.setattr(rollouts, "ROLLOUTS_MAX", 2)
    monkeypatch.setattr(orders, "BYTES_MAX", 2_000)
    monkeypatch.setattr(lists_api, "ORDERS_MAX", 2_000)
    assert (await site.refused("PUT", "/v1/admin/lists/staff", "x" * 100 + "\n" + "y" * 1_500))[0] == 400
    many = "\n".join(f"user-{number}" for number in range(150))
    assert (await site.refused("PUT", "/v1/admin/lists/staff", many))[0] == 413
    await site.good("PUT", "/v1/admin/lists/staff", "ann")
    await site.good("PUT", "/v1/admin/lists/staff", "bob")
    monkeypatch.setattr(orders, "BYTES_MAX", 1_000)
    assert (await site.refused("POST", ALL, other))[0] == 413


async def test_nobody_starts_a_rollout_that_nobody_would_be_left_for(site: AdminSite) -> None:
    """One that is complete is asked first, and takes all."""
    await site.good("POST", ALL, ROLLOUT)
    await site.good("POST", f"{FAST}/promote")
    status, _, why = await site.refused("POST", ALL, ROLLOUT.replace("fast", "other").replace("2.0.0", "1.0.0"))
    assert (status, "fast is complete" in why) == (409, True)


# ---------------------------------------------------------------- who may, and how names look


def changing_routes(site: AdminSite) -> list[tuple[str, str]]:
    """All routes that change something."""
    return [
        (route.method, route.resource.canonical)
        for route in site.server.app.router.routes()
        if route.method in {"POST", "PUT", "DELETE", "PATCH"} and route.resource is not None
    ]


async def test_nothing_is_changed_without_an_operators_key(site: AdminSite) -> None:
    """Whichever route: a viewer's key is refused, and so is none, before the body is looked at."""
    routes = changing_routes(site)
    assert len(routes) > 10
    for method, route in routes:
        path = route.replace("{", "").replace("}", "")
        assert (await site.ask(method, path, key="viewer-key"))[0] == 403, path
        assert (await site.ask(method, path, key="wrong"))[0] == 401, path
    status, _ = await site.ask("GET", "/v1/admin/recording", key="viewer-key")
    assert (status, KEYS["viewer-key"]) == (403, Role.VIEWER)


@pytest.mark.parametrize("name", ["..%2Flists%2Fstaff", "%2e%2e%2fx", "a%00b", "%ff", "%ed%a0%80", "%F0%9F%98%80", "~"])
async def test_a_name_in_a_path_reaches_no_other_key(site: AdminSite, name: str) -> None:
    """Keys are flat, and a name that is none finds nothing."""
    await site.good("PUT", "/v1/admin/lists/staff", "ann")
    before = await site.registry.scan(PREFIX)
    for method, path in changing_routes(site):
        if "{" in path:
            there = path.replace("{name}", name).replace("{node}", name).replace("{order}", "abort")
            status, _ = await site.ask(method, there, "ann" if method == "PUT" else None)
            assert status in {400, 404}, there
    assert (await site.registry.scan(PREFIX)).items == before.items


async def test_a_body_that_is_too_deep_is_a_bad_request(site: AdminSite) -> None:
    """And no defect of ours."""
    deep = '{"document": "", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    headers = {"Authorization": "Bearer operator-key", "Content-Type": "application/json"}
    for path in (ALL, "/v1/admin/access/rebalance"):
        async with site.client.post(path, data=deep, headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["name"]) == (400, "bad_request")


async def test_an_operators_name_is_only_text(site: AdminSite) -> None:
    """What stands in a history cannot pretend to be another line of it, nor be written backwards."""
    name = "ann\u202e) admin 12345678 (" + "x" * 100
    headers = {"Authorization": "Bearer operator-key", "X-Operator": name}
    async with site.client.put("/v1/admin/policy", data="", headers=headers) as answer:
        who = (await answer.json())["history"][0]["who"]
    assert who == f"operator c9736463 ({name.replace(chr(0x202E), '')[:64]})"
