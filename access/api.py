"""Wire types of the access server, for whoever talks to it.

Peer method: `access.deliver` (message services -> access node). Registry note: `NodeReport`, once a second.
"""

from __future__ import annotations

import msgspec

from base.peer import Method

__all__ = ["DELIVER", "SERVICE", "WEBSOCKET_PATH", "Deliver", "Delivered", "InboxEntry", "NodeReport"]

SERVICE = "access"
WEBSOCKET_PATH = "/connection/websocket"


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    """What an access node says of itself. `number` counts its reports, 1, 2, 3 ... within one life."""

    number: int = 0
    connections: int = 0
    is_draining: bool = False


class InboxEntry(msgspec.Struct, array_like=True, frozen=True):
    """An entry of a user's timeline; `data` is the publication, JSON. Empty data: only the offset is news, fetch it."""

    user: str
    offset: int
    data: bytes


class Deliver(msgspec.Struct, array_like=True, frozen=True):
    """Entries for users whose sessions are at this node; per user in ascending order of offset."""

    epoch: str
    entries: list[InboxEntry]


class Delivered(msgspec.Struct, array_like=True, frozen=True):
    """Users of the request that have no session at this node: their status was out of date."""

    absent: list[str]


DELIVER = Method("access.deliver", Deliver, Delivered)
