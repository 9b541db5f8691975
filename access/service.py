"""An access node: a port for clients, and one for other nodes and operators with peer streams, health and metrics.

Start: wait for the status backend and the message services, listen for clients, register. Run: clients, their
channels, reports to the status backend, a report to the registry each second. Drain: not ready, no new connections,
everybody is told to go elsewhere over some time. Stop: deregister, close.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from aiohttp import web

from access.admin import AccessAdmin
from access.admission import Admission
from access.api import (
    ACCESS_CLIENTS,
    ACCESS_MOVE,
    DELIVER,
    DELIVER_CONVERSATION,
    SERVICE,
    WEBSOCKET_PATH,
    NodeReport,
)
from access.brokers import Brokers
from access.channel_api import ChannelApi
from access.channel_metrics import ChannelMetrics
from access.channels import Channels
from access.clients import Clients
from access.commands import Commands
from access.config import AccessConfig
from access.connecting import VERSION, WayIn
from access.conversations import Conversations
from access.core.protocol import Close
from access.drain import Drain
from access.fanout import Fanout
from access.identity import Identities
from access.inboxes import Inboxes
from access.listener import Listener
from access.mesh import Mesh
from access.metrics import AccessMetrics
from access.moves import Moves
from access.presence import Presences
from access.redirect import Redirects
from access.transports import HttpTransports
from access.unproven import UnprovenSessions
from base.errors import BadRequest, StoreError
from base.http import HttpServer
from base.keys import KeyRing
from base.node import Node
from base.peer.stream import Serve
from base.site import Site
from im.client import ImClient
from scheduler.client import TicketSigners, TicketVerifier
from status.client import SessionReports, StatusLookups, StatusWatches

__all__ = ["AccessNode"]

LAST_FRAMES_S = 1.0
SHED_INTERVAL_S = 1.0
DRAIN_SPARE_S = 5.0


class AccessNode:
    """One access node."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        ticket_keys: KeyRing,
        reports: SessionReports,
        statuses: StatusLookups,
        watches: StatusWatches | None,
    ) -> None:
        """Build it.

        Args:
            config: its settings.
            site: its place.
            ticket_keys: every key that the schedulers may sign tickets with; the first that can signs those for clients
                that this node sends elsewhere.
            reports: where sessions are reported; run by this node, as are the other two.
            statuses: where users are looked up.
            watches: where users are watched; None if the status backend has no watches.
        """
        self.node = Node(site, SERVICE, statistics=self.statistics, note=self._report)
        drain_ms = config.stop_drain_ms + config.drain_grace_ms + config.linger_ms
        self.node.drain_deadline_s = drain_ms / 1000 + DRAIN_SPARE_S
        self._config = config
        self._version = config.version or VERSION
        self._heartbeats = 0
        self._built_at = site.clock.monotonic()
        self._metrics = AccessMetrics(self.node.metrics, node=site.name, connections=lambda: self._admission.open)
        self._admission = Admission(config, site.clock, self._metrics)
        self._reports = reports
        self._statuses = statuses
        self._watches = watches
        self._im = ImClient(site)
        self._mesh = Mesh(site, self.node.peers)
        self._identities = Identities(TicketVerifier(ticket_keys, node=site.name), token_key=config.token_key)
        self._fanout = Fanout(site.clock, pushed=self._metrics.pushed)
        self._brokers = self._build_brokers(site)
        self._way_in = WayIn(
            config,
            site,
            identities=self._identities,
            brokers=self._brokers,
            reports=reports,
            metrics=self._metrics,
        )
        self._clients = self._build_clients(site)
        self._unproven = UnprovenSessions(self._im, self._metrics, node=site.name)
        self._clients.on_gone(self._unproven.gone)
        self._http = HttpServer(
            site.name, self.node.metrics, statistics=dict, body_bytes_max=config.frame_bytes_max, is_public=True
        )
        self._listener = Listener(
            config,
            site.clock,
            node=site.name,
            http=self._http,
            websockets={WEBSOCKET_PATH: self._clients},
            admission=self._admission,
            metrics=self._metrics,
        )
        self._transports = self._build_transports(site)
        self._moves, self._drain = self._build_moves(site, TicketSigners(ticket_keys))
        self._serve()

    def _build_brokers(self, site: Site) -> Brokers:
        config, metrics = self._config, self._metrics
        return Brokers(
            inboxes=Inboxes(config, self._im, metrics, node=site.name),
            conversations=Conversations(config, self._im, metrics, self._fanout, node=site.name),
            presences=Presences(config, site.clock, metrics, statuses=self._statuses, watches=self._watches),
            channels=Channels(
                self._mesh,
                site.clock,
                namespaces=config.namespaces,
                settings=config.channels,
                verify=lambda token, channel, user: self._identities.subscription(
                    token, channel, user, site.clock.realtime()
                ),
                fanout=self._fanout,
                metrics=ChannelMetrics(self.node.metrics, node=site.name),
            ),
        )

    def _build_clients(self, site: Site) -> Clients:
        commands = Commands(
            self._config,
            site,
            brokers=self._brokers,
            identities=self._identities,
            im=self._im,
            reports=self._reports,
            metrics=self._metrics,
        )
        return Clients(
            self._config,
            site,
            admission=self._admission,
            way_in=self._way_in,
            commands=commands,
            brokers=self._brokers,
            reports=self._reports,
            metrics=self._metrics,
        )

    def _build_moves(self, site: Site, signers: TicketSigners) -> tuple[Moves, Drain]:
        clients, admission, metrics = self._clients, self._admission, self._metrics
        redirects = Redirects(
            site, region=self._config.region, version=self._version, signer=signers.signer, app_of=clients.app_of
        )
        self._mesh.on_instances(redirects.saw)
        moves = Moves(site, clients=clients, redirects=redirects, admission=admission, metrics=metrics)
        drain = Drain(
            self._config,
            site,
            clients=clients,
            admission=admission,
            redirects=redirects,
            announce=self._announce,
            on_start=moves.release,
            metrics=metrics,
        )
        return moves, drain

    def _build_transports(self, site: Site) -> HttpTransports:
        transports = HttpTransports(
            self._clients,
            node=site.name,
            peers=self._mesh.pool,
            clock=site.clock,
            admit=lambda request: self._admission.check(
                self._listener.address_of(request), request.headers.get("Origin")
            ),
            address_of=self._listener.address_of,
            check_room=self._admission.check_room,
            allows=self._admission.allows_origin,
            limits=self._listener.limits,
            away_ms=self._config.pong_deadline_ms,
        )
        transports.add_routes(self._http.app)
        self._http.app.router.add_get(WEBSOCKET_PATH, _no_upgrade)
        transports.serve(self.node.peers)
        return transports

    def _serve(self) -> None:
        self._reports.on_evict(self._clients.evict)
        self.node.peers.serve(DELIVER, self._timed(self._brokers.inboxes.deliver))
        self.node.peers.serve(DELIVER_CONVERSATION, self._timed(self._brokers.conversations.deliver))
        self.node.peers.serve(ACCESS_CLIENTS, self._moves.list_clients)
        self.node.peers.serve(ACCESS_MOVE, self._moves.move)
        router = self.node.http.app.router
        AccessAdmin(self.node.site, clients=self._clients, drain=self._drain, describe=self._describe).add_to(router)
        ChannelApi(self.node.site, self._brokers.channels).add_to(router)
        self._metrics.show_listener(
            arrivals=lambda: self._listener.arrivals,
            queued=lambda: sum(self._clients.queued().values()),
            resident=lambda: self._admission.resident,
            lag=lambda: self._admission.lag_s,
        )

    @property
    def client_url(self) -> str:
        """Where clients reach this node, once it listens."""
        return self._listener.url

    async def start(self) -> None:
        """Listen, wait for the status backend and the message services' addresses, join."""
        await self.node.listen()
        await self._reports.wait_ready()
        await self._im.wait_ready()
        await self._listener.listen(self._config.client_host or self.node.site.host, self._config.client_port)
        self._http.is_ready = True
        await self.node.join(
            {
                "region": self._config.region,
                "carrier": self._config.carrier,
                "capacity": str(self._config.capacity),
                "accepts_per_second": str(self._config.accepts_per_second),
                "client_url": self._listener.url,
                "version": self._version,
            }
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reports.run())
            tasks.create_task(self._statuses.run())
            if self._watches is not None:
                tasks.create_task(self._watches.run())
            for part in (
                self._im,
                self._mesh,
                self._admission,
                self._listener,
                self._brokers.inboxes,
                self._brokers.conversations,
                self._brokers.channels,
                self._fanout,
                self._clients,
                self._unproven,
                self._transports,
                self._moves,
                self._drain,
                self.node,
            ):
                tasks.create_task(part.run())
            tasks.create_task(self._shed())

    async def drain(self) -> None:
        """Tell everybody where to go, over some time if there is another node; then close who is left."""
        over_ms = self._config.stop_drain_ms
        if over_ms and self._drain.has_targets() and self._admission.open:
            await self._drain.start(over_ms=over_ms)
            with contextlib.suppress(TimeoutError):  # one that an operator began may be paused, or take an hour
                async with asyncio.timeout((over_ms + self._config.drain_grace_ms) / 1000 + LAST_FRAMES_S):
                    await self._drain.wait_over()
        else:
            self._admission.is_draining = True
            await self._announce(True)
        if self._drain.has_targets():
            for client in self._clients:
                self._clients.send_on(client)
        else:
            self._clients.close_all(Close.SHUTDOWN)
        try:
            async with asyncio.timeout(LAST_FRAMES_S):
                while self._admission.open:  # noqa: ASYNC110 - sockets end one by one, there is no one event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.node.log.info("clients_left_behind", connections=self._admission.open)
        await self._clients.leaving.wait_over()

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()
        await self.cut_off()

    async def cut_off(self) -> None:
        """Close the clients' port, and whatever is open on it, without a goodbye. Idempotent."""
        self._listener.stop_accepting()
        for client in self._clients:
            client.connection.abort()
        await self._listener.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "connections": self._admission.open,
            "is_draining": self._admission.is_draining,
            "arrivals": self._listener.arrivals,
            "http": self._transports.statistics(),
            "inboxes": self._brokers.inboxes.hub.statistics(),
            "conversations": self._brokers.conversations.statistics(),
            "channels": self._brokers.channels.statistics(),
            "presence": self._brokers.presences.statistics(),
            "status_links": self._reports.statistics(),
            "status_digest": self._status_digest(),
            "streams": self.node.peers.statistics(),
        }

    # ---------------------------------------------------------------- inside

    async def _shed(self) -> None:
        """Close the slowest when too much waits for all clients together, until cancelled."""
        while True:
            await asyncio.sleep(SHED_INTERVAL_S)
            for client in self._admission.shed(self._clients.queued()):
                self._metrics.shed.inc()
                self._clients.close(client, Close.SLOW)

    async def _announce(self, is_draining: bool) -> None:  # noqa: FBT001 - it is the announcement
        """Tell the scheduler and load balancers, now."""
        self.node.http.is_ready = self._http.is_ready = not is_draining
        try:
            await self.node.heartbeat()
        except StoreError as error:
            self.node.log.debug("registry_unreachable", error=str(error))

    def _describe(self) -> dict[str, Any]:
        return {
            "node": self.node.site.name,
            "region": self._config.region,
            "client_url": self._listener.url,
            "version": self._version,
            "connections": self._admission.open,
            "capacity": self._config.capacity,
            "accepted": self._admission.accepted,
            "refused": self._metrics.refused.total(),
            "resident_bytes": self._admission.resident,
            "loop_lag_ms": round(self._admission.lag_s * 1000),
            "is_draining": self._admission.is_draining,
        }

    def _status_digest(self) -> dict[str, Any] | None:
        """What this life reported, in the form in which status nodes tell what they hold of it."""
        digest = self._reports.digest()
        if digest is None:
            return None
        return {"incarnation": self.node.site.incarnation, "entries": digest.entries, "xor": f"{digest.xor:016x}"}

    def _report(self) -> bytes:
        self._heartbeats += 1
        report = NodeReport(
            number=self._heartbeats,
            connections=self._admission.open,
            is_draining=self._admission.is_draining,
            accepted=self._admission.accepted,
            refused=self._metrics.refused.total(),
            rejected=self._way_in.rejected,
            abnormal=self._clients.abnormal,
            loop_lag_ms=round(self._admission.lag_s * 1000),
            resident_bytes=self._admission.resident,
            version=self._version,
            closed=self._clients.closed,
            handshakes=self._metrics.handshakes.encode(),
            pushes=self._metrics.pushes.encode(),
            admitted=self._way_in.admitted.counts(),
            uptime_ms=self.node.site.clock.monotonic() - self._built_at,
        )
        return msgspec.msgpack.encode(report)

    def _timed(self, deliver: Serve) -> Serve:
        """Measure how long a delivery takes: all that it writes is written when it returns, but for pushes to many."""

        def timed(delivery: Any, peer: str) -> Any:
            clock = self.node.site.clock
            started = clock.stopwatch()
            reply = deliver(delivery, peer)
            self._metrics.pushed(clock.stopwatch() - started)
            return reply

        return timed


async def _no_upgrade(_request: web.Request) -> web.Response:
    raise BadRequest("this is a WebSocket endpoint; connect with a WebSocket client")
