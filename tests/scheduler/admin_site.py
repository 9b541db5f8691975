"""A scheduler's operators' API in the hands of a test: what the registry shows is taken when the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp.test_utils import TestClient, TestServer

from access.api import SERVICE, NodeReport
from base.clock import SimClock
from base.core.registry import ServiceInstance
from base.http import Credentials, HttpServer, Role
from base.ids import Incarnation, NodeId
from base.metrics import Metrics
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.admin import SchedulerAdmin
from scheduler.core.engine import Decision
from scheduler.core.regions import Region, Regions
from scheduler.core.request import Location, Request
from scheduler.core.snapshot import Settings
from scheduler.decider import Decider, Rules
from scheduler.following import Seen
from scheduler.orders import PREFIX, Orders
from scheduler.rollouts import Rollouts

KEYS = {"viewer-key": Role.VIEWER, "operator-key": Role.OPERATOR}
ISSUER = "0123456789"
ROLLOUT = """\
rollout: fast
pool: {version: 2.0.0}
segments:
  - {name: staff, when: {user: {in: staff}}, to: canary}
steps:
  - {percent: 10, hold: 10m}
  - {percent: 100, migrate: {rate: 200/s}}
"""
REGIONS = Regions([Region("bj"), Region("sh")], default="bj")


class AdminSite:
    """One scheduler without its loops."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.registry = MemoryRegistry(self.clock)
        site = Site(
            name=NodeId("scheduler-1"),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=self.clock,
            trust=Trust.of_key("peer-key"),
            credentials=Credentials(KEYS),
            config=NodeConfig(),
        )
        self.orders = Orders(self.registry, self.clock, node=site.name)
        rules = Rules((), self.orders.policy, {}, REGIONS)
        self.decider = Decider(ISSUER, Settings(slow_start_ms=0), self.clock, rules, remembered=100)
        self.rollouts = Rollouts(
            self.registry, self.clock, self.orders, node=site.name, nodes=lambda: self.decider.snapshot.nodes
        )
        self.seen = Seen(ISSUER)
        self.admin = SchedulerAdmin(
            site,
            decider=self.decider,
            orders=self.orders,
            rollouts=self.rollouts,
            seen=self.seen,
            schedulers=lambda: 2,
            locate=self.locate,
        )
        self.server = HttpServer(site.name, Metrics(site.name), statistics=dict)
        self.admin.add_to(self.server.app.router)
        self.client: TestClient[Any, Any] = TestClient(TestServer(self.server.app))

    def locate(self, _user: str, address: str, hint: str, rtts: Mapping[str, int]) -> Location:
        """Everybody is where they say, or in Shanghai if they have an address."""
        assert not rtts, "an operator's question must not teach anything"
        return Location(hint or ("sh" if address else ""), source="hint" if hint else "networks")

    async def register(self, name: str, *, version: str = "1.0.0", connections: int = 0, **more: Any) -> None:
        """Register an access node with its report."""
        meta = {"capacity": "100", "region": more.pop("region", "bj"), "client_url": f"http://{name}.example.com"}
        report = NodeReport(number=1, version=version, connections=connections, uptime_ms=1, **more)
        url = f"http://{name}:7000"
        node = ServiceInstance(id=name, service=SERVICE, url=url, incarnation=Incarnation(1), meta=meta)
        await self.registry.register(node, ttl_ms=600_000)
        await self.registry.heartbeat(name, 1, msgspec.msgpack.encode(report))

    async def take(self) -> None:
        """Take what the registry shows, as the service does."""
        self.seen.take((await self.registry.services(SERVICE)).items, self.clock.monotonic())
        self.orders.read((await self.registry.scan(PREFIX)).items)
        self.rollouts.observe(self.seen.nodes.values())
        self.decider.configure(Rules(self.rollouts.active(), self.orders.policy, self.orders.lists, REGIONS))
        if self.decider.shadow_policy != self.orders.shadow:
            self.decider.set_shadow(self.orders.shadow)
        self.decider.observe(self.seen.access_nodes(self.orders.cordons), schedulers=2)

    def decide(self, user: str, region: str = "bj") -> Decision:
        """Decide for a client."""
        return self.decider.decide(Request(user, "phone", "ios", "5.1.0", "10.0.0.1", Location(region, source="hint")))

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str = "operator-key", **more: Any
    ) -> tuple[int, Any]:
        """Ask with a body that is text as it is, or else JSON; return the status and the answer."""
        sent = {"data": body.encode()} if isinstance(body, str) else {"json": body} if body is not None else {}
        headers = {"Authorization": f"Bearer {key}", "X-Operator": "ann@ops"}
        async with self.client.request(method, path, headers=headers, **sent, **more) as answer:
            return answer.status, await answer.json()

    async def good(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Ask what is answered well, and take what became of it."""
        status, answer = await self.ask(method, path, body, **more)
        assert status == 200, answer
        await self.take()
        return answer

    async def refused(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str, str]:
        """Ask what is refused; return the status, the name of the error, and its message."""
        status, answer = await self.ask(method, path, body, **more)
        assert status >= 400, answer
        return status, answer["error"]["name"], answer["error"]["message"]


@asynccontextmanager
async def admin_site() -> AsyncIterator[AdminSite]:
    """Run one with two nodes in Beijing and one in Shanghai."""
    site = AdminSite()
    async with site.client:
        await site.register("access-1", connections=30, admitted={ISSUER: 20, "another": 20})
        await site.register("access-2", connections=10, accepted=7, refused=6, rejected=5, abnormal=4)
        await site.register("access-10", connections=60, region="sh", version="2.0.0")
        await site.take()
        yield site
