"""The transports of clients that cannot have a WebSocket, on the HTTP server that clients reach.

Three ways to receive (`streaming` has two, `polling` one), one way back (`emulation`), one table of sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from access.emulation import Emulation
from access.http import Admit, Gate, HttpSessions
from access.polling import Polls
from access.ports import Gateway
from access.streaming import Streams
from access.websocket import TransportLimits
from base.clock import Clock
from base.peer import PeerPool, PeerServer

__all__ = ["HttpTransports"]

LOOK_INTERVAL_S = 1.0


class HttpTransports:
    """See the module. `run` is needed to notice who is gone."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        node: str,
        peers: PeerPool,
        clock: Clock,
        admit: Admit,
        address_of: Callable[[web.Request], str],
        check_room: Callable[[str], None],
        allows: Callable[[str], bool],
        limits: TransportLimits,
        away_ms: int,
    ) -> None:
        """Build it.

        Args:
            gateway: where clients and what they send go.
            node: this node's id, which clients name when they send.
            peers: the other access nodes, for what was sent to this one instead; run by the caller.
            clock: for how long a client is away.
            admit: asked before anything else is done for a new client.
            address_of: from where a request comes.
            check_room: asked once more when its request was read, by its address.
            allows: whether pages of an origin may connect.
            limits: of each connection.
            away_ms: how long a client that polls may be away between two requests.
        """
        sessions = HttpSessions(gateway, address_of, check_room)
        self._gate = gate = Gate(allows, address_of)
        self._streams = Streams(sessions, gate, admit=admit, limits=limits)
        self._polls = Polls(
            sessions, gate, admit=admit, node=node, peers=peers, clock=clock, limits=limits, away_ms=away_ms
        )
        self._emulation = Emulation(sessions, gate, node=node, peers=peers, frame_bytes_max=limits.frame_bytes_max)

    def add_routes(self, app: web.Application) -> None:
        """Serve clients. Errors are for the application's middleware, see `base.http`."""
        self._streams.add_routes(app)
        self._polls.add_routes(app)
        self._emulation.add_routes(app)

    def serve(self, peers: PeerServer) -> None:
        """Serve other access nodes, to which clients of this one sent something."""
        self._polls.serve(peers)
        self._emulation.serve(peers)

    async def run(self) -> None:
        """Look every second who is gone, until cancelled; then everybody is."""
        try:
            while True:
                await asyncio.sleep(LOOK_INTERVAL_S)
                self._streams.look()
                self._polls.look()
        finally:
            # Nobody would notice any more who hangs up from here on.
            self._streams.close()
            self._polls.close()

    def statistics(self) -> dict[str, int]:
        """Return how many clients there are, by how they receive."""
        return {"streams": len(self._streams), "polls": len(self._polls)}
