"""Long poll, for clients behind proxies that hold a stream back until it ends.

    POST /connection/poll                              the body is the first frame; opens a session
    POST /connection/poll?node=N&session=S&turn=T      the body is further commands, or empty

Each is answered with `{"node", "session", "turn", "messages": [...]}` as soon as there is a message, or after
`WAIT_S` with none. `core/turns` has the rule by which nothing is lost with an answer. A request may come to any access
node, as in `emulation`, by which a client can also send while its poll waits.

A client that nothing was heard of for longer than a pong may take is gone. So is one that was closed as long ago.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from access.api import POLL_PATH
from access.core.outgoing import Form
from access.core.protocol import Close
from access.core.turns import Turn, Turns
from access.emulation import peer_of
from access.http import Admit, Gate, HttpConnection, HttpSessions
from access.websocket import TransportLimits
from base.clock import Clock, Instant
from base.errors import BadRequest, NotFound, Overloaded
from base.http import query_param
from base.peer import Method, PeerPool, PeerServer

__all__ = ["POLL", "Poll", "Polled", "Polls"]

WAIT_S = 25.0
PEER_WAITS_MAX = 256
"""Polls that may wait here for other nodes: they take places at the streams between the nodes."""
MARGIN_MS = 2_000
TURN_DIGITS_MAX = 18


class Poll(msgspec.Struct, array_like=True, frozen=True):
    """A request to a session of the called node."""

    session: str
    turn: int
    data: bytes


class Polled(msgspec.Struct, array_like=True, frozen=True):
    """Its answer, as it stands in the body."""

    answer: bytes


POLL = Method("access.poll", Poll, Polled)


class _Answer(msgspec.Struct, frozen=True):
    node: str
    session: str
    turn: int
    messages: list[msgspec.Raw]


_encode = msgspec.json.Encoder().encode


class _Polled(HttpConnection):
    """A client that polls."""

    __slots__ = ("_asked", "_asking", "_clock", "away_since", "turns")

    def __init__(self, clock: Clock, *, write_bytes_max: int) -> None:
        super().__init__(Form.STREAM_JSON, write_bytes_max=write_bytes_max)
        self.turns = Turns()
        self.away_since: Instant | None = clock.monotonic()
        """Since when no request waits; None while one does. Once it is closed, who asks for it is away all the same."""
        self._clock = clock
        self._asked = 0
        self._asking = 0

    def close(self, close: Close) -> None:
        """See `Connection`."""
        super().close(close)
        if self.away_since is None:
            self.away_since = self._clock.monotonic()

    async def answer(self, node: str) -> bytes:
        """Wait for the answer of the turn under way. Raises BadRequest if a later request asks for it, too."""
        self._asked += 1
        self._asking += 1
        if not self.is_closed:
            self.away_since = None
        number = self._asked
        self._news.set()  # whoever waits gives way
        try:
            async with asyncio.timeout(WAIT_S):
                while number == self._asked and not self.has_news and self.turns.answer is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self._asking -= 1
            if not self._asking and self.away_since is None:
                self.away_since = self._clock.monotonic()
        if number != self._asked:
            raise BadRequest("another request for this turn came later, and gets the answer")
        return self.turns.answer or self.turns.finish(self._next(node))

    def _next(self, node: str) -> bytes:
        messages = [msgspec.Raw(line) for line in self.take().split(b"\n") if line]
        return _encode(_Answer(node, self.session, self.turns.number, messages))


class Polls:
    """The clients of a node that poll."""

    def __init__(
        self,
        sessions: HttpSessions,
        gate: Gate,
        *,
        admit: Admit,
        node: str,
        peers: PeerPool,
        clock: Clock,
        limits: TransportLimits,
        away_ms: int,
    ) -> None:
        """Build it.

        Args:
            sessions: where the clients are entered.
            gate: what requests have to pass.
            admit: asked first, for a request that opens a session.
            node: this node's id.
            peers: the way to the other access nodes.
            clock: for how long a client is away.
            limits: of each connection.
            away_ms: how long a client may be away between two requests.
        """
        self._sessions = sessions
        self._gate = gate
        self._admit = admit
        self._node = node
        self._peers = peers
        self._clock = clock
        self._limits = limits
        self._away_ms = away_ms
        self._connections: dict[str, _Polled] = {}
        """By session. Who was told of its end stays until it is away, to be told again."""
        self._peer_waits = 0

    def __len__(self) -> int:
        return len(self._connections)

    def add_routes(self, app: web.Application) -> None:
        """Serve the path."""
        app.router.add_post(POLL_PATH, self._handle)
        self._gate.guard(app, POLL_PATH, "POST")

    def serve(self, peers: PeerServer) -> None:
        """Take what came to other nodes."""
        peers.serve(POLL, self._poll)

    def look(self) -> None:
        """End the sessions of clients that are away. To be called every second or so."""
        now = self._clock.monotonic()
        for connection in list(self._connections.values()):
            if connection.away_since is not None and now - connection.away_since > self._away_ms:
                del self._connections[connection.session]
                self._sessions.end(connection)

    def close(self) -> None:
        """End all sessions: the node stops."""
        for connection in self._connections.values():
            self._sessions.end(connection)
        self._connections.clear()

    async def _handle(self, request: web.Request) -> web.Response:
        is_first = "session" not in request.query
        if is_first:
            self._admit(request)
        self._gate.require_origin(request)
        if is_first:
            answer = await self._open(request)
        else:
            session, node = query_param(request, "session"), query_param(request, "node")
            turn = _turn(query_param(request, "turn"))
            if node == self._node:
                self._find(session, turn)  # nobody waits for the body of a request that is for none
            poll = Poll(session, turn, await self._gate.read(request, bytes_max=self._limits.frame_bytes_max))
            if node == self._node:
                answer = await self._next(poll)
            else:
                deadline_ms = int(WAIT_S * 1000) + MARGIN_MS
                answer = (await peer_of(self._peers, node).call(POLL, poll, deadline_ms=deadline_ms)).answer
        return web.Response(body=answer, content_type="application/json", headers={"Cache-Control": "no-store"})

    async def _open(self, request: web.Request) -> bytes:
        frame = await self._gate.read(request, bytes_max=self._limits.frame_bytes_max)
        if not frame:
            raise BadRequest("the connect command is missing")
        connection = _Polled(self._clock, write_bytes_max=self._limits.write_bytes_max)
        self._sessions.open(connection, request, frame)
        self._connections[connection.session] = connection
        return await self._answer(connection)

    async def _poll(self, poll: Poll, _peer: str) -> Polled:
        if self._peer_waits >= PEER_WAITS_MAX:
            raise Overloaded("too many polls came by way of other nodes", what="peer_polls", retry_after_ms=1_000)
        self._peer_waits += 1
        try:
            return Polled(await self._next(poll))
        finally:
            self._peer_waits -= 1

    async def _next(self, poll: Poll) -> bytes:
        connection = self._find(poll.session, poll.turn)
        match connection.turns.begin(poll.turn):
            case Turn.NEW:
                if poll.data:
                    self._sessions.received(poll.session, poll.data)
            case Turn.WRONG:
                last = connection.turns.number
                raise BadRequest(f"turn {poll.turn} cannot come now, the last one was {last}", turn=last)
            case Turn.REPEATED:
                pass
        return await self._answer(connection)

    def _find(self, session: str, turn: int) -> _Polled:
        """Return who asks for a turn. Raises NotFound if that is nobody, or nothing more comes."""
        connection = self._connections.get(session)
        if connection is None or (connection.is_over and turn != connection.turns.number):
            raise NotFound("there is no such session; connect again")
        return connection

    async def _answer(self, connection: _Polled) -> bytes:
        answer = await connection.answer(self._node)
        if connection.is_over:
            self._sessions.end(connection)
        return answer


def _turn(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or len(value) > TURN_DIGITS_MAX:
        raise BadRequest("the query parameter turn is not a number")
    return int(value)
