"""The way back of clients that receive on a stream: `POST /emulation`, at any access node.

The request names the node and the session of the client, which its connect reply told it, and has a frame of commands.
If it comes to another node it is handed over by a peer call. So no load balancer has to know which client is where.

404 means that the session is over: the client has to connect again. Whatever else fails, the outcome is unknown.

Source: Centrifugal Labs, "Bidirectional emulation".
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from access.api import EMULATION_PATH
from access.core.encoding import BadFrame
from access.http import Gate, HttpSessions, encoding_of
from base.errors import BadRequest, NotFound, PeerUnavailable, TooLarge
from base.peer import Method, PeerClient, PeerPool, PeerServer

__all__ = ["EMULATE", "Emulate", "Emulated", "Emulation", "peer_of"]

DEADLINE_MS = 2_000
ENVELOPE_BYTES_MAX = 1_024


class Emulate(msgspec.Struct, array_like=True, frozen=True):
    """A frame for a session of the called node, in the session's encoding."""

    session: str
    data: bytes


class Emulated(msgspec.Struct, array_like=True, frozen=True):
    """It was passed on. The failure is NotFound."""


EMULATE = Method("access.emulate", Emulate, Emulated)


def peer_of(peers: PeerPool, node: str) -> PeerClient:
    """Return the way to another access node. Raises NotFound if there is none of that name: nor are its sessions."""
    try:
        return peers.get(node)
    except PeerUnavailable as error:
        raise NotFound("the node of this session is gone; connect again") from error


class Emulation:
    """See the module."""

    def __init__(self, sessions: HttpSessions, gate: Gate, *, node: str, peers: PeerPool, frame_bytes_max: int) -> None:
        """Build it.

        Args:
            sessions: the clients of this node.
            gate: what requests have to pass.
            node: this node's id.
            peers: the way to the other access nodes.
            frame_bytes_max: longest frame that a client may send.
        """
        self._sessions = sessions
        self._gate = gate
        self._node = node
        self._peers = peers
        self._frame_bytes_max = frame_bytes_max

    def add_routes(self, app: web.Application) -> None:
        """Serve the path."""
        app.router.add_post(EMULATION_PATH, self._handle)
        self._gate.guard(app, EMULATION_PATH, "POST")

    def serve(self, peers: PeerServer) -> None:
        """Take what came to other nodes."""
        peers.serve(EMULATE, self._emulate)

    async def _handle(self, request: web.Request) -> web.Response:
        self._gate.require_origin(request)
        # A frame in JSON becomes longer inside of a string; that its quotes double it is more than enough.
        body = await self._gate.read(request, bytes_max=2 * self._frame_bytes_max + ENVELOPE_BYTES_MAX)
        try:
            emulation = encoding_of(request).decode_emulation(body)
        except BadFrame as error:
            raise BadRequest(f"this is no emulation request: {error}") from error
        limit = self._frame_bytes_max
        if len(emulation.data) > limit:
            raise TooLarge(f"a frame of {len(emulation.data)} bytes, over the limit of {limit}", limit=limit)
        if emulation.node == self._node:
            self._sessions.received(emulation.session, emulation.data)
        else:
            message = Emulate(emulation.session, emulation.data)
            await peer_of(self._peers, emulation.node).call(EMULATE, message, deadline_ms=DEADLINE_MS)
        return web.Response(status=204)

    def _emulate(self, emulate: Emulate, _peer: str) -> Emulated:
        self._sessions.received(emulate.session, emulate.data)
        return Emulated()
