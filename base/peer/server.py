"""Accepts peer streams on a service's HTTP port, at `/peer`, from the cluster's nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, TypeVar

from aiohttp import web

from base.errors import Unauthenticated
from base.log import logger
from base.peer import upgrade
from base.peer.link import StreamLimits
from base.peer.stream import PeerStream, Serve
from base.peer.upgrade import PEER_PATH
from base.peer.wire import Method
from base.trust import Trust

__all__ = ["PEER_PATH", "PeerServer"]

NAME_CHARS = 64
"""How much is logged of the name of who was refused."""

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class PeerServer:
    """The serving end of a node. Declare methods with `serve`, then mount `handle` at PEER_PATH."""

    def __init__(self, *, trust: Trust, limits: StreamLimits | None = None) -> None:
        """`trust`: what nodes must show to be let in; a stream of one that does not is refused with 401."""
        self._trust = trust
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
        try:
            peer = upgrade.authenticate(request, self._trust)
        except Unauthenticated as error:
            named = "".join(filter(str.isprintable, request.headers.get(upgrade.NODE_HEADER, "")))[:NAME_CHARS]
            logger(peer=named, address=request.remote).warning("peer_stream_refused", error=str(error))
            raise
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
