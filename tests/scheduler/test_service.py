"""A scheduler over what the registry says, whatever that is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from access.api import SERVICE, NodeReport
from base.clock import SystemClock
from base.core.registry import ServiceInstance
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.keys import KeyList, KeyRing
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.config import SchedulerConfig
from scheduler.service import Scheduler

KEY = "a-secret-of-at-least-thirty-two-bytes"
SETTLE_S = 5.0


def instance(name: str, meta: Mapping[str, str], note: bytes = b"") -> ServiceInstance:
    url = f"http://{name}:1"
    return ServiceInstance(id=name, service=SERVICE, url=url, incarnation=Incarnation(1), meta=meta, note=note)


async def test_a_node_that_it_does_not_understand_gets_nobody_and_harms_nobody() -> None:
    """One of another version, say, or that registered by mistake: the others are sent to all the same."""
    clock = SystemClock()
    registry = MemoryRegistry(clock)
    limits = {"capacity": "10", "client_url": "http://a:80"}
    for one in (
        instance("unreadable", limits, b"\xc1"),
        instance("unlimited", {"client_url": "http://b:80"}),
        instance("access-1", limits, msgspec.msgpack.encode(NodeReport(number=1, connections=3))),
    ):
        await registry.register(one, ttl_ms=60_000)
        await registry.heartbeat(one.id, one.incarnation, one.note)
    site = Site(
        name=NodeId("scheduler-1"),
        incarnation=Incarnation(1),
        host="127.0.0.1",
        port=0,
        registry=registry,
        clock=clock,
        trust=Trust.of_key("peer-key"),
        credentials=Credentials({"api-key": Role.BACKEND}),
        config=NodeConfig(),
    )
    scheduler = Scheduler(SchedulerConfig(), site, user_keys=KeyList.of(KEY), ticket_keys=KeyRing.of({"k1": KEY}))
    headers = {"Authorization": "Bearer api-key"}
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession(headers=headers) as http:
        running = tasks.create_task(scheduler.run())
        await scheduler.start()

        async def get(path: str) -> tuple[int, Any]:
            async with http.get(scheduler.node.http.url + path) as answer:
                return answer.status, await answer.json()

        async with asyncio.timeout(SETTLE_S):
            while (await get("/v1/access?user=ann"))[0] != 200:  # noqa: ASYNC110 - it follows the registry
                await asyncio.sleep(0.01)
        _, answer = await get("/v1/access?user=ann")
        assert [candidate["id"] for candidate in answer["candidates"]] == ["access-1"]
        _, shown = await get("/v1/admin/access/nodes")
        found = {node["node"]: (node["capacity"], node["connections"], node["is_draining"]) for node in shown["nodes"]}
        assert found == {"access-1": (10, 3, False), "unlimited": (0, 0, False), "unreadable": (10, 0, True)}
        assert not running.done()
        running.cancel()
    await scheduler.stop()
