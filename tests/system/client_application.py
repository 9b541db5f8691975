"""An application of the Python wrapper, which notes all that it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import centrifuge

from base.errors import RoadsteadError
from roadstead.client import Client, Incoming
from tests.system.conftest import eventually
from tests.system.fake_access import USER, World


class Application:
    """A client and all that it was told."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.inbox: list[Any] = []
        self.begun: list[Any] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.other: list[tuple[Any, bool]] = []
        self.ends: list[RoadsteadError] = []
        self.client = Client(
            options.pop("scheduler", world.scheduler),
            user=USER,
            credential="token",
            on_message=self._take,
            on_end=self.ends.append,
            **options,
        )

    async def _take(self, incoming: Incoming) -> None:
        self.begun.append(incoming.data)
        await self.may_go_on.wait()
        self.inbox.append(incoming.data)

    async def take_other(self, incoming: Incoming) -> None:
        self.other.append((incoming.data, incoming.is_start))

    async def has(self, *entries: Any) -> None:
        async def look() -> bool:
            return len(self.inbox) >= len(entries)

        await eventually(look)
        assert self.inbox == list(entries)

    async def is_on(self, name: str) -> None:
        async def look() -> bool:
            try:
                return bool(await self.client.call("where", {}) == name)
            except centrifuge.ClientDisconnectedError:
                return False  # asked over the connection that was just lost

        await eventually(look)

    async def breaks(self, code: int = 3001) -> None:
        """The node closes, and the client is back at some node."""
        before = len(self.world.connects)
        for node in self.world.nodes.values():
            await node.close_all(code)
        await becomes(lambda: len(self.world.connects) > before)


async def becomes(look: Callable[[], object]) -> None:
    async def wanted() -> bool:
        return bool(look())

    await eventually(wanted)
