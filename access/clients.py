"""The clients of one access node: their sessions' effects, carried out.

A client's way in, each step before the next, because each closes a gap:
    1. the ticket is verified offline and marked as used
    2. the session joins the inbox hub, loading: entries that come by from here on are noticed
    3. the status backend confirms the session: from here on the message services find it
    4. the timeline is read: it has everything that was stored before anybody could find the session
    5. the connect reply carries what was missed; later entries follow in order

What a command opens (a session, a subscription) is closed by `gone`, when the socket is gone: so nothing is opened
after that. A command's task may begin or go on later than that; it asks the session whether its client still waits,
with nothing to wait for between the question and the opening.
"""

from __future__ import annotations

import asyncio
from typing import assert_never

import msgspec

from access.config import AccessConfig
from access.core import session as core
from access.core.protocol import (
    ClientError,
    Close,
    ConnectRequest,
    ConnectResult,
    Position,
    ReplyError,
    RpcRequest,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    error_of,
)
from access.core.replay import ReplayCache, Use
from access.core.session import Session, SessionPolicy
from access.inboxes import CHANNEL_PREFIX, Inboxes
from access.metrics import AccessMetrics
from access.presence import CHANNEL_PREFIX as PRESENCE_PREFIX
from access.presence import METHOD_PREFIX, Presences
from access.websocket import Connection
from base.core.wheel import TimerWheel
from base.errors import NotReady, Overloaded, RoadsteadError, TokenExpired, Unauthenticated
from base.ids import new_uuid
from base.log import logger
from base.site import Site
from im.client import ImClient
from scheduler.api import Ticket
from scheduler.client import LEEWAY_S, TicketVerifier
from status.api import Closed, Evict, Opened
from status.client import SessionReports, StatusLookups, StatusWatches

__all__ = ["Clients"]

VERSION = "roadstead 0.1"
WHEEL_TICK_MS = 100
REJECT_UNRECOVERED = 2


class _Client:
    """A connection, its session, and who the ticket says it is."""

    __slots__ = ("connection", "opened", "session", "ticket_id")

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.opened: Opened | None = None
        self.ticket_id: str | None = None


class Clients:
    """All clients of a node. Implements `Sink` for the channels."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        verifier: TicketVerifier,
        reports: SessionReports,
        statuses: StatusLookups,
        watches: StatusWatches | None,
        im: ImClient,
        metrics: AccessMetrics,
    ) -> None:
        self.inboxes = Inboxes(config, im, metrics, self, node=site.name)
        self.presences = Presences(config, site.clock, metrics, self, statuses=statuses, watches=watches)
        self._config = config
        self._policy = SessionPolicy(
            config.connect_deadline_ms, config.ping_interval_ms, config.pong_deadline_ms, config.inflight_max
        )
        self._node = site.name
        self._clock = site.clock
        self._verifier = verifier
        self._reports = reports
        self._im = im
        self._metrics = metrics
        self._clients: dict[str, _Client] = {}
        self._by_connection: dict[Connection, _Client] = {}
        self._replay = ReplayCache()
        self._wheel: TimerWheel[str] = TimerWheel(site.clock.monotonic(), tick_ms=WHEEL_TICK_MS)
        self._conn_seq = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._log = logger(node=site.name)

    def __len__(self) -> int:
        return len(self._clients)

    async def run(self) -> None:
        """Carry out what sessions start, and their timers, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self.inboxes.run())
            while True:
                await asyncio.sleep(WHEEL_TICK_MS / 1000)
                now = self._clock.monotonic()
                for session_id in self._wheel.advance(now):
                    client = self._clients.get(session_id)
                    if client is not None:
                        self._carry_out(client, client.session.tick(now))

    # ---------------------------------------------------------------- the transport's side

    def arrived(self, connection: Connection) -> None:
        """A socket was accepted."""
        session = Session(new_uuid(), self._clock.monotonic(), self._policy)
        client = _Client(connection, session)
        self._clients[session.id] = client
        self._by_connection[connection] = client
        self._arm(session)

    def received(self, connection: Connection, frame: str | bytes) -> None:
        """A frame came in."""
        client = self._by_connection[connection]
        self._carry_out(client, client.session.receive(self._clock.monotonic(), frame))

    def gone(self, connection: Connection) -> None:
        """The socket is gone, whoever closed it."""
        client = self._by_connection.pop(connection)
        session = client.session
        session.gone()
        del self._clients[session.id]
        self._wheel.cancel(session.id)
        self.inboxes.hub.detach(session.id)
        self.presences.gone(session.id)
        if client.opened is not None:
            opened = client.opened
            self._reports.close(Closed(opened.user, opened.session, opened.conn_seq))

    # ---------------------------------------------------------------- the channels' side (Sink)

    def write(self, session: str, frame: bytes, *, replaces: int | None = None) -> None:
        """See `Sink`."""
        client = self._clients.get(session)
        if client is not None and not client.session.is_closed():
            self._write(client, frame, replaces)

    def close_all(self, close: Close) -> None:
        """See `Sink`."""
        for client in tuple(self._clients.values()):
            self._carry_out(client, client.session.close(close))

    def evict(self, evict: Evict) -> None:
        """Close a session that has to go by the device policy, if it is still here."""
        client = self._clients.get(evict.session)
        if client is not None and client.opened is not None and client.opened.user == evict.user:
            self._log.info("session_evicted", session=evict.session, reason=evict.reason)
            self._carry_out(client, client.session.close(Close.EVICTED))

    # ---------------------------------------------------------------- effects

    def _carry_out(self, client: _Client, effects: list[core.Effect]) -> None:
        assert self._tasks is not None, "the node runs before it listens"
        for effect in effects:
            match effect:
                case core.Write(data):
                    self._write(client, data)
                case core.Disconnect(close):
                    self._metrics.closes.labels(self._node, str(close.code)).inc()
                    client.connection.close(close)
                case core.Authenticate(command_id, connect):
                    self._tasks.create_task(self._authenticate(client, command_id, connect))
                case core.StartRpc(command_id, rpc):
                    self._tasks.create_task(self._rpc(client, command_id, rpc))
                case core.StartSubscribe(command_id, subscribe):
                    self._tasks.create_task(self._subscribe(client, command_id, subscribe))
                case core.StartUnsubscribe(command_id, unsubscribe):
                    # The inbox stays subscribed by the server; the SDK just stops listening to it by itself.
                    if unsubscribe.channel.startswith(PRESENCE_PREFIX):
                        self.presences.unsubscribe(client.session.id, unsubscribe.channel)
                    self._carry_out(client, client.session.finish(command_id, "unsubscribe", None))
                case _:
                    assert_never(effect)
        self._arm(client.session)

    def _write(self, client: _Client, frame: bytes, replaces: int | None = None) -> None:
        if not client.connection.write(frame, replaces):
            self._carry_out(client, client.session.close(Close.SLOW))

    def _arm(self, session: Session) -> None:
        deadline = session.next_deadline()
        if deadline is not None:
            self._wheel.set(session.id, deadline)

    # ---------------------------------------------------------------- commands

    async def _authenticate(self, client: _Client, command_id: int, request: ConnectRequest) -> None:
        started = self._clock.stopwatch()
        session = client.session
        try:
            result = await self._connect(client, command_id, request)
        except Unauthenticated as error:
            self._refused("unauthenticated", error)
            self._carry_out(client, session.close(Close.INVALID_TOKEN))
        except RoadsteadError as error:
            self._refused(error.code.label, error)
            self._leave(client)
            self._carry_out(client, session.refused(command_id, error_of(error)))
        except Exception:  # noqa: BLE001 - our own bug costs this client its connect, not the node its clients
            self._log.exception("connect_failed", session=session.id)
            self._leave(client)
            self._carry_out(client, session.refused(command_id, ClientError.INTERNAL.wire))
        else:
            if result is None:
                self._metrics.connects.labels(self._node, "gone").inc()
                return
            self._metrics.connects.labels(self._node, "accepted").inc()
            self._metrics.handshake.observe(self._clock.stopwatch() - started)
            self._carry_out(client, session.accepted(self._clock.monotonic(), command_id, result))
            for start in result.subs.values():
                self.inboxes.started(session.id, start.offset)

    async def _connect(self, client: _Client, command_id: int, request: ConnectRequest) -> ConnectResult | None:
        """Steps 1 to 4 of a client's way in, see the module. None if the client went: what was opened, `gone` ends."""
        session = client.session
        if not session.is_waiting(command_id):
            return None
        ticket = self._admit(request.token)
        client.ticket_id = ticket.jti
        self._conn_seq += 1
        opened = Opened(
            user=ticket.sub,
            session=session.id,
            conn_seq=self._conn_seq,
            device=ticket.device,
            platform=ticket.platform,
            state="online",
            since=self._clock.realtime(),
        )
        client.opened = opened = self.presences.connecting(opened, bytes(request.data))
        self.inboxes.hub.attach(session.id, ticket.sub)
        is_confirmed = await self._reports.open(opened, deadline_ms=self._config.publish_deadline_ms)
        if not session.is_waiting(command_id):
            return None
        if not is_confirmed:
            self._metrics.unpublished.inc()
        channel = CHANNEL_PREFIX + ticket.sub
        start = await self.inboxes.read_start(ticket.sub, request.subs.get(channel, Position()))
        return ConnectResult(
            client=session.id,
            version=VERSION,
            ping=self._config.ping_interval_ms // 1000,
            pong=True,
            session=session.id,
            node=self._node,
            subs={channel: start},
        )

    def _admit(self, token: str) -> Ticket:
        now = self._clock.realtime()
        ticket = self._verifier.verify(token, now)
        match self._replay.use(ticket.jti, expires_at=ticket.exp + LEEWAY_S, now=now // 1000):
            case Use.FIRST:
                return ticket
            case Use.REPEATED:
                raise TokenExpired("the ticket was used before; ask the scheduler for another")
            case Use.FULL:
                raise Overloaded("too many tickets are remembered", what="replay_cache", retry_after_ms=1_000)

    def _leave(self, client: _Client) -> None:
        """Undo a connect that failed half-way, so that the client can try again on this connection."""
        ticket_id, client.ticket_id = client.ticket_id, None
        if ticket_id is not None:
            self._replay.forget(ticket_id)
        opened, client.opened = client.opened, None
        if opened is not None:
            self.inboxes.hub.detach(opened.session)
            self._reports.close(Closed(opened.user, opened.session, opened.conn_seq))

    async def _rpc(self, client: _Client, command_id: int, request: RpcRequest) -> None:
        started = self._clock.stopwatch()
        opened = client.opened
        assert opened is not None
        result: RpcResult | ReplyError
        try:
            if request.method == METHOD_PREFIX + "set":
                data = await self._set_presence(client, command_id, bytes(request.data))
            elif request.method == METHOD_PREFIX + "get":
                data = await self.presences.get(opened.user, bytes(request.data))
            else:
                data = await self._im.rpc(opened.user, opened.device, request.method, bytes(request.data))
            result = RpcResult(msgspec.Raw(data))
        except RoadsteadError as error:
            result = error_of(error)
        except Exception:  # noqa: BLE001 - see _authenticate
            self._log.exception("rpc_failed", method=request.method)
            result = ClientError.INTERNAL.wire
        self._metrics.rpcs.observe(self._clock.stopwatch() - started)
        self._carry_out(client, client.session.finish(command_id, "rpc", result))

    async def _set_presence(self, client: _Client, command_id: int, data: bytes) -> bytes:
        """Change what others see of the session; the answer comes when they do."""
        assert client.opened is not None
        opened = self.presences.changed(client.opened, data)
        if not client.session.is_waiting(command_id):
            raise NotReady("the connection is closed")  # and nothing of it may be reported any more
        client.opened = opened
        if not await self._reports.open(opened, deadline_ms=self._config.publish_deadline_ms):
            raise NotReady("not confirmed in time; it will be, or set it again")
        return b"{}"

    async def _subscribe(self, client: _Client, command_id: int, request: SubscribeRequest) -> None:
        """Subscribe from the client: to somebody's presence, or to its own inbox, with a position that it kept.

        The inbox is subscribed by the server already; this hands it over to the client's own subscription.
        """
        opened = client.opened
        assert opened is not None
        if not client.session.is_waiting(command_id):
            return
        result: SubscribeResult | ReplyError
        is_presence = request.channel.startswith(PRESENCE_PREFIX)
        if request.channel != CHANNEL_PREFIX + opened.user and not is_presence:
            is_inbox = request.channel.startswith(CHANNEL_PREFIX)
            result = (ClientError.PERMISSION_DENIED if is_inbox else ClientError.UNKNOWN_CHANNEL).wire
        else:
            try:
                if is_presence:
                    result = await self.presences.subscribe(client.session.id, opened.user, request)
                else:
                    position = Position(request.recover, request.epoch, request.offset)
                    result = await self.inboxes.read_start(opened.user, position)
            except RoadsteadError as error:
                if is_presence:
                    self._metrics.presence_refused.labels(self._node, error.code.label).inc()
                result = error_of(error)
            except Exception:  # noqa: BLE001 - see _authenticate
                self._log.exception("subscribe_failed", session=client.session.id)
                result = ClientError.INTERNAL.wire
        if isinstance(result, SubscribeResult):
            if result.was_recovering and not result.recovered and request.flag & REJECT_UNRECOVERED:
                result = ClientError.UNRECOVERABLE_POSITION.wire
            else:
                self._carry_out(client, client.session.finish(command_id, "subscribe", result))
                if not is_presence:
                    self.inboxes.started(client.session.id, result.offset)
                return
        self._carry_out(client, client.session.finish(command_id, "subscribe", result))

    def _refused(self, outcome: str, error: RoadsteadError) -> None:
        self._metrics.connects.labels(self._node, outcome).inc()
        self._log.info("connect_refused", outcome=outcome, error=str(error))
