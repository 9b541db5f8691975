"""Moves that somebody else orders, a scheduler that balances or rolls out: who is here, and who of them shall go.

A scheduler pages through the clients (`access.clients`), and orders some of them to go (`access.move`), at its own pace
and with its own name for the whole. They are told as in a drain; who is still here after the grace is closed with 3001.
How a plan is getting on is asked with an order of nobody.

A drain takes everybody over who was told here, and while it lasts nobody else is.
"""

from __future__ import annotations

import asyncio

from access.admission import Admission
from access.api import ClientEntry, ClientsListed, ClientsMoved, ListClients, MoveClients
from access.client import Client
from access.clients import Clients
from access.core.moves import MovePlans
from access.core.session import Phase
from access.metrics import AccessMetrics
from access.redirect import Redirects
from base.clock import Instant
from base.log import logger
from base.site import Site

__all__ = ["Moves"]

STEP_S = 0.1
NUMBER_DIGITS = 18


class Moves:
    """The moves of one node that were ordered."""

    def __init__(
        self, site: Site, *, clients: Clients, redirects: Redirects, admission: Admission, metrics: AccessMetrics
    ) -> None:
        """`redirects` tells clients where to go; `admission` knows whether the node drains."""
        self._clock = site.clock
        self._clients = clients
        self._redirects = redirects
        self._admission = admission
        self._metrics = metrics
        self._plans = MovePlans()
        self._waiting: dict[str, Client] = {}
        """Who was told, and is still here."""
        self._begun = asyncio.Event()
        self._log = logger(node=site.name)
        clients.on_gone(self._gone)

    async def run(self) -> None:
        """Close who does not go, until cancelled."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            while self._plans:
                self._close_late()
                await asyncio.sleep(STEP_S)

    def release(self) -> None:
        """A drain takes all clients over."""
        self._plans.release()
        self._waiting.clear()

    def list_clients(self, wanted: ListClients, _peer: str) -> ClientsListed:
        """Return a page of the clients that were let in (peer method)."""
        after = int(wanted.after) if wanted.after else None
        page = self._clients.page(after, wanted.limit, newest_first=wanted.newest_first)
        entries = [self._entry(client) for client in page if client.session.phase is Phase.OPEN]
        last = page[-1].opened if len(page) == wanted.limit else None
        return ClientsListed(entries, str(last.conn_seq) if last is not None else "")

    def move(self, order: MoveClients, peer: str) -> ClientsMoved:
        """Tell clients to go (peer method)."""
        deadline = Instant(self._clock.monotonic() + order.grace_ms)
        rooms = dict(self._redirects.rooms())
        told, absent, refused = 0, [], []
        for move in order.moves:
            client = self._find(move.client)
            if client is None:
                absent.append(move.client)
            elif rooms.get(move.node, 0) <= 0:
                refused.append(move.client)
            elif self._redirects.tell(client, move.node, order.grace_ms, plan=order.plan, arm=move.arm):
                told += 1
                rooms[move.node] -= 1
                self._waiting[client.id] = client
                self._plans.told(order.plan, client.id, deadline)
            else:
                absent.append(move.client)
        for outcome, count in (("told", told), ("absent", len(absent)), ("refused", len(refused))):
            self._metrics.ordered.add(count, outcome)
        if told:
            self._begun.set()
            self._log.info("clients_moved", plan=order.plan, by=peer, told=told, refused=len(refused))
        totals = self._plans.totals(order.plan)
        return ClientsMoved(told, absent, totals.waiting, totals.arrived, totals.closed, refused)

    # ---------------------------------------------------------------- inside

    def _find(self, name: str) -> Client | None:
        """Return the client of an entry, if it may be told to go."""
        number, _, client_id = name.partition("-")
        if self._admission.is_draining or not (number.isascii() and number.isdecimal()) or len(number) > NUMBER_DIGITS:
            return None
        client = self._clients.numbered(int(number))
        if client is None or client.id != client_id or client_id in self._plans:
            return None
        return client

    def _close_late(self) -> None:
        for client_id in self._plans.expire(self._clock.monotonic()):
            self._metrics.moved.inc("closed")
            self._clients.send_on(self._waiting.pop(client_id))

    def _gone(self, client: Client) -> None:
        if self._waiting.pop(client.id, None) is not None:
            self._plans.gone(client.id)
            self._metrics.moved.inc("arrived")

    def _entry(self, client: Client) -> ClientEntry:
        opened = client.opened
        assert opened is not None
        return ClientEntry(
            f"{opened.conn_seq}-{client.id}",
            opened.user,
            opened.device,
            opened.platform,
            self._clients.app_of(client),
            client.address,
            opened.since,
        )
