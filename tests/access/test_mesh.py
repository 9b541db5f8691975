"""Channels over real peer streams, HTTP and a registry: nodes find each other, and a backend talks to any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from access.api import NodeReport
from access.channel_api import ChannelApi
from access.channel_metrics import ChannelMetrics
from access.channels import Channels
from access.core.namespaces import ChannelSettings, Namespace
from access.core.protocol import PublishRequest, SubscribeRequest, SubscribeResult
from access.fanout import Fanout
from access.mesh import Mesh
from access.peers import HAPPENED, Happened
from base.clock import SystemClock
from base.errors import PeerUnavailable
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.node import Node
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from tests.access.channel_cluster import FakeMember, verify

NAMESPACE = Namespace(
    history_size=10,
    presence=True,
    force_recovery=True,
    allow_subscribe="anyone",
    allow_publish="anyone",
)
KEY, VIEWER_KEY = "backend-key", "viewer-key"
CHANNELS = [f"chat {number}" for number in range(8)]


class AccessNode:
    """As much of an access node as channels need."""

    def __init__(self, registry: MemoryRegistry, name: str) -> None:
        self.is_draining = False
        credentials = Credentials({KEY: Role.BACKEND, VIEWER_KEY: Role.VIEWER})
        site = Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=registry,
            clock=SystemClock(),
            trust=Trust.of_key("peer"),
            credentials=credentials,
            config=NodeConfig(),
        )
        self.node = Node(site, "access", statistics=dict, note=self.note)
        self.mesh = Mesh(site, self.node.peers)
        self.fanout = Fanout(SystemClock())
        self.channels = Channels(
            self.mesh,
            site.clock,
            namespaces=(NAMESPACE,),
            settings=ChannelSettings(),
            verify=verify,
            fanout=self.fanout,
            metrics=ChannelMetrics(self.node.metrics, node=name),
        )
        ChannelApi(site, self.channels).add_to(self.node.http.app.router)

    def note(self) -> bytes:
        return msgspec.msgpack.encode(NodeReport(1, 0, self.is_draining))

    async def drain(self) -> None:
        self.is_draining = True
        await self.node.heartbeat()

    async def subscribe(self, member: FakeMember, channel: str, **request: Any) -> SubscribeResult:
        result = await self.channels.subscribe(member, SubscribeRequest(channel, **request))
        assert isinstance(result, SubscribeResult), result
        self.channels.subscribed(member, channel, result)
        return result


@asynccontextmanager
async def access_nodes(*names: str) -> AsyncIterator[list[AccessNode]]:
    registry = MemoryRegistry(SystemClock())
    nodes = [AccessNode(registry, name) for name in names]
    async with asyncio.TaskGroup() as tasks:
        running = []
        for one in nodes:
            await one.node.listen()
            running += [tasks.create_task(part.run()) for part in (one.mesh, one.channels, one.fanout, one.node)]
            await one.node.join()
        await until(lambda: all(_sees(one, names) for one in nodes))
        yield nodes
        for task in running:
            task.cancel()
        for one in nodes:
            await one.node.close()


def _sees(one: AccessNode, names: tuple[str, ...]) -> bool:
    is_connected = all(
        other == one.node.site.name or one.mesh.pool.get(other).is_connected for other in one.mesh.pool.nodes()
    )
    return one.mesh.pool.nodes() == tuple(sorted(names)) and is_connected


async def until(is_true: Any) -> None:
    async with asyncio.timeout(20):
        while not is_true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


def datas(member: FakeMember) -> list[Any]:
    return [publication["data"] for publication in member.of("pub")]


async def test_channels_work_over_real_streams_and_a_drain_hands_them_over():
    """Whoever owns them, and without a publication that is lost or told twice."""
    async with access_nodes("a", "b", "c") as nodes:
        members = [FakeMember(f"m{number}", f"u{number}") for number in range(3)]
        for channel in CHANNELS:
            for node, member in zip(nodes, members, strict=True):
                await node.subscribe(member, channel)
        for channel in CHANNELS:
            for number, node in enumerate(nodes):
                request = PublishRequest(channel, msgspec.Raw(b"%d" % number))
                assert await node.channels.publish(members[number], request) is None
        assert (await nodes[1].channels.backend_presence_stats(CHANNELS[0])).num_users == 3
        await nodes[0].drain()
        await until(lambda: nodes[0].channels.statistics()["custody"]["owned"] == 0)
        for channel in CHANNELS:
            assert await nodes[0].channels.publish(members[0], PublishRequest(channel, msgspec.Raw(b"3"))) is None
        await until(lambda: all(len(datas(member)) == 4 * len(CHANNELS) for member in members))
        for member in members:
            offsets = [(push["channel"], push["pub"]["offset"]) for push in member.connection.pushes if "pub" in push]
            assert all([offset for name, offset in offsets if name == channel] == [1, 2, 3, 4] for channel in CHANNELS)
            assert member.of("unsubscribe") == []


async def test_news_for_a_node_without_a_stream_are_refused():
    """It will join again when it has one."""
    async with access_nodes("a") as (node,):
        with pytest.raises(PeerUnavailable):
            node.mesh.tell("nobody", HAPPENED, Happened("c", ""))


async def test_a_backend_uses_channels_over_http_at_any_node():
    """Publish and broadcast, history, presence, unsubscribe; each with the role that it needs."""
    async with access_nodes("a", "b") as nodes, aiohttp.ClientSession() as session:
        member = FakeMember("m1", "u1")
        await nodes[0].subscribe(member, "c")

        async def call(number: int, method: str, path: str, key: str = KEY, **arguments: Any) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{nodes[number].node.http.url}/v1/channels/{path}"
            async with session.request(method, url, headers=headers, **arguments) as response:
                return response.status, await response.json()

        body = {"channel": "c", "data": {"x": 1}, "tags": {"k": "v"}, "idempotency_key": "once"}
        first = await call(0, "POST", "publish", json=body)
        assert (first[0], first[1]["offset"]) == (200, 1)
        assert await call(1, "POST", "publish", json=body) == first
        status, answer = await call(1, "POST", "broadcast", json={"channels": ["c", "no:such", "d"], "data": 2})
        assert status == 200
        assert [one.get("offset", one.get("error", {}).get("name")) for one in answer["responses"]] == [
            2,
            "not_found",
            1,
        ]
        await until(lambda: len(datas(member)) == 2)
        status, page = await call(1, "GET", "c/history", KEY, params={"limit": "1", "reverse": "true"})
        assert (status, page["offset"], [one["data"] for one in page["publications"]]) == (200, 2, [2])
        status, page = await call(0, "GET", "c/history", KEY, params={"offset": "1", "epoch": page["epoch"]})
        assert (status, [one["data"] for one in page["publications"]]) == (200, [2])
        assert (await call(0, "GET", "c/history", params={"offset": "1", "epoch": "other"}))[0] == 404
        assert (await call(0, "GET", "c/history", params={"limit": "many"}))[0] == 400
        assert await call(1, "GET", "c/presence_stats", VIEWER_KEY) == (200, {"num_clients": 1, "num_users": 1})
        assert await call(1, "GET", "c/presence", KEY) == (
            200,
            {"presence": {"m1": {"user": "u1", "client": "m1"}}},
        )
        assert await call(1, "POST", "unsubscribe", json={"channel": "c", "user": "u1"}) == (200, {})
        await until(lambda: member.of("unsubscribe") == [{"code": 2000, "reason": "server unsubscribe"}])
        for method, path in (("POST", "publish"), ("GET", "c/history"), ("GET", "c/presence")):
            assert (await call(0, method, path, VIEWER_KEY, **({"json": body} if method == "POST" else {})))[0] == 403
        assert (await call(0, "POST", "publish", data=b'{"channel":"c","data":"\xff"}'))[0] == 400
        too_many = {"channels": ["c"] * 1_001, "data": 1}
        assert (await call(0, "POST", "broadcast", json=too_many))[0] == 400
