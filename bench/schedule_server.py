"""A scheduler with made-up access nodes, or a bare aiohttp handler: `python -m bench.schedule_server scheduler|bare`.

Each in a process of its own and on the same event loop. It prints what to ask, one JSON line, and runs until it is
killed. The bare one answers a constant of the length of the scheduler's answer, and does nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import msgspec
from aiohttp import web

from access.api import SERVICE as ACCESS
from access.api import NodeReport
from base import log, loop
from base.clock import SystemClock, Timestamp
from base.core.registry import ServiceInstance
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.keys import KeyList, KeyRing
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.config import RegionConfig, SchedulerConfig
from scheduler.service import Scheduler
from scheduler.tokens import mint_user_token

__all__ = ["ACCESS_NODES", "ANSWER_BYTES", "USERS", "Asked"]

ACCESS_NODES = 100
USERS = 2_000
ANSWER_BYTES = 1_600
HOST = "127.0.0.1"
KEY = "a-secret-of-at-least-thirty-two-bytes"
DAY_MS = 86_400_000


class Asked(msgspec.Struct, frozen=True):
    """Where to ask, and with which user tokens."""

    url: str
    tokens: tuple[str, ...] = ()


async def _bare() -> None:
    answer = b'{"constant":"' + b"x" * (ANSWER_BYTES - 15) + b'"}'

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(body=answer, content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/access", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    _say(Asked(f"http://{HOST}:{runner.addresses[0][1]}/v1/access"))
    await asyncio.Event().wait()


async def _scheduler() -> None:
    clock = SystemClock()
    registry = MemoryRegistry(clock)
    for number in range(ACCESS_NODES):
        await _register(registry, number)
    regions = tuple(
        RegionConfig(name=name, places=(country,)) for name, country in (("east", "CN"), ("west", "US"), ("mid", "DE"))
    )
    site = Site(
        name=NodeId("scheduler-1"),
        incarnation=Incarnation(1),
        host=HOST,
        port=0,
        registry=registry,
        clock=clock,
        trust=Trust.of_key("bench"),
        credentials=Credentials({}),
        config=NodeConfig(),
    )
    config = SchedulerConfig(regions=regions, default_region="east")
    scheduler = Scheduler(config, site, user_keys=KeyList.of(KEY), ticket_keys=KeyRing.of({"k1": KEY}))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(scheduler.stop)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scheduler.run())
            await scheduler.start()
            expires_at = Timestamp(clock.realtime() + DAY_MS)
            tokens = tuple(mint_user_token(f"user-{n}", key=KEY, expires_at=expires_at) for n in range(USERS))
            while len(scheduler.decider.snapshot.nodes) < ACCESS_NODES:  # noqa: ASYNC110 - it follows the registry
                await asyncio.sleep(0.05)
            _say(Asked(f"{scheduler.node.http.url}/v1/access", tokens))


async def _register(registry: MemoryRegistry, number: int) -> None:
    name = f"access-{number}"
    meta = {
        "region": ("east", "west", "mid")[number % 3],
        "capacity": "15000",
        "client_url": f"https://{name}.example.com",
        "accepts_per_second": "1000000",
    }
    instance = ServiceInstance(
        id=name, service=ACCESS, url=f"http://127.0.0.1:{9}", incarnation=Incarnation(1), meta=meta
    )
    await registry.register(instance, ttl_ms=DAY_MS)
    report = NodeReport(number=1, connections=5_000 + number, uptime_ms=DAY_MS, version="2.4.0")
    await registry.heartbeat(name, Incarnation(1), msgspec.msgpack.encode(report))


def _say(asked: Asked) -> None:
    print(msgspec.json.encode(asked).decode(), flush=True)


if __name__ == "__main__":
    log.configure(level="error")
    loop.run(_bare() if sys.argv[1] == "bare" else _scheduler())
