"""What `roadstead doctor` makes of what it sees: well, well but, not well; one node that is away hides nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from access.api import NodeReport
from base.clock import SimClock, SystemClock
from base.core.registry import ServiceInstance
from base.errors import LimitExceeded, NotReady, RoadsteadError, StoreUnavailable, Unauthenticated, Unavailable
from base.http import HttpServer
from base.metrics import Metrics
from base.registry.memory import MemoryRegistry
from base.trust import Trust
from im.core.shards import ShardTable
from roadstead.ca import CertificateAuthority
from roadstead.doctor import nodes, whole
from roadstead.doctor.findings import Degraded, Finding, found
from roadstead.doctor.message import round_trip
from roadstead.systems import Node, System

NOBODY = "http://127.0.0.1:9"
DAY_MS = 86_400_000


def node(name: str, service: str, url: str = NOBODY, *, version: str = "1.0", **meta: str) -> Node:
    """A registered node."""
    instance = ServiceInstance(id=name, service=service, url=url, incarnation=1, meta={"roadstead": version, **meta})
    return Node(name, service, url, instance)


def system(*those: Node, registry: MemoryRegistry | None = None, **fields: Any) -> System:
    """A system of these nodes."""
    return System(
        node="doctor",
        trust=Trust.of_key("key"),
        api_key="api-key",
        registry=registry or MemoryRegistry(SystemClock()),
        registry_url="memory",
        nodes=list(those),
        registry_failure=fields.get("registry_failure"),
        im_folders=fields.get("im_folders", []),
    )


@asynccontextmanager
async def answering(
    statistics: Callable[[], dict[str, Any]] = dict, *, accepts: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A node's port that answers with what is given; its URL."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/debug/statistics":
            return web.json_response(statistics())
        if accepts:
            return web.json_response({"status": "ready"})
        error = {"code": 301, "name": "x", "retry": "never", "message": "unknown key"}
        return web.json_response({"error": error}, status=401)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("fine", Finding("c", is_ok=True, seen="fine")),
        (Degraded("so so"), Finding("c", is_ok=True, seen="so so", advice="a", is_warning=True)),
        (NotReady("bad"), Finding("c", is_ok=False, seen="bad", advice="a")),
        (TimeoutError(), Finding("c", is_ok=False, seen="TimeoutError", advice="a")),
    ],
)
async def test_a_look_becomes_a_finding(outcome: str | Exception, expected: Finding):
    """What is well needs no advice."""

    async def look() -> str:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert await found("c", look, "a") == expected


async def test_a_node_is_ready_or_not():
    """One that nobody can find is not, unless the registry cannot be asked."""
    async with answering() as url:
        assert await nodes.is_ready(system(), node("im-1", "im", url)) == url
        lost = Node("im-1", "im", url, None)
        with pytest.raises(Unavailable, match="is ready, and not registered"):
            await nodes.is_ready(system(), lost)
        assert await nodes.is_ready(system(registry_failure=StoreUnavailable("away")), lost) == url
    with pytest.raises(RoadsteadError, match="cannot be reached"):
        await nodes.is_ready(system(), node("im-1", "im"))
    starting = HttpServer("im-1", Metrics("im-1"), statistics=dict)
    url = await starting.listen("127.0.0.1", 0)
    with pytest.raises(Unavailable, match="is not ready"):
        await nodes.is_ready(system(), node("im-1", "im", url))
    await starting.close()


async def test_without_a_scheduler_no_message_is_sent():
    """Which is told as what it is."""
    finding = await found("a message arrives", lambda: round_trip(system(node("im-1", "im"))), "look above")
    assert (finding.is_ok, finding.seen) == (False, "there is no scheduler node")


async def test_versions_are_compared():
    """Two of them are a warning that says who has which."""
    same = system(node("im-1", "im"), node("im-2", "im"))
    assert await nodes.versions(same) == "all are 1.0"
    mixed = system(node("im-1", "im"), node("im-2", "im", version="1.1"), node("access-1", "access"))
    with pytest.raises(Degraded, match=r"1\.0: im-1, access-1; 1\.1: im-2"):
        await nodes.versions(mixed)


@pytest.mark.parametrize(
    ("ahead_ms", "kind", "seen"),
    [
        (0, None, "within 0 ms"),
        (400, None, "within 400 ms"),
        (600, Degraded, "im-1 is 600 ms ahead"),
        (-6_000, LimitExceeded, "im-1 is 6000 ms behind"),
    ],
)
async def test_clocks_are_compared(ahead_ms: int, kind: type[RoadsteadError] | None, seen: str):
    """A node that does not answer is no reason; an answer's way counts for the node."""
    clock = SimClock()
    async with answering(lambda: {"time_ms": clock.realtime() + ahead_ms}) as url:
        looked = nodes.clocks(system(node("im-1", "im", url), node("im-2", "im")), clock)
        if kind is None:
            assert (await looked).startswith(seen)
        else:
            with pytest.raises(kind, match=seen):
                await looked


async def test_open_files_are_those_of_this_machines_processes(monkeypatch: pytest.MonkeyPatch):
    """Others are not looked at."""
    async with answering(lambda: {"pid": os.getpid()}) as url:
        there = system(node("im-1", "im", url))
        monkeypatch.setattr(resource, "prlimit", lambda _pid, _what: (100_000, 100_000))
        assert await nodes.file_limits(there) == "100000 or more for im-1"
        monkeypatch.setattr(resource, "prlimit", lambda _pid, _what: (1_024, 100_000))
        with pytest.raises(LimitExceeded, match="1024 for im-1"):
            await nodes.file_limits(there)

    async with answering(lambda: {"pid": 2**22 + 1}) as url:
        monkeypatch.undo()
        assert "not looked at" in await nodes.file_limits(system(node("im-1", "im", url)))


@pytest.mark.parametrize(("free", "kind"), [(50, None), (5, Degraded), (0, LimitExceeded)])
async def test_room_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[Exception]):
    """Of several folders the fullest counts."""
    assert "not looked at" in await nodes.disk_space(system(im_folders=[tmp_path / "absent"]))
    (tmp_path / "roomy").mkdir()
    monkeypatch.setattr(
        nodes.shutil,
        "disk_usage",
        lambda folder: SimpleNamespace(total=100, free=90 if folder.name == "roomy" else free, used=0),
    )
    looked = nodes.disk_space(system(im_folders=[tmp_path / "roomy", tmp_path]))
    if kind is None:
        assert f"free in {tmp_path}" in await looked
    else:
        with pytest.raises(kind, match=f"free in {tmp_path}"):
            await looked


@pytest.mark.parametrize(
    ("days", "kind", "seen"),
    [(90, None, "2 listeners, 90 days left"), (13, Degraded, "13 days left"), (0, RoadsteadError, "expired: im-1")],
)
async def test_certificates_are_looked_at(tmp_path: Path, days: int, kind: type[Exception] | None, seen: str):
    """As they are shown, whoever signed them; what has no TLS, or is away, is none."""
    clock = SystemClock()
    issued_at = clock.realtime() if days else clock.realtime() - 30 * DAY_MS
    issued = CertificateAuthority.create(tmp_path, now=issued_at).issue("im-1", now=issued_at, days=days or 20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    later = SimClock(epoch_ms=clock.realtime() - 60_000)
    async with answering(tls=context) as url:
        there = system(
            node("im-1", "im", url, client_url=url), node("im-2", "im", "https://127.0.0.1:9"), node("x", "im")
        )
        looked = nodes.certificates(there, later)
        if kind is None:
            assert (await looked).startswith(seen)
        else:
            with pytest.raises(kind, match=seen):
                await looked
    assert await nodes.certificates(system(node("im-1", "im")), clock) == "no listener has TLS"


async def test_keys_must_be_good_everywhere():
    """Whoever refuses one is named; who is away is not."""
    async with answering() as good, answering(accepts=False) as bad:
        those = (node("im-1", "im", good), node("im-2", "im", bad), node("im-3", "im"))
        with pytest.raises(Unauthenticated, match=r"refused by im-2$"):
            await nodes.api_key_accepted(system(*those))
        with pytest.raises(Unauthenticated, match=r"refused by im-2$"):
            await nodes.peer_key_accepted(system(*those))
        assert await nodes.api_key_accepted(system(those[0], those[2])) == "by 1 nodes"


async def test_a_registry_that_is_away_or_slow_is_told(monkeypatch: pytest.MonkeyPatch):
    """With its reason, or how long it took."""
    clock = SimClock()
    assert await whole.registry(system(), clock) == "memory answers in 0 ms"
    with pytest.raises(StoreUnavailable, match="away"):
        await whole.registry(system(registry_failure=StoreUnavailable("away")), clock)
    slow = MemoryRegistry(clock)

    async def late(_key: str) -> None:
        clock.advance(600)

    monkeypatch.setattr(slow, "get", late)
    with pytest.raises(Degraded, match="600 ms"):
        await whole.registry(system(registry=slow), clock)


async def test_reports_of_access_nodes_must_be_new(monkeypatch: pytest.MonkeyPatch):
    """One that stopped reporting is named, though it is registered."""
    monkeypatch.setattr(whole, "REPORTS_WAIT_MS", 300)
    clock = SystemClock()
    registry = MemoryRegistry(clock)
    there = system(node("access-1", "access"), node("access-2", "access"), registry=registry)
    with pytest.raises(Unavailable, match="no access node is registered"):
        await whole.reports(system(), clock)
    for one in there.nodes:
        assert one.instance is not None
        await registry.register(one.instance, ttl_ms=60_000)

    async def report(*names: str) -> None:
        for number in range(1, 100):
            for name in names:
                note = NodeReport(number=number, connections=0, is_draining=False, accepted=0)
                await registry.heartbeat(name, 1, msgspec.msgpack.encode(note))
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        both = tasks.create_task(report("access-1", "access-2"))
        assert (await whole.reports(there, clock)).startswith("each of 2 access nodes reported within ")
        both.cancel()
    async with asyncio.TaskGroup() as tasks:
        one_task = tasks.create_task(report("access-1"))
        with pytest.raises(Unavailable, match="no report of access-2 within 300 ms"):
            await whole.reports(there, clock)
        one_task.cancel()


async def test_shards_need_their_processes_and_the_newest_table(monkeypatch: pytest.MonkeyPatch):
    """What is away, and who is behind, is named."""
    monkeypatch.setattr(whole, "AGREE_PAUSE_S", 0.0)
    registry = MemoryRegistry(SystemClock())
    with pytest.raises(Unavailable, match="there is no table of shards"):
        await whole.shard_table(system(registry=registry))
    table = ShardTable(7, ("im-1", "im-2", "im-1"))
    await registry.put(whole.SHARD_TABLE_KEY, msgspec.json.encode(table))
    epoch = 7
    async with answering(lambda: {"table_epoch": epoch}) as url:
        both = system(node("im-1", "im", url), node("im-2", "im", url), registry=registry)
        assert await whole.shard_table(both) == "epoch 7, shards: 3, processes: 2"
        with pytest.raises(Unavailable, match="im-1 is away, with 2 shards"):
            await whole.shard_table(system(node("im-2", "im", url), registry=registry))
        epoch = 6
        with pytest.raises(Degraded, match="im-1, im-2: behind epoch 7"):
            await whole.shard_table(both)
    await registry.put(whole.SHARD_TABLE_KEY, b"[]")
    with pytest.raises(RoadsteadError, match="is no table of shards"):
        await whole.shard_table(system(registry=registry))


async def test_whoever_lacks_a_stream_is_named(monkeypatch: pytest.MonkeyPatch):
    """Each access node needs one to each status and im node, and so on."""
    monkeypatch.setattr(whole, "AGREE_PAUSE_S", 0.0)
    streams: dict[str, Any] = {"access-1": {}, "im-1": {}}
    async with answering(lambda: {"streams": streams}) as url:
        there = system(node("status-1", "status", url), node("access-1", "access", url), node("im-1", "im", url))
        assert await whole.streams(there) == "4 streams"
        del streams["im-1"]
        with pytest.raises(Unavailable, match="none from im-1 to status-1, im-1 to access-1"):
            await whole.streams(there)


async def test_status_nodes_that_are_away_do_not_hide_the_others(monkeypatch: pytest.MonkeyPatch):
    """The table and the leader are looked at with those that answer."""
    monkeypatch.setattr(whole, "AGREE_PAUSE_S", 0.0)
    seen = {
        "node": "status-1",
        "epoch": 3,
        "partitions": 4_096,
        "moves": 0,
        "granter": "leader",
        "is_registry_reachable": True,
        "is_leading": True,
    }
    with pytest.raises(Unavailable, match="no status node answers"):
        await whole.partition_table(system(node("status-2", "status")))
    async with answering(lambda: seen) as url:
        there = system(node("status-1", "status", url), node("status-2", "status"))
        assert await whole.partition_table(there) == "epoch 3, 4096 partitions over 1 nodes"
        assert await whole.status_leader(there) == "status-1 leads"
        seen["granter"], seen["is_registry_reachable"] = "peers", False
        with pytest.raises(Degraded, match=r"by the grants of a majority of the nodes only; status-1: cannot read"):
            await whole.status_leader(there)
        seen["granter"] = "nobody"
        with pytest.raises(RoadsteadError, match="status-1: may not answer"):
            await whole.status_leader(there)


def status_nodes(monkeypatch: pytest.MonkeyPatch, *said: dict[str, Any]) -> None:
    """Let the status nodes say this of themselves."""

    async def answers(_system: System) -> list[dict[str, Any]]:
        return list(said)

    monkeypatch.setattr(whole, "AGREE_PAUSE_S", 0)
    monkeypatch.setattr(whole, "_status_nodes", answers)


def serving(name: str, granter: str = "leader", *, partitions: int = 1, **more: Any) -> dict[str, Any]:
    """What a status node says of itself."""
    said = {"node": name, "granter": granter, "partitions": partitions, "is_leading": False}
    return {**said, "is_registry_reachable": True, **more}


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ([serving("s1", is_leading=True), serving("s2"), serving("spare", "nobody", partitions=0)], "s1 leads"),
        ([serving("s1"), serving("s2")], "a node of another process leads"),
        ([{"node": "s1", "partitions": 0}], "this status backend needs none"),
    ],
)
async def test_who_leads_is_told(monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]], seen: str):
    """A spare needs no lease, and another backend no leader."""
    status_nodes(monkeypatch, *said)
    assert await whole.status_leader(system()) == seen


async def test_status_nodes_without_a_leader_are_degraded(monkeypatch: pytest.MonkeyPatch):
    """Everything is served, and the line says what is away."""
    status_nodes(monkeypatch, serving("s1", "peers"), serving("s2", "peers", is_registry_reachable=False))
    with pytest.raises(Degraded, match=r"^s1, s2: by the grants of a majority of the nodes only; s2: cannot read"):
        await whole.status_leader(system())


async def test_a_status_node_that_may_not_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    """Its users are unknown."""
    status_nodes(monkeypatch, serving("s1", "peers"), serving("s2", "nobody"))
    with pytest.raises(RoadsteadError, match=r"^s2: may not answer") as caught:
        await whole.status_leader(system())
    assert not isinstance(caught.value, Degraded)
