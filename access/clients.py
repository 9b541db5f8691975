"""The clients of one access node: their sessions' effects, carried out, and their timers. Implements `Gateway`.

How a client is let in is `connecting`, what its commands do is `commands`. What a command opens (a session at the
status backend, a subscription) is closed by `gone`, when the transport is gone: so nothing is opened after that. A
command's task may begin or go on later than that; it asks the session whether its client still waits, with nothing to
wait for between the question and the opening.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, assert_never

from access.admission import Admission
from access.brokers import Brokers
from access.client import Client
from access.commands import Commands
from access.config import AccessConfig
from access.connecting import WayIn
from access.core import session as core
from access.core.encoding import BadFrame
from access.core.outgoing import ENCODINGS, PINGS, wrap
from access.core.pings import PingRounds
from access.core.protocol import Close, ConnectRequest, ReplyError, Result
from access.core.session import Session, SessionPolicy
from access.leaving import Leaving
from access.metrics import AccessMetrics
from access.ports import ABNORMAL, Connection
from access.websocket import write_soon
from base.clock import Instant
from base.core.wheel import TimerWheel
from base.ids import new_uuid
from base.log import logger
from base.site import Site
from status.api import Closed, Evict
from status.client import SessionReports

__all__ = ["Clients"]

TICK_MS = 500
"""Fewer and larger rounds of pings cost less: an idle loop that wakes up costs more than a ping."""
_PONGS = tuple(ENCODINGS[form].ping for form in range(len(ENCODINGS)))


_TOLD_CODES = frozenset({close.code for close in Close} | {1000, 1001, 1002, 1005, ABNORMAL, 1007, 1009})
"""Close codes that the metrics tell apart: a client may choose any other."""


class Clients:
    """All clients of a node."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        admission: Admission,
        way_in: WayIn,
        commands: Commands,
        brokers: Brokers,
        reports: SessionReports,
        metrics: AccessMetrics,
    ) -> None:
        self._config = config
        self._admission = admission
        self._way_in = way_in
        self._commands = commands
        self._brokers = brokers
        self._reports = reports
        self._clock = site.clock
        self._metrics = metrics
        self._policy = SessionPolicy(config.inflight_max)
        now = site.clock.monotonic()
        self._rounds: PingRounds[Client] = PingRounds(
            now, interval_ms=config.ping_interval_ms, deadline_ms=config.pong_deadline_ms, tick_ms=TICK_MS
        )
        self._wheel: TimerWheel[Client] = TimerWheel(now, tick_ms=TICK_MS)
        """Who has to connect, or to renew its credentials, by when."""
        self.leaving = Leaving(reports, site.clock, linger_ms=config.linger_ms)
        """Sessions of clients that were sent on."""
        metrics.show_leaving(lambda: len(self.leaving))
        self._crowd: set[Client] = set()
        """Who does not keep up: nobody else has to be looked at for what waits."""
        self.abnormal = 0
        """Connections that ended without a close code, since the start."""
        self.closed = 0
        """Connections that ended after they were let in, since the start."""
        self._gone: list[Callable[[Client], None]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._log = logger(node=site.name)

    def __len__(self) -> int:
        return self._admission.open

    def __iter__(self) -> Iterator[Client]:
        """Iterate over a snapshot of the clients."""
        return iter(self._rounds.members())

    async def run(self) -> None:
        """Carry out what sessions start, and their timers, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await asyncio.sleep(TICK_MS / 1000)
                self._tick(self._clock.monotonic())

    # ---------------------------------------------------------------- Gateway

    def arrived(self, connection: Connection, address: str) -> str:
        """See `Gateway`."""
        client = Client(new_uuid(), connection, Session(self._policy), address=address)
        connection.client = client
        client.place = self._rounds.join(client)
        self._wheel.set(client, Instant(self._clock.monotonic() + self._config.connect_deadline_ms))
        self._admission.enter(address)
        return client.id

    def received(self, connection: Connection, frame: bytes) -> None:
        """See `Gateway`."""
        client = connection.client
        assert isinstance(client, Client)
        # What nearly all frames of nearly all clients are: the answer to a ping.
        if frame == _PONGS[connection.form]:
            effects = client.session.pong()
        else:
            try:
                effects = client.session.receive(ENCODINGS[connection.form].decode_frame(frame))
            except BadFrame:
                effects = client.session.malformed()
        if effects:
            self._carry_out(client, effects)

    def crowded(self, connection: Connection) -> None:
        """See `Gateway`."""
        client = connection.client
        if isinstance(client, Client):
            self._crowd.add(client)

    def relieved(self, connection: Connection) -> None:
        """See `Gateway`."""
        client = connection.client
        if isinstance(client, Client):
            self._crowd.discard(client)

    def gone(self, connection: Connection) -> None:
        """See `Gateway`."""
        client, connection.client = connection.client, None
        assert isinstance(client, Client)
        self._crowd.discard(client)
        self._admission.leave(client.address)
        self._metrics.closes.inc(str(connection.code) if connection.code in _TOLD_CODES else "other")
        if connection.code == ABNORMAL:
            self.abnormal += 1
        if client.is_let_in:
            self.closed += 1
        client.session.gone()
        self._rounds.leave(client, client.place)
        self._wheel.cancel(client)
        opened = client.opened
        if opened is not None:  # first of what others do: nobody may be shown online for ever
            closed = Closed(opened.user, opened.session, opened.conn_seq)
            if client.is_sent_on:
                self.leaving.add(closed)
            else:
                self._reports.close(closed)
        for listener in self._gone:
            listener(client)
        self._way_in.gone(client)
        self._brokers.gone(client)

    # ---------------------------------------------------------------- the node's side

    def on_gone(self, listener: Callable[[Client], None]) -> None:
        """Call the listener, too, for each client that is gone."""
        self._gone.append(listener)

    def app_of(self, client: Client) -> str:
        """Return the version of the client's application, "" if it did not say."""
        return self._way_in.apps.get(client, "")

    def page(self, after: int | None, limit: int, *, newest_first: bool) -> list[Client]:
        """Return up to `limit` clients in the order in which they came, those after a number; None: the first."""
        return self._way_in.arrivals.page(after, limit, newest_first=newest_first)

    def numbered(self, number: int) -> Client | None:
        """Return the client whose connection has that number, if it is here."""
        return self._way_in.arrivals.get(number)

    def of_user(self, user: str) -> list[Client]:
        """Return the user's clients here, those on their way in too."""
        return self._brokers.inboxes.hub.clients_of(user)

    def queued(self) -> dict[Client, int]:
        """Return how many bytes wait for each client that does not keep up."""
        return {client: client.connection.queued() for client in self._crowd}

    def close(self, client: Client, close: Close) -> None:
        """End a client's session from this side."""
        self._carry_out(client, client.session.close(close))

    def send_on(self, client: Client) -> None:
        """Close a client that is expected at another node then."""
        client.is_sent_on = True
        self.close(client, Close.SHUTDOWN)

    def close_all(self, close: Close) -> None:
        """End every session."""
        for client in self:
            self.close(client, close)

    def evict(self, evict: Evict) -> None:
        """Close a session that has to go by the device policy, if it is still here."""
        for client in self.of_user(evict.user):
            if client.id == evict.session:
                self._log.info("session_evicted", session=evict.session, reason=evict.reason)
                self.close(client, Close.EVICTED)

    # ---------------------------------------------------------------- time

    def _tick(self, now: Instant) -> None:
        self.leaving.tick(now)
        ping, look = self._rounds.advance(now)
        for client in look:
            self._carry_out(client, client.session.looked_at())
        for client in ping:
            has_answered = client.session.has_answered
            if client.session.pinged():
                if client.reader is not None:
                    client.reader.pinged(has_answered=has_answered)
                client.connection.write(PINGS[client.connection.form])
        for client in self._wheel.advance(now):
            if client.expires_at:
                self._look_at_expiry(client, now)
            else:
                self._carry_out(client, client.session.stale())

    def _look_at_expiry(self, client: Client, now: Instant) -> None:
        left_ms = client.expires_at * 1000 + self._config.expired_deadline_ms - self._clock.realtime()
        if left_ms > 0:
            self._wheel.set(client, Instant(now + left_ms))
        else:
            self._carry_out(client, client.session.close(Close.EXPIRED))

    def _arm_expiry(self, client: Client) -> None:
        self._wheel.cancel(client)
        if client.expires_at:
            self._look_at_expiry(client, self._clock.monotonic())

    # ---------------------------------------------------------------- effects

    def _carry_out(self, client: Client, effects: list[core.Effect]) -> None:
        # Not by `match`, which takes three times as long to take a tuple apart.
        for effect in effects:
            if isinstance(effect, core.Reply):
                command_id, kind, result = effect
                form = client.connection.form
                write_soon(client.connection, wrap(form, ENCODINGS[form].encode_reply(command_id, kind, result)))
            elif isinstance(effect, core.Start):
                command, kind = effect
                # A `send` is a message without a reply, to which nothing here listens.
                if kind != "send" and not self._commands.begin(client, command, kind, self._finished_alone):
                    self._spawn(client, self._commands.run(client, command, kind, self._finished))
            elif isinstance(effect, core.Authenticate):
                self._spawn(client, self._connect(client, effect.command_id, effect.request))
            elif isinstance(effect, core.Disconnect):
                client.connection.close(effect.close)
            else:
                assert_never(effect)

    def _finished(self, client: Client, command_id: int, kind: str, result: Result | Close) -> bool:
        """A command is done. Returns whether the client was told: it is still there."""
        if isinstance(result, Close):
            self.close(client, result)
            return False
        effects = client.session.finish(command_id, kind, result)
        self._carry_out(client, effects)
        if kind == "refresh" and effects:
            self._arm_expiry(client)
        return bool(effects)

    def _finished_alone(self, client: Client, command_id: int, kind: str, result: Result | Close) -> bool:
        """As `_finished`, called by what others share, which must not end by it: see `_alone`."""
        try:
            return self._finished(client, command_id, kind, result)
        except Exception:  # noqa: BLE001 - see `_alone`
            self._failed(client)
            return False

    async def _connect(self, client: Client, command_id: int, request: ConnectRequest) -> None:
        session = client.session
        outcome = await self._way_in.connect(client, command_id, request)
        match outcome:
            case Close():
                self._carry_out(client, session.close(outcome))
            case ReplyError():
                self._carry_out(client, session.refused(command_id, outcome))
            case None:
                pass  # gone meanwhile; what was opened, `gone` ended
            case _:
                self._arm_expiry(client)
                self._carry_out(client, session.accepted(command_id, outcome))
                self._way_in.begin(client, outcome)
                self._carry_out(client, session.release())

    def _spawn(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None, "the node runs before it listens"
        self._tasks.create_task(self._alone(client, work))

    async def _alone(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        """Do a client's work. Whatever goes wrong in it, only that client ends, and may come back."""
        try:
            await work
        except Exception:  # noqa: BLE001 - our own bug costs this client its connection, not the node its clients
            self._failed(client)

    def _failed(self, client: Client) -> None:
        self._log.exception("client_failed", client=client.id)
        self.close(client, Close.SERVER_ERROR)
