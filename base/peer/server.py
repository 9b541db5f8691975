"""Accepts peer streams on a service's HTTP port, at `/peer`, from whoever knows the cluster's peer key."""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

from aiohttp import web

from base.errors import RemoteProtocolError, Unauthenticated
from base.log import logger
from base.peer.stream import PeerStream, Serve, StreamLimits
from base.peer.wire import FRAME_BYTES_MAX, SUBPROTOCOL, Method

__all__ = ["NODE_HEADER", "PEER_PATH", "PeerServer"]

NODE_HEADER = "X-Roadstead-Node"
PEER_PATH = "/peer"
HEARTBEAT_S = 5.0

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class PeerServer:
    """The serving end of a node. Declare methods with `serve`, then mount `handle` at PEER_PATH."""

    def __init__(self, *, peer_key: str, limits: StreamLimits | None = None) -> None:
        """`peer_key`: the cluster's shared secret; a stream without it is refused with 401."""
        self._peer_key = peer_key
        self._limits = limits or StreamLimits()
        self._handlers: dict[str, tuple[Method[Any, Any], Serve]] = {}
        self._streams: set[PeerStream] = set()

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Answer calls of the method with `handler(request, peer)`, a plain or async function returning the reply."""
        assert method.name not in self._handlers
        self._handlers[method.name] = (method, handler)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """The aiohttp handler: authenticate, upgrade, run the stream until it ends."""
        offered = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(offered.encode(errors="surrogateescape"), self._peer_key.encode()):
            raise Unauthenticated("a peer stream needs the cluster's peer key")
        socket = web.WebSocketResponse(
            protocols=[SUBPROTOCOL], heartbeat=HEARTBEAT_S, max_msg_size=FRAME_BYTES_MAX, compress=False
        )
        await socket.prepare(request)
        peer = request.headers.get(NODE_HEADER, "unnamed")
        stream = PeerStream(socket, peer=peer, handlers=self._handlers, limits=self._limits)
        self._streams.add(stream)
        try:
            await stream.run()
        except RemoteProtocolError as error:
            logger(peer=peer).warning("peer_stream_refused", error=str(error))
        finally:
            self._streams.discard(stream)
            await stream.close()
        return socket

    async def close(self) -> None:
        """End every stream; their clients reconnect elsewhere or wait."""
        for stream in tuple(self._streams):
            await stream.close()

    def statistics(self) -> dict[str, object]:
        """Return a snapshot of the streams by peer."""
        return {stream.peer: stream.statistics() for stream in self._streams}
