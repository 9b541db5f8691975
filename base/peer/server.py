"""Accepts peer streams on a service's HTTP port, at `/peer`, from whoever knows the cluster's peer key."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, TypeVar

from aiohttp import web

from base.peer import upgrade
from base.peer.link import StreamLimits
from base.peer.stream import PeerStream, Serve
from base.peer.upgrade import PEER_PATH
from base.peer.wire import Method

__all__ = ["PEER_PATH", "PeerServer"]

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class PeerServer:
    """The serving end of a node. Declare methods with `serve`, then mount `handle` at PEER_PATH."""

    def __init__(self, *, peer_key: str, limits: StreamLimits | None = None) -> None:
        """`peer_key`: the cluster's shared secret; a stream without it is refused with 401."""
        self._peer_key = peer_key
        self._limits = limits or StreamLimits()
        self._handlers: dict[str, tuple[Method[Any, Any], Serve]] = {}
        self._streams: dict[str, list[PeerStream]] = {}  # by node, the newest last

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Answer calls of the method with `handler(request, peer)`, a plain or async function returning the reply."""
        assert method.name not in self._handlers
        self._handlers[method.name] = (method, handler)

    def stream_of(self, node: str) -> PeerStream | None:
        """Return the newest live stream from a node, to call or push to it; None when it has none."""
        return next((stream for stream in reversed(self._streams.get(node, [])) if not stream.is_closed), None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The aiohttp handler: authenticate, upgrade, let the stream live until it ends."""
        peer = upgrade.authenticate(request, self._peer_key)
        if not upgrade.is_wanted(request):
            return upgrade.refusal()
        response, transport = await upgrade.switch(request)
        stream = PeerStream(
            transport,
            peer=peer,
            handlers=self._handlers,
            limits=self._limits,
            on_lost=request.protocol.connection_lost,
        )
        self._streams.setdefault(peer, []).append(stream)
        try:
            await stream.wait_ended()
        finally:
            self._streams[peer].remove(stream)
            if not self._streams[peer]:
                del self._streams[peer]
            await stream.close()
        return response

    async def close(self) -> None:
        """End every stream; their clients reconnect elsewhere or wait."""
        async with asyncio.TaskGroup() as tasks:
            for streams in self._streams.values():
                for stream in streams:
                    tasks.create_task(stream.close())

    def statistics(self) -> dict[str, object]:
        """Return a snapshot of the streams by peer; a peer's streams are added up."""
        found: dict[str, object] = {}
        for peer, streams in self._streams.items():
            total: Counter[str] = Counter()
            for stream in streams:
                total.update(stream.statistics())
            found[peer] = dict(total)
        return found
