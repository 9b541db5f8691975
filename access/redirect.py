"""Telling a client to go to another node: the one way for drains and for moves that were ordered.

A client is pushed a message outside of all channels,

    {"move": {"node": "access-2", "url": "ws://.../connection/websocket", "ticket": "...", "after_ms": 10000}}

connects there first, with its positions, and leaves here then. Without a `url` it asks the scheduler where to go: no
other node of the same kind has room, or this one has no key to sign a ticket with (all are public keys).

Nodes of the same kind are those of the same region and version: where a rollout is under way a client belongs to one of
its arms, and which nodes are of it only a scheduler knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from access.api import capacity_of, report_of, transport_urls
from access.client import Client
from access.core.outgoing import Outgoing
from access.core.protocol import Message
from access.core.session import Phase
from base.ids import new_uuid
from base.registry import ServiceInstance
from base.site import Site
from scheduler.api import Ticket
from scheduler.client import TicketSigner

__all__ = ["Redirects"]

TICKET_SPARE_S = 30
"""How much longer than the client may stay its ticket is good (seconds)."""


class Redirects:
    """The other nodes, as they last reported, and what clients are told of them."""

    def __init__(
        self,
        site: Site,
        *,
        region: str,
        version: str,
        signer: Callable[[], TicketSigner | None],
        app_of: Callable[[Client], str],
    ) -> None:
        """Build it.

        Args:
            site: the node's place.
            region: the node's.
            version: the node's, as it reports it.
            signer: returns who signs tickets for other nodes now; None if there is no key for that.
            app_of: returns the version of a client's application.
        """
        self._name = site.name
        self._kind = (region, version)
        self._clock = site.clock
        self._signer = signer
        self._app_of = app_of
        self._others: dict[str, ServiceInstance] = {}
        self._sent: dict[str, int] = {}
        """Clients that were sent to a node since it reported."""
        self._on_change: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call the listener when the other nodes have reported."""
        self._on_change.append(listener)

    def saw(self, instances: Iterable[ServiceInstance]) -> None:
        """Take note of the access nodes as they last reported."""
        before, self._others = self._others, {one.id: one for one in instances if one.id != self._name}
        for node in tuple(self._sent):
            if node not in self._others or node not in before or before[node].note != self._others[node].note:
                del self._sent[node]
        for listener in self._on_change:
            listener()

    def rooms(self) -> list[tuple[str, int]]:
        """Return how many clients each of the other nodes still takes, but for those that take none whatever comes."""
        return [(node, max(0, capacity - taken)) for node, _, taken, capacity in self._takers()]

    def of_kind(self) -> list[tuple[str, int, int]]:
        """Return the others of the same kind that take clients: id, connections and capacity of each."""
        return [(node, taken, capacity) for node, kind, taken, capacity in self._takers() if kind == self._kind]

    def _takers(self) -> Iterator[tuple[str, tuple[str, str], int, int]]:
        """Yield the id, kind, connections (those on their way too) and capacity of each that takes anybody."""
        for node, instance in self._others.items():
            report, meta = report_of(instance.note), instance.meta
            if not report.is_draining and "client_url" in meta:
                kind = meta.get("region", ""), report.version or meta.get("version", "")
                yield node, kind, report.connections + self._sent.get(node, 0), capacity_of(meta)

    def tell(self, client: Client, target: str | None, after_ms: int, *, plan: str = "", arm: str = "") -> bool:
        """Tell a client to go to the target, within a time; None: where the scheduler says.

        Returns False, and tells nothing, if it is not let in yet: nothing may come before the reply to its connect.
        `plan` and `arm` are for its ticket.
        """
        if client.session.phase is not Phase.OPEN:
            return False
        told: dict[str, object] = {"after_ms": after_ms}
        instance = self._others.get(target) if target is not None else None
        signer = self._signer()
        if instance is not None and signer is not None:
            ticket = self._ticket(client, instance.id, after_ms, plan=plan, arm=arm)
            told |= {
                "node": instance.id,
                "url": transport_urls(instance.meta["client_url"])["websocket"],
                "ticket": signer.sign(ticket),
            }
            self._sent[instance.id] = self._sent.get(instance.id, 0) + 1
        client.is_sent_on = True
        outgoing = Outgoing("", Message(msgspec.Raw(msgspec.json.encode({"move": told}))))
        client.connection.write(outgoing.frame(client.connection.form))
        return True

    def _ticket(self, client: Client, target: str, after_ms: int, *, plan: str, arm: str) -> Ticket:
        assert client.opened is not None
        now_s = self._clock.realtime() // 1000
        return Ticket(
            sub=client.user,
            jti=new_uuid(),
            iat=now_s,
            exp=now_s + after_ms // 1000 + TICKET_SPARE_S,
            device=client.opened.device,
            platform=client.opened.platform,
            nodes=(target,),
            sid=plan,
            arm=arm,
            app=self._app_of(client),
        )
