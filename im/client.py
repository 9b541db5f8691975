"""How access nodes use the message services."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from base.errors import PeerUnavailable
from base.peer import PeerClient, PeerPool
from base.site import Site
from im.api import HEADS, HEADS_USERS_MAX, RPC, SERVICE, TIMELINE, Heads, Rpc, Timeline, TimelinePage

__all__ = ["ImClient"]

DEADLINE_MS = 5_000


class ImClient:
    """Calls to the message services. `run` keeps the stream."""

    def __init__(self, site: Site) -> None:
        self._pool = PeerPool(site, SERVICE)

    async def run(self) -> None:
        """Keep the stream until cancelled."""
        await self._pool.run()

    async def wait_ready(self) -> None:
        """Return once the registry was read."""
        await self._pool.wait_ready()

    async def rpc(self, user: str, device: str, method: str, data: bytes) -> bytes:
        """Carry out a client's call and return its JSON result. Calls leave in the order they are made."""
        reply = await self._stream().call(RPC, Rpc(user, device, method, data), deadline_ms=DEADLINE_MS)
        return reply.data

    async def timeline(self, user: str, *, since: int, limit: int, bytes_max: int) -> TimelinePage:
        """Read a user's timeline after `since`."""
        request = Timeline(user, since, limit, bytes_max)
        return await self._stream().call(TIMELINE, request, deadline_ms=DEADLINE_MS)

    async def heads(self, users: Sequence[str]) -> dict[str, int]:
        """Return the newest timeline offset of each user."""
        heads: dict[str, int] = {}
        for start in range(0, len(users), HEADS_USERS_MAX):
            batch = list(users[start : start + HEADS_USERS_MAX])
            reply = await self._stream().call(HEADS, Heads(batch), deadline_ms=DEADLINE_MS)
            heads.update(zip(batch, reply.heads, strict=True))
            await asyncio.sleep(0)  # a long audit gives way to messages between its pages
        return heads

    def _stream(self) -> PeerClient:
        nodes = self._pool.nodes()
        if not nodes:
            raise PeerUnavailable("no message service is registered", retry_after_ms=500)
        return self._pool.get(nodes[0])
