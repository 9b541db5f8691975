"""Wire types of the access server, for whoever talks to it.

Peer methods, from message services to an access node: `access.deliver` for timelines, `access.deliver_conversation` for
conversations that clients follow; from schedulers: `access.clients` lists a node's clients, `access.move` has some of
them go elsewhere. Registry note: `NodeReport`, once a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from base.peer import Method

__all__ = [
    "ACCESS_CLIENTS",
    "ACCESS_MOVE",
    "DELIVER",
    "DELIVER_CONVERSATION",
    "EMULATION_PATH",
    "EVENTS_PATH",
    "MOVES_MAX",
    "PAGE_MAX",
    "POLL_PATH",
    "PROBE_PATH",
    "SERVICE",
    "STREAM_PATH",
    "WEBSOCKET_PATH",
    "ClientEntry",
    "ClientsListed",
    "ClientsMoved",
    "ConversationEntry",
    "ConversationsDelivered",
    "Deliver",
    "DeliverConversations",
    "Delivered",
    "InboxEntry",
    "ListClients",
    "MoveClients",
    "MoveOrder",
    "NodeReport",
    "capacity_of",
    "report_of",
    "transport_urls",
]

SERVICE = "access"
WEBSOCKET_PATH = "/connection/websocket"
STREAM_PATH = "/connection/http_stream"
EVENTS_PATH = "/connection/sse"
EMULATION_PATH = "/emulation"
POLL_PATH = "/connection/poll"
PROBE_PATH = "/healthz"
"""On the clients' port: answers a GET at once, so that a client can measure how far the node is."""


def transport_urls(client_url: str) -> dict[str, str]:
    """Return where clients of a node connect, by transport; `emulation` is where those of the one-way ones send."""
    return {
        "websocket": client_url.replace("http", "ws", 1) + WEBSOCKET_PATH,
        "http_stream": client_url + STREAM_PATH,
        "sse": client_url + EVENTS_PATH,
        "emulation": client_url + EMULATION_PATH,
        "poll": client_url + POLL_PATH,
    }


COUNT_MAX = 2**53
"""Whatever is counted stays below: no sum of it is beyond a float."""
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    """What an access node says of itself, once a second. `number` counts its reports, 1, 2, 3 ... within one life.

    Totals and histograms are since the node started, so that a report that is lost takes nothing with it.
    """

    number: Count = 0
    connections: Count = 0
    is_draining: bool = False
    accepted: Count = 0
    """Total of newcomers that were let in before the upgrade."""
    refused: Count = 0
    """Total of newcomers that were not."""
    rejected: Count = 0
    """Total of connect commands that failed."""
    abnormal: Count = 0
    """Total of connections that ended without a close code."""
    loop_lag_ms: Count = 0
    """How late the event loop was, the worst of the last second."""
    resident_bytes: Count = 0
    """Resident memory of the process."""
    version: str = ""
    closed: Count = 0
    """Total of connections that ended after they were let in."""
    handshakes: bytes = b""
    """`base.core.histogram`, ms: from the connect command to its reply, of those that were let in."""
    pushes: bytes = b""
    """`base.core.histogram`, ms: from the arrival of a delivery, or of a push to many, to its last write."""
    admitted: dict[str, Count] = {}
    """Connections let in by a ticket, by who issued it (`Ticket.sid`); the 64 whose tickets came last."""
    uptime_ms: Count = 0
    """How long it has been running."""


_decode_report = msgspec.msgpack.Decoder(NodeReport).decode
_UNREADABLE = NodeReport(is_draining=True)


def report_of(note: bytes) -> NodeReport:
    """Return what a node's note says. One that has not reported yet counts as empty.

    One whose note is none, of some other version say, counts as draining: nobody is sent there, and whoever reads the
    registry goes on with the others.
    """
    try:
        return _decode_report(note) if note else NodeReport()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _UNREADABLE


def capacity_of(meta: Mapping[str, str]) -> int:
    """Return how many clients a registered node takes; 0 where it does not say, or says what no machine holds."""
    value = meta.get("capacity", "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= CAPACITY_DIGITS else 0


class InboxEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry of a user's timeline; `data` is the publication, JSON. Empty data: only the offset is news, fetch it.

    Offset 0: something of the moment, which is in no timeline.
    """

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


class ConversationEntry(msgspec.Struct, array_like=True, frozen=True):
    """An entry of the conversation `cid` (decimal digits) at its `seq`; `data` is the publication, JSON.

    `removed` are users whom the conversation is closed to after it.
    """

    cid: str
    seq: int
    data: bytes
    removed: list[str] = []


class DeliverConversations(msgspec.Struct, array_like=True, frozen=True):
    """Entries of conversations that this node follows (`im.follow`); per conversation in ascending order of seq.

    One that is lost is not sent again: the next one, or the heads of the conversations, tell that it is missing.
    """

    epoch: str
    entries: list[ConversationEntry]


class ConversationsDelivered(msgspec.Struct, array_like=True, frozen=True):
    """The entries were taken."""


PAGE_MAX = 1_000
CAPACITY_DIGITS = 9
MOVES_MAX = 200
"""Clients of one order: telling them takes some milliseconds, in which nothing else happens at the node."""


class ListClients(msgspec.Struct, array_like=True, frozen=True):
    """A page of a node's clients, in the order in which they were let in, or the reverse of it.

    `after` is `next` of the page before, "" for the first one. Who is there throughout is listed once; who comes or
    goes meanwhile may be missing.
    """

    after: Annotated[str, msgspec.Meta(pattern="^[0-9]{0,18}$")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = PAGE_MAX
    newest_first: bool = False


class ClientEntry(msgspec.Struct, array_like=True, frozen=True):
    """A client that was let in. `since` is in ms since the Unix epoch.

    `id` names it in orders: the number of its connection, by which it is found, and its client id.
    """

    id: str
    user: str
    device: str
    platform: str
    app: str
    address: str
    since: int


class ClientsListed(msgspec.Struct, array_like=True, frozen=True):
    """A page. `next` is empty after the last one."""

    clients: list[ClientEntry]
    next: str


class MoveOrder(msgspec.Struct, array_like=True, frozen=True):
    """Have the client (`ClientEntry.id`) go to the node. `arm` is what its new ticket says."""

    client: str
    node: str
    arm: str = ""


class MoveClients(msgspec.Struct, array_like=True, frozen=True):
    """Tell clients to go, now. Without moves: just how the plan is getting on.

    `plan` is printable ASCII, chosen by who orders; the tickets name it as their issuer. Who is still here `grace_ms`
    later is closed with 3001.
    """

    plan: Annotated[str, msgspec.Meta(pattern="^[!-~]{1,32}$")]
    grace_ms: Annotated[int, msgspec.Meta(ge=100, le=3_600_000)]
    moves: Annotated[list[MoveOrder], msgspec.Meta(max_length=MOVES_MAX)]


class ClientsMoved(msgspec.Struct, array_like=True, frozen=True):
    """What became of an order, and the plan's totals at this node, of the 16 plans with the latest orders.

    `absent` are not here, not let in yet, or told already: by a drain or by an order before. While the node drains all
    are. `refused` are here still, since the node that they should go to is not known, drains or is full.
    """

    told: int
    """By this order."""
    absent: list[str]
    waiting: int
    """Told by the plan, and still here."""
    arrived: int
    """Gone in time."""
    closed: int
    """Closed when their time was over. Who a drain took over is in none of the three."""
    refused: list[str] = []


ACCESS_CLIENTS = Method("access.clients", ListClients, ClientsListed)
ACCESS_MOVE = Method("access.move", MoveClients, ClientsMoved)
DELIVER = Method("access.deliver", Deliver, Delivered)
DELIVER_CONVERSATION = Method("access.deliver_conversation", DeliverConversations, ConversationsDelivered)
