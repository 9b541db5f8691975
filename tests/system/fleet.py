"""A fleet of access nodes under several schedulers, whose registry can be cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec

from access.config import AccessConfig
from access.service import AccessNode
from base.clock import Instant
from base.core.registry import ServiceInstance
from base.errors import StoreUnavailable
from base.keys import KeyList, KeyRing
from base.registry import Registry
from base.service import Service
from base.site import NodeConfig, Site
from roadstead.api import call_api
from scheduler.config import SchedulerConfig
from scheduler.core.rollout_machine import RolloutState
from scheduler.service import Scheduler
from status.client import status_side
from tests.system.conftest import eventually
from tests.system.light_clients import Clients, clients
from tests.system.test_faults import KEY, TICKET_KEY, Cluster

USER_KEY = "x" * 32
STABLE, CANARY = "1.0.0", "2.0.0"
OLD_MS = 300_000
"""How long access nodes claim to have been running: what is young is spared by moves."""
QUICK = SchedulerConfig(slow_start_ms=0, connect_window_ms=1_000)
encoded = msgspec.json.encode


class CutRegistry:
    """The way from one node to the registry, which can be cut: what is under way fails, too."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._is_cut = asyncio.Event()

    def cut(self) -> None:
        self._is_cut.set()

    def mend(self) -> None:
        self._is_cut.clear()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._registry, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            if self._is_cut.is_set():
                raise StoreUnavailable("the registry is cut off")
            asked, cut = asyncio.ensure_future(method(*arguments, **named)), asyncio.ensure_future(self._is_cut.wait())
            try:
                await asyncio.wait({asked, cut}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                cut.cancel()
                if not asked.done():
                    asked.cancel()
            if not asked.done():
                raise StoreUnavailable("the registry was cut off")
            return await asked

        return call


class Fleet(Cluster):
    """Several schedulers; access nodes of versions and regions of the test's choice, all of which ran for a while."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        super().__init__(tasks)
        self._status = msgspec.structs.replace(self._status, bootstrap_nodes=1)
        self.ways: dict[str, CutRegistry] = {}
        self.configs: dict[str, AccessConfig | SchedulerConfig] = {}

    async def site(self, name: str) -> Site:
        way = self.ways[name] = CutRegistry(self.registry)
        config = NodeConfig(registration_ttl_ms=20_000)
        return replace(await super().site(name), registry=way, config=config)

    async def start(self, name: str) -> Service:
        config = self.configs.get(name)
        if config is None:
            return await super().start(name)
        site = await self.site(name)
        service: Service
        if isinstance(config, AccessConfig):
            side = status_side(site, users_max=1_000)
            service = AccessNode(config, site, ticket_keys=KeyRing.of(dict([TICKET_KEY])), **side)
            service._built_at = Instant(service._built_at - OLD_MS)
        else:
            service = Scheduler(
                config, site, user_keys=KeyList.of(USER_KEY), ticket_keys=KeyRing.of(dict([TICKET_KEY]))
            )
        self._running[name] = (service, self._tasks.create_task(service.run()))
        await service.start()
        return service

    def scheduler(self, number: int) -> Scheduler:
        service = self._running[f"scheduler-{number}"][0]
        assert isinstance(service, Scheduler)
        return service

    @property
    def schedulers(self) -> list[Scheduler]:
        return [service for service, _ in self._running.values() if isinstance(service, Scheduler)]

    def access(self, name: str) -> AccessNode:
        service = self._running[name][0]
        assert isinstance(service, AccessNode)
        return service

    async def lose(self, *names: str) -> list[ServiceInstance]:
        """Have the registry lose the nodes, which go on without it. Returns what they had registered."""
        lost = [one for one in (await self.registry.services("access")).items if one.id in names]
        for instance in lost:
            self.ways[instance.id].cut()
            await self.registry.deregister(instance.id, instance.incarnation)
        return lost

    async def admin(self, method: str, path: str, body: Any = None, *, number: int = 1) -> Any:
        """Ask or order as an operator does."""
        return await call_api(method, self.url(f"scheduler-{number}") + path, credential=KEY, body=body)

    # ---------------------------------------------------------------- rollouts

    def state(self, name: str, number: int = 1) -> RolloutState:
        """The rollout's state as that scheduler knows it."""
        return self.scheduler(number).orders.rollouts[name].record.state

    async def until_state(self, name: str, **wanted: Any) -> None:
        """Wait until all schedulers know the rollout in such a state."""

        async def look() -> bool:
            states = [one.orders.rollouts[name].record.state for one in self.schedulers if name in one.orders.rollouts]
            return len(states) == len(self.schedulers) and all(
                getattr(state, field) == value for state in states for field, value in wanted.items()
            )

        await eventually(look)

    def live(self, name: str, number: int = 1) -> tuple[int, int]:
        """Live connections of the canary, and of all, as that scheduler knows them."""
        rollouts = self.scheduler(number).rollouts
        live = rollouts.live(self.scheduler(number).orders.rollouts[name].rollout)
        return live.canary, live.total


@asynccontextmanager
async def fleet_of(access: Mapping[str, AccessConfig], *schedulers: SchedulerConfig) -> AsyncIterator[Fleet]:
    """Run it until the block ends, with two schedulers if none are named. All of them know all access nodes then."""
    configs = {f"scheduler-{number}": config for number, config in enumerate(schedulers or (QUICK, QUICK), 1)}
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(tasks)
        fleet.configs = {**access, **configs}
        try:
            for name in ("status-1", "im-1", *access, *configs):
                await fleet.start(name)

            async def all_are_known() -> bool:
                return all(set(one.seen.nodes) == set(access) for one in fleet.schedulers)

            await eventually(all_are_known)
            yield fleet
        finally:
            await fleet.stop()


def nodes(stable: int, canary: int) -> dict[str, AccessConfig]:
    """So many access nodes of each version; the canary's come last."""
    return {
        f"access-{number}": AccessConfig(capacity=1_000, version=STABLE if number <= stable else CANARY)
        for number in range(1, stable + canary + 1)
    }


@asynccontextmanager
async def clients_of(fleet: Fleet) -> AsyncIterator[Clients]:
    """Light clients of the fleet until the block ends."""
    names = lambda: [one.node.site.name for one in fleet.schedulers]  # noqa: E731
    async with clients(fleet.url, KEY, schedulers=names, im="im-1") as made:
        yield made
