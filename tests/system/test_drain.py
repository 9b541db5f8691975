"""A node is drained: its clients go to the others one by one, and nobody sees any of them offline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import pytest

from access.api import transport_urls
from access.config import AccessConfig
from access.core.protocol import ClientError, Close
from access.service import AccessNode
from base.errors import BadRequest, NotFound, Unauthenticated
from base.keys import KeyRing
from base.service import Service
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from roadstead.config import Config, UpConfig
from status.client import status_side
from tests.system.conftest import SETTLE_S, System, eventually, running
from tests.system.test_faults import KEY, TICKET_KEY, Cluster

GRACE_MS = 5_000
OLD, THIRD = "access-1", "access-3"
CONFIG = Config(access=AccessConfig(drain_grace_ms=GRACE_MS), up=UpConfig(access_nodes=3))


class RawClient:
    """A client without an SDK: it sees each frame and each close code."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.client = ""

    async def connect(self, ticket: str) -> dict[str, Any]:
        """Send the connect command; return its reply. Fails if the server closes instead."""
        await self.socket.send_json({"id": 1, "connect": {"token": ticket}})
        reply = await self.read()
        assert reply is not None, self.socket.close_code
        return reply

    async def read(self) -> dict[str, Any] | None:
        """Return the next message that is no ping, None once the connection is closed."""
        while True:
            async with asyncio.timeout(SETTLE_S):
                frame = await self.socket.receive()
            if frame.type is not aiohttp.WSMsgType.TEXT:
                return None
            if frame.data == "{}":
                await self.socket.send_str("{}")
            else:
                decoded: dict[str, Any] = msgspec.json.decode(frame.data)
                return decoded

    async def move(self) -> dict[str, Any]:
        """Return where the next message sends it."""
        message = await self.read()
        assert message is not None
        move = message["push"]["message"]["data"]["move"]
        assert isinstance(move, dict)
        return move

    async def closed(self) -> int | None:
        """Wait for the close; return its code."""
        assert await self.read() is None
        return self.socket.close_code


class Operator:
    """A system of three access nodes, its operator, and clients without an SDK."""

    def __init__(self, system: System, http: aiohttp.ClientSession) -> None:
        self.system = system
        self.http = http
        self._dialed: list[RawClient] = []

    async def ask(self, path: str = "", *, node: str = OLD) -> Any:
        return await call_api("GET", f"{self._url(node)}/v1/admin/access{path}", credential=self.system.key)

    async def order(self, what: str, body: Any = None, *, node: str = OLD) -> Any:
        url = f"{self._url(node)}/v1/admin/access/{what}"
        return await call_api("POST", url, credential=self.system.key, body=body)

    async def until(self, node: str = OLD, **wanted: Any) -> dict[str, Any]:
        """Wait until the node's drain is so; return it."""
        seen: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal seen
            seen = (await self.ask(node=node))["drain"]
            return seen | wanted == seen

        await eventually(look)
        return seen

    async def ticket(self, user: str, **params: str) -> str:
        """A ticket that is good at every node."""
        answer = await self.system.access(user, **params)
        assert len(answer["candidates"]) == 3
        return str(answer["ticket"])

    async def dial(self, url: str) -> RawClient:
        client = RawClient(await self.http.ws_connect(url, protocols=["centrifuge-json"]))
        self._dialed.append(client)
        return client

    async def hang_up(self) -> None:
        """Close what is still open: a connection that is only forgotten is a warning in some later test."""
        for client in self._dialed:
            await client.socket.close()

    async def client(self, user: str, *, node: str = OLD, **params: str) -> RawClient:
        """Connect to a node."""
        ticket = await self.ticket(user, **params)
        client = await self.dial(self.websocket(node))
        assert "connect" in await client.connect(ticket)
        return client

    def websocket(self, node: str) -> str:
        return transport_urls(self.system.endpoints.clients[node])["websocket"]

    def _url(self, node: str) -> str:
        return self.system.endpoints.access[node]


def session() -> aiohttp.ClientSession:
    """A session that opens a connection for each request, as clients do for a WebSocket."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    async with running(tmp_path / "data", CONFIG) as system, session() as http:
        made = Operator(system, http)

        async def all_are_known() -> bool:
            return len((await system.access("anybody"))["candidates"]) == 3

        await eventually(all_are_known)
        yield made
        await made.hang_up()


# ---------------------------------------------------------------- moves


async def test_a_client_is_told_where_to_go_with_a_ticket_that_is_good_only_there(operator: Operator) -> None:
    """It connects there first and leaves then, under the same device; the ticket is good once."""
    old = await operator.client("ann", device="phone", platform="ios")
    shown = await operator.order("drain", {"over_ms": 100})
    assert shown["is_draining"] is True
    assert (shown["drain"]["state"], shown["drain"]["total"]) == ("draining", 1)
    move = await old.move()
    target = move["node"]
    (other,) = {"access-2", THIRD} - {target}
    assert move["url"] == operator.websocket(target)
    assert 0 < move["after_ms"] <= GRACE_MS

    refused = await operator.dial(operator.websocket(other))
    error = (await refused.connect(move["ticket"]))["error"]
    assert error == {"code": ClientError.TOKEN_EXPIRED.value[0], "message": "the ticket is for another access node"}
    new = await operator.dial(move["url"])
    assert (await new.connect(move["ticket"]))["connect"]["node"] == target
    again = await operator.dial(move["url"])
    assert (await again.connect(move["ticket"]))["error"]["code"] == ClientError.TOKEN_EXPIRED.value[0]

    await old.socket.close()
    done = await operator.until(state="done")
    assert (done["arrived"], done["closed"], done["eta_ms"]) == (1, 0, 0)
    (moved,) = (await operator.ask("/clients?user=ann", node=target))["clients"]
    assert (moved["device"], moved["platform"], moved["state"]) == ("phone", "ios", "online")
    assert (await operator.ask("/clients?user=ann"))["clients"] == []


async def test_who_stays_is_closed_with_3001_after_the_grace(operator: Operator) -> None:
    """And whoever went by itself is neither told nor closed."""
    stays = await operator.client("ann")
    leaves = await operator.client("ben")
    await operator.order("drain", {"over_ms": 600_000, "grace_ms": 200})
    await leaves.socket.close()
    await operator.until(departed=1)
    await operator.order("abort")
    await operator.order("drain", {"over_ms": 0, "grace_ms": 200})
    move = await stays.move()
    assert move["after_ms"] <= 200
    assert await stays.closed() == Close.SHUTDOWN.code
    done = await operator.until(state="done")
    assert (done["total"], done["closed"], done["arrived"]) == (1, 1, 0)


async def test_where_nobody_has_room_the_scheduler_is_to_be_asked(operator: Operator) -> None:
    """The others drain, too: a move without a target."""
    old = await operator.client("ann")
    for node in ("access-2", THIRD):
        await operator.order("drain", node=node)

    async def others_are_out() -> bool:
        answer = await operator.system.access("ann")
        return [candidate["id"] for candidate in answer["candidates"]] == [OLD]

    await eventually(others_are_out)
    await operator.order("drain", {"over_ms": 0})
    move = await old.move()
    assert set(move) == {"after_ms"}


# ---------------------------------------------------------------- newcomers


async def test_a_draining_node_refuses_newcomers_before_the_upgrade(operator: Operator) -> None:
    """503 and when to come back, on all transports; not ready on both ports; the scheduler sends nobody."""
    ann = await operator.client("ann")
    ticket = await operator.ticket("ben")
    await operator.order("drain", {"over_ms": 600_000})
    ports = operator.system.endpoints.access[OLD], operator.system.endpoints.clients[OLD]
    for port in ports:
        async with operator.http.get(f"{port}/readyz") as answer:
            assert answer.status == 503
        async with operator.http.get(f"{port}/healthz") as answer:
            assert answer.status == 200
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await operator.dial(operator.websocket(OLD))
    assert refused.value.status == 503
    assert refused.value.headers is not None
    assert int(refused.value.headers["Retry-After"]) >= 1
    urls = transport_urls(ports[1])
    command = msgspec.json.encode({"id": 1, "connect": {"token": ticket}}).decode()
    for request in (
        operator.http.post(urls["http_stream"], data=command),
        operator.http.get(urls["sse"], params={"cf_connect": command}),
    ):
        async with request as answer:
            assert answer.status == 503, answer.url
            assert int(answer.headers["Retry-After"]) >= 1

    async def is_out() -> bool:
        answer = await operator.system.access("ben")
        return OLD not in {candidate["id"] for candidate in answer["candidates"]}

    await eventually(is_out)
    listed = await call_api("GET", f"{operator.system.scheduler}/v1/admin/access/nodes", credential=operator.system.key)
    assert {node["node"]: node["is_draining"] for node in listed["nodes"]} == {
        OLD: True,
        "access-2": False,
        THIRD: False,
    }
    assert not ann.socket.closed


async def test_an_aborted_drain_lets_clients_in_again(operator: Operator) -> None:
    """Who was told and did not go is not closed; who was not told is not told."""
    told = await operator.client("ann")
    await operator.order("drain", {"over_ms": 0, "grace_ms": 300})
    await told.move()
    shown = await operator.order("abort")
    assert (shown["is_draining"], shown["drain"]["state"]) == (False, "none")
    async with operator.http.get(f"{operator.system.endpoints.clients[OLD]}/readyz") as answer:
        assert answer.status == 200
    ben = await operator.client("ben")
    await asyncio.sleep(0.6)  # past the grace: that nothing happens has no event
    await told.socket.send_json({"id": 2, "rpc": {"method": "im.send", "data": _message("ben")}})
    answers = [await told.read(), await told.read()]
    assert any(answer is not None and answer.get("id") == 2 and "rpc" in answer for answer in answers)
    push = await ben.read()
    assert push is not None
    assert push["push"]["pub"]["data"]["body"] == "hi"


async def test_a_paused_drain_tells_nobody_until_it_is_resumed(operator: Operator) -> None:
    """And says so; with nothing under way there is nothing to pause."""
    for what in ("pause", "resume", "abort"):
        with pytest.raises(NotFound):
            await operator.order(what)
    clients = [await operator.client(f"user-{number}") for number in range(4)]
    await operator.order("drain", {"over_ms": 2_000})
    shown = await operator.order("pause")
    assert shown["drain"]["state"] == "paused"
    assert shown["drain"]["eta_ms"] is None
    pending = shown["drain"]["pending"]
    assert pending > 0
    await asyncio.sleep(1.0)  # twice the time between two moves
    seen = (await operator.ask())["drain"]
    assert (seen["state"], seen["pending"]) == ("paused", pending)
    resumed = await operator.order("resume")
    assert resumed["drain"]["state"] == "draining"
    for client in clients:
        await client.move()
        await client.socket.close()
    done = await operator.until(state="done")
    assert done["arrived"] == 4


async def test_a_second_order_does_not_begin_anew(operator: Operator) -> None:
    """Two at once are one; the first pace holds."""
    ann = await operator.client("ann")
    first, second = await asyncio.gather(
        operator.order("drain", {"over_ms": 600_000}), operator.order("drain", {"over_ms": 1})
    )
    assert first["drain"]["total"] == second["drain"]["total"] == 1
    await asyncio.sleep(0.3)  # steps of the other pace would have told it
    assert (await operator.ask())["drain"]["pending"] == 1
    assert not ann.socket.closed


async def test_orders_need_a_key_and_sense(operator: Operator) -> None:
    """Nothing happens otherwise."""
    for what in ("drain", "pause", "resume", "abort", "kick"):
        with pytest.raises(Unauthenticated):
            await call_api("POST", f"{operator.system.endpoints.access[OLD]}/v1/admin/access/{what}", body={})
    for body in ({"over_ms": -1}, {"grace_ms": 1}, {"over": 1}, {"over_ms": "1m"}, [1]):
        with pytest.raises(BadRequest):
            await operator.order("drain", body)
    assert (await operator.ask())["drain"]["state"] == "none"


async def test_kicked_clients_are_those_of_the_user_and_device(operator: Operator) -> None:
    """3503 says stay out, 3011 come back."""
    phone, laptop = [await operator.client("ann", device=device) for device in ("phone", "laptop")]
    other = await operator.client("ben", device="phone")
    assert (await operator.order("kick", {"user": "ann", "device": "tv"}))["kicked"] == 0
    assert (await operator.order("kick", {"user": "ann", "device": "phone"}))["kicked"] == 1
    assert await phone.closed() == Close.FORCE_DISCONNECT.code
    assert (await operator.order("kick", {"user": "ann", "reconnect": True}))["kicked"] == 1
    assert await laptop.closed() == Close.FORCE_RECONNECT.code
    (left,) = (await operator.ask("/clients?user=ben"))["clients"]
    assert left["form"] == "ws_json"
    assert not other.socket.closed


def _message(to: str) -> dict[str, Any]:
    return {"to": to, "client_msg_id": "m-1", "body": "hi"}


# ---------------------------------------------------------------- nobody is offline meanwhile


class Watched:
    """Users with the wrapper, messages to them, and somebody who looks at their status all the time."""

    def __init__(self, scheduler: str, status: str, key: str, count: int) -> None:
        self.users = [f"user-{number}" for number in range(count)]
        self.got: dict[str, list[Any]] = {user: [] for user in self.users}
        self.looks = 0
        self.ends: list[Exception] = []
        self._status = status
        self._key = key
        self._clients = [self._make(scheduler, user) for user in self.users]

    def _make(self, scheduler: str, user: str) -> Client:
        async def take(incoming: Incoming) -> None:
            self.got[user].append(incoming.data["body"])

        return Client(scheduler, user=user, credential=self._key, on_message=take, on_end=self.ends.append)

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await client.connect()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._watching = self._tasks.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await self._tasks.__aexit__(None, None, None)
        for client in self._clients:
            await client.close()

    async def have(self, *bodies: Any) -> None:
        """Wait until each user got these, and nothing else, in this order."""

        async def look() -> bool:
            return all(got == list(bodies) for got in self.got.values())

        await eventually(look)

    async def _watch(self) -> None:
        while True:
            found = await call_api(
                "POST", f"{self._status}/v1/users/status", credential=self._key, body={"users": self.users}
            )
            assert {status["state"] for status in found["statuses"]} == {"online"}
            self.looks += 1
            await asyncio.sleep(0.01)


async def test_clients_that_follow_are_online_all_the_time_and_miss_nothing(operator: Operator) -> None:
    """From an operator's order until the node is empty, with messages all the while."""
    system = operator.system
    status = next(iter(system.endpoints.status.values()))
    async with Watched(system.scheduler, status, system.key, 9) as watched:
        before = (await operator.ask())["connections"]
        assert before > 0
        await operator.order("drain", {"over_ms": 1_000})
        bodies = []
        while (await operator.ask())["drain"]["state"] != "done":
            for user in watched.users:
                await system.send("sender", user, f"{user}-{len(bodies)}", len(bodies))
            bodies.append(len(bodies))
        await watched.have(*bodies)
        seen = (await operator.ask())["drain"]
        assert (seen["arrived"], seen["closed"], seen["departed"]) == (before, 0, 0)
        assert (await operator.ask())["connections"] == 0
        assert watched.looks > 20
        assert watched.ends == []


class TwoNodes(Cluster):
    """A cluster with two access nodes, which take their time when they are stopped."""

    async def start(self, name: str) -> Service:
        if not name.startswith("access-"):
            return await super().start(name)
        site = await self.site(name)
        config = AccessConfig(stop_drain_ms=800, drain_grace_ms=1_500, audit_interval_ms=500)
        side = status_side(site, users_max=100)
        service = AccessNode(config, site, ticket_keys=KeyRing.of(dict([TICKET_KEY])), **side)
        self._running[name] = (service, self._tasks.create_task(service.run()))
        await service.start()
        return service


@asynccontextmanager
async def cluster_of(*access: str) -> AsyncIterator[tuple[TwoNodes, list[AccessNode]]]:
    async with asyncio.TaskGroup() as tasks:
        cluster = TwoNodes(tasks)
        try:
            for name in ("status-1", "status-2", "status-3", "im-1", "scheduler-1"):
                await cluster.start(name)
            nodes = [await cluster.start(name) for name in access]

            async def all_are_known() -> bool:
                seen = await call_api("GET", f"{cluster.url('scheduler-1')}/debug/statistics")
                return set(seen["access_nodes"]) == set(access)

            await eventually(all_are_known)
            yield cluster, [node for node in nodes if isinstance(node, AccessNode)]
        finally:
            await cluster.stop()


async def test_a_node_that_is_stopped_moves_its_clients_first() -> None:
    """As SIGTERM does it: nobody is offline, and it ends as soon as it is empty."""
    async with AsyncExitStack() as stack:
        cluster, (old,) = await stack.enter_async_context(cluster_of("access-1"))
        watched = await stack.enter_async_context(Watched(cluster.url("scheduler-1"), cluster.url("status-1"), KEY, 6))
        new = await cluster.start("access-2")
        assert isinstance(new, AccessNode)
        await eventually(lambda: _has_targets(old))
        async with asyncio.timeout(old.node.drain_deadline_s):
            await old.drain()
        assert old.statistics()["connections"] == 0
        assert new.statistics()["connections"] == 6
        await cluster.kill("access-1")
        looks = watched.looks

        async def was_looked_at() -> bool:
            return watched.looks > looks + 10

        await eventually(was_looked_at)
        assert watched.ends == []


async def test_a_node_that_is_stopped_does_not_wait_for_a_drain_that_is_paused() -> None:
    """Who is left is closed with 3001 when the time is over that stopping may take."""
    async with cluster_of("access-1", "access-2") as (cluster, (old, _)), session() as http:
        await eventually(lambda: _has_targets(old))
        answer = await call_api(
            "GET", f"{cluster.url('scheduler-1')}/v1/access", credential=KEY, params={"user": "ann"}
        )
        url = transport_urls(cluster.client_url("access-1"))["websocket"]
        client = RawClient(await http.ws_connect(url, protocols=["centrifuge-json"]))
        await client.connect(answer["ticket"])
        for what, body in (("drain", {"over_ms": 600_000}), ("pause", None)):
            await call_api("POST", f"{cluster.url('access-1')}/v1/admin/access/{what}", credential=KEY, body=body)
        async with asyncio.timeout(old.node.drain_deadline_s):
            await old.drain()
        assert await client.closed() == Close.SHUTDOWN.code


async def test_the_last_node_that_is_stopped_closes_all_at_once() -> None:
    """There is nowhere to go."""
    async with cluster_of("access-1") as (cluster, (old,)), session() as http:
        answer = await call_api(
            "GET", f"{cluster.url('scheduler-1')}/v1/access", credential=KEY, params={"user": "ann"}
        )
        url = transport_urls(cluster.client_url("access-1"))["websocket"]
        client = RawClient(await http.ws_connect(url, protocols=["centrifuge-json"]))
        await client.connect(answer["ticket"])
        closing = asyncio.ensure_future(client.closed())
        async with asyncio.timeout(0.8):
            await old.drain()
        assert await closing == Close.SHUTDOWN.code


async def _has_targets(node: AccessNode) -> bool:
    return node._drain.has_targets()
