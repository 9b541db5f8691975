"""Several processes of the message services with files of their own, over real streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from base.peer import PeerClient
from base.trust import Trust
from im.core.shards import shard_of_user
from im.files import opener
from im.service import MessageService
from im.shard import Shard
from tests.im.cluster import Cluster

__all__ = ["NODES", "SHARDS", "ShardCluster", "home", "sharded", "user_of"]

SHARDS = 4
NODES = ("im-1", "im-2")


def user_of(shard: int, n: int = 0, *, shards: int = SHARDS) -> str:
    """Return the n-th of some names whose timelines are in a shard."""
    found = [name for name in map("u{}".format, range(200)) if shard_of_user(name, shards) == shard]
    return found[n]


def home(shard: int, nodes: tuple[str, ...] = NODES) -> str:
    """Return the process that has the shard, as the first table says."""
    return nodes[shard % len(nodes)]


class ShardCluster(Cluster):
    """Processes of one system; each may be killed, and come back."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path, nodes: tuple[str, ...], shards: int, **im: Any) -> None:
        super().__init__(tasks, folder, shards=shards, first_nodes=nodes, **im)
        self.services: dict[str, MessageService] = {}
        self._lives = dict.fromkeys(nodes, 0)

    async def start(self, name: str) -> MessageService:
        self._lives[name] = life = self._lives.get(name, 0) + 1
        site = self.site(name, life)
        opened = opener(self._folder / name, site.clock)
        service = MessageService(self.config, site, open_shard=opened, statuses=self.statuses)
        self._run(name, service.node, service.run())
        self.services[name] = service
        await service.start()
        return service

    async def kill(self, name: str) -> None:
        """End a process without goodbye; its files are closed, as a process' are that ends."""
        service = self.services.pop(name)
        await self.stop(name)
        await service.stop()

    async def close(self) -> None:
        for name in list(self.services):
            await self.kill(name)
        await super().close()

    def shard_at(self, number: int) -> Shard:
        """The shard, wherever it is."""
        (found,) = [one for service in self.services.values() for at, one in service._here.items() if at == number]
        return found

    async def settled(self) -> None:
        """Return once all timelines have what is in the logs."""
        for service in self.services.values():
            for shard in service._here.values():
                while shard.store.has_work:  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.001)
                await shard._outbox.settle(at_most_ms=10_000)

    async def peer_of(self, name: str) -> PeerClient:
        """Connect a node that says whatever it is told to."""
        node = self.services[name].node
        client = PeerClient(node.http.url, peer=name, node=f"to-{name}", trust=Trust.of_key("peer-key"))
        self._running[f"to-{name}"] = node, [self._tasks.create_task(client.run())]
        return client

    async def ask(self, name: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask one process over HTTP; return the status and the document."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Authorization": "Bearer api-key"}
        url = self.services[name].node.http.url + path
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, url, data=data) as answer,
        ):
            return answer.status, await answer.json()

    def forwarded(self) -> int:
        """How many calls were passed on by all processes together."""
        return round(sum(one._metrics.forwarded._value.get() for one in self.services.values()))


@asynccontextmanager
async def sharded(
    folder: Path, *, nodes: tuple[str, ...] = NODES, shards: int = SHARDS, **im: Any
) -> AsyncIterator[ShardCluster]:
    async with asyncio.TaskGroup() as tasks:
        cluster = ShardCluster(tasks, folder, nodes, shards, **im)
        for name in nodes:
            await cluster.start(name)
        try:
            yield cluster
        finally:
            await cluster.close()
