"""How a client is let in.

The steps, each before the next, because each closes a gap:
    1. the credentials are checked offline, a ticket is marked as used
    2. the client joins the inbox hub, loading: entries that come by from here on are noticed
    3. the status backend confirms the session: from here on the message services find it
    4. the timeline is read: it has everything that was stored before anybody could find the session; and what else
       the server subscribes the client to
    5. the connect reply carries what was missed; later entries follow in order
"""

from __future__ import annotations

from operator import attrgetter
from sys import intern

from access.brokers import Brokers
from access.client import Client
from access.config import AccessConfig
from access.core.arrivals import Arrivals
from access.core.issuers import Issuers
from access.core.protocol import (
    ClientError,
    Close,
    ConnectRequest,
    ConnectResult,
    Position,
    ReplyError,
    SubscribeResult,
    error_of,
)
from access.identity import Identities, ttl_of
from access.inboxes import CHANNEL_PREFIX
from access.metrics import AccessMetrics
from base.errors import LimitExceeded, PermissionDenied, RoadsteadError, Unauthenticated
from base.log import logger
from base.site import Site
from status.api import Closed, Opened
from status.client import SessionReports

__all__ = ["WayIn"]

VERSION = "roadstead 0.1"


class _TooManyConnections(LimitExceeded):
    """Of one user. It is told by a close code at which SDKs do not come back by themselves."""


class WayIn:
    """Lets clients in."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        identities: Identities,
        brokers: Brokers,
        reports: SessionReports,
        metrics: AccessMetrics,
    ) -> None:
        self._config = config
        self._identities = identities
        self._brokers = brokers
        self._reports = reports
        self._metrics = metrics
        self._node = site.name
        self._clock = site.clock
        self.rejected = 0
        """Connect commands that failed, since the start."""
        self.admitted = Issuers()
        """Connections that were let in by a ticket."""
        self.arrivals: Arrivals[Client] = Arrivals(attrgetter("opened.conn_seq"))
        """Who was let in, or is about to be."""
        self._conn_seq = 0
        self.apps: dict[Client, str] = {}
        """Version of the application, of those clients whose tickets say it: it costs the others nothing."""
        self._log = logger(node=site.name)

    async def connect(
        self, client: Client, command_id: int, request: ConnectRequest
    ) -> ConnectResult | ReplyError | Close | None:
        """Return what to tell the client; None if it went meanwhile."""
        started = self._clock.stopwatch()
        try:
            result = await self._connect(client, command_id, request)
        except Unauthenticated as error:
            self._refused("unauthenticated", error)
            return Close.INVALID_TOKEN
        except RoadsteadError as error:
            self._refused(error.code.label, error)
            self._undo(client)
            if isinstance(error, PermissionDenied):
                # A ticket for other nodes. What helps is another one, for which an SDK asks when it is told this.
                return ReplyError(ClientError.TOKEN_EXPIRED.wire.code, error.message)
            return Close.CONNECTION_LIMIT if isinstance(error, _TooManyConnections) else error_of(error)
        except Exception:  # noqa: BLE001 - our own bug costs this client its connect, not the node its clients
            self._log.exception("connect_failed", client=client.id)
            self._undo(client)
            return ClientError.INTERNAL.wire
        identity, client.identity = client.identity, None
        if result is None:
            self._metrics.connects.inc("gone")
        else:
            self._metrics.connects.inc("accepted")
            self._metrics.let_in(self._clock.stopwatch() - started)
            assert identity is not None
            if identity.ticket is not None:
                self.admitted.count(identity.issuer)
            if identity.app:
                self.apps[client] = intern(identity.app)
        return result

    def gone(self, client: Client) -> None:
        """Forget what is kept of a client."""
        self.apps.pop(client, None)
        if client.opened is not None:
            self.arrivals.leave(client)

    def begin(self, client: Client, result: ConnectResult) -> None:
        """The reply was written: let publications follow it."""
        for channel, start in result.subs.items():
            self._brokers.of(channel).subscribed(client, channel, start)

    async def _connect(self, client: Client, command_id: int, request: ConnectRequest) -> ConnectResult | None:
        session = client.session
        if not session.is_waiting(command_id):
            return None
        now = self._clock.realtime()
        identity = client.identity = self._identities.admit(request.token, now)
        client.user, client.info = identity.user, identity.info
        inboxes = self._brokers.inboxes
        if len(inboxes.hub.clients_of(identity.user)) >= self._config.user_connections_max:
            limit = self._config.user_connections_max
            raise _TooManyConnections("too many connections of one user", what="user_connections", limit=limit)
        self._conn_seq += 1
        opened = Opened(
            user=identity.user,
            session=client.id,
            conn_seq=self._conn_seq,
            device=identity.device,
            platform=identity.platform,
            state="online",
            since=now,
        )
        client.opened = opened = self._brokers.presences.connecting(opened, bytes(request.data))
        self.arrivals.join(client)
        inboxes.attach(client)
        is_confirmed = await self._reports.open(opened, deadline_ms=self._config.publish_deadline_ms)
        if not session.is_waiting(command_id):
            return None
        if not is_confirmed:
            self._metrics.unpublished.inc()
        subs = await self._subscribe(client, command_id, request.subs)
        if not session.is_waiting(command_id):
            return None
        client.expires_at = identity.expires_at  # from here on, instead of the time to connect
        ttl = ttl_of(client.expires_at, now)
        return ConnectResult(
            client=client.id,
            version=VERSION,
            ping=self._config.ping_interval_ms // 1000,
            pong=True,
            session=client.connection.session or client.id,
            node=self._node,
            subs=subs,
            expires=ttl > 0,
            ttl=ttl,
        )

    async def _subscribe(
        self, client: Client, command_id: int, wanted: dict[str, Position]
    ) -> dict[str, SubscribeResult]:
        """Subscribe to what the server gives to every client of the user, from the positions that it kept.

        To nothing more once the client is gone: its subscriptions were ended then.
        """
        assert client.identity is not None
        subs = {}
        inbox = (CHANNEL_PREFIX + client.user,) if self._config.subscribe_inbox else ()
        for channel in dict.fromkeys((*inbox, *self._brokers.by_server(client), *client.identity.channels)):
            if not client.session.is_waiting(command_id):
                break
            start = await self._brokers.of(channel).subscribe_by_server(
                client, channel, wanted.get(channel, Position())
            )
            if start is not None:
                subs[channel] = start
        return subs

    def _undo(self, client: Client) -> None:
        """Undo a connect that failed half-way, so that the client can try again on this connection."""
        identity, client.identity = client.identity, None
        if identity is not None:
            self._identities.give_back(identity)
        self._brokers.gone(client)
        self.gone(client)
        opened, client.opened = client.opened, None
        if opened is not None:
            self._reports.close(Closed(opened.user, opened.session, opened.conn_seq))

    def _refused(self, outcome: str, error: RoadsteadError) -> None:
        self.rejected += 1
        self._metrics.connects.inc(outcome)
        self._log.info("connect_refused", outcome=outcome, error=str(error))
