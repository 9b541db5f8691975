"""A whole system in the test's own process, on free ports, and stock clients for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import centrifuge
import msgspec
import pytest

from roadstead.api import call_api
from roadstead.config import Config
from roadstead.deployment import DataFolder, Endpoints
from roadstead.up import run_up

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:")
SETTLE_S = 20.0


class System:
    """A running system: its endpoints, its keys, and short ways to ask it."""

    def __init__(self, endpoints: Endpoints, data: DataFolder) -> None:
        self.endpoints = endpoints
        self.data = data
        self.key = data.secrets().api_key

    @property
    def scheduler(self) -> str:
        return next(iter(self.endpoints.scheduler.values()))

    @property
    def im(self) -> str:
        return next(iter(self.endpoints.im.values()))

    async def access(self, user: str, **params: str) -> dict[str, Any]:
        answer = await call_api(
            "GET", f"{self.scheduler}/v1/access", credential=self.key, params={"user": user, **params}
        )
        assert isinstance(answer, dict)
        return answer

    async def status(self, user: str, *, node: int = 0) -> dict[str, Any]:
        url = sorted(self.endpoints.status.values())[node]
        answer = await call_api("GET", f"{url}/v1/users/{user}/status", credential=self.key)
        assert isinstance(answer, dict)
        return answer

    async def send(self, sender: str, to: str, client_msg_id: str, body: Any = "hi") -> dict[str, Any]:
        message = {"from": sender, "to": to, "client_msg_id": client_msg_id, "body": body}
        answer = await call_api("POST", f"{self.im}/v1/messages", credential=self.key, body=message)
        assert isinstance(answer, dict)
        return answer


class StockClient:
    """A `centrifuge-python` client as any application would use it; everything it saw is kept."""

    def __init__(
        self, address: str, ticket: str, get_token: Callable[[], Awaitable[str]] | None = None, *, data: Any = None
    ) -> None:
        self.server_publications: list[centrifuge.Publication] = []
        self.errors: list[centrifuge.ErrorContext] = []
        self.disconnected: asyncio.Future[centrifuge.DisconnectedContext] = asyncio.get_running_loop().create_future()
        self.reconnecting = asyncio.Event()
        self.subscribed: list[centrifuge.ServerSubscribedContext] = []
        self._arrived = asyncio.Condition()
        outer = self

        class Events(centrifuge.ClientEventHandler):
            async def on_publication(self, ctx: centrifuge.ServerPublicationContext) -> None:
                async with outer._arrived:
                    outer.server_publications.append(ctx.pub)
                    outer._arrived.notify_all()

            async def on_subscribed(self, ctx: centrifuge.ServerSubscribedContext) -> None:
                outer.subscribed.append(ctx)

            async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
                outer.errors.append(ctx)

            async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
                if ctx.code != 0:
                    outer.reconnecting.set()

            async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
                if not outer.disconnected.done():
                    outer.disconnected.set_result(ctx)

        self.sdk = centrifuge.Client(
            address,
            events=Events(),
            token=ticket,
            get_token=get_token,
            data=data,
            proxy=None,
            max_reconnect_delay=0.5,
        )

    async def send(self, to: str, client_msg_id: str, body: Any = "hi") -> dict[str, Any]:
        result = await self.sdk.rpc("im.send", {"to": to, "client_msg_id": client_msg_id, "body": body})
        assert isinstance(result.data, dict)
        return result.data

    async def wait_publications(self, count: int) -> list[centrifuge.Publication]:
        async with asyncio.timeout(SETTLE_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.server_publications) >= count)
        return self.server_publications


class Connect:
    """Connects stock clients and disconnects them at the end of the test."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.clients: list[StockClient] = []

    async def __call__(self, user: str, *, refreshes: bool = True, candidate: int = 0, **params: str) -> StockClient:
        answer = await self._system.access(user, **params)

        async def get_token() -> str:
            return str((await self._system.access(user, **params))["ticket"])

        url = answer["candidates"][candidate]["urls"]["websocket"]
        client = StockClient(url, answer["ticket"], get_token if refreshes else None)
        self.clients.append(client)
        await client.sdk.connect()
        await client.sdk.ready()
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.sdk.disconnect()


@asynccontextmanager
async def running(folder: Path, config: Config | None = None) -> AsyncIterator[System]:
    """Run a system from a data folder until the block ends."""
    base = config or Config()
    config = msgspec.structs.replace(base, up=msgspec.structs.replace(base.up, port=0))
    ready: asyncio.Future[Endpoints] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    data = DataFolder(folder)
    async with asyncio.TaskGroup() as tasks:
        up = tasks.create_task(run_up(config, data, on_ready=ready.set_result, stop=stop))
        done, _ = await asyncio.wait([up, ready], return_when=asyncio.FIRST_COMPLETED, timeout=SETTLE_S)
        assert ready in done, "the system did not start"
        try:
            yield System(ready.result(), data)
        finally:
            stop.set()
            await up


def said(out: str) -> str:
    """Return what a command said, without what the system, which runs in the same process, logged meanwhile."""
    return "".join(line for line in out.splitlines(keepends=True) if not LOG_LINE.match(line))


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Return once `look` is true; fail after SETTLE_S. For facts that arrive by themselves, soon."""
    async with asyncio.timeout(SETTLE_S):
        while not await look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def connect(system: System) -> AsyncIterator[Connect]:
    connector = Connect(system)
    yield connector
    await connector.close()
