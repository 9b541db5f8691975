"""Wire types of the access server, for whoever talks to it.

Peer methods, from message services to an access node: `access.deliver` for timelines, `access.deliver_conversation` for
conversations that clients follow. Registry note: `NodeReport`, once a second.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from base.peer import Method

__all__ = [
    "DELIVER",
    "DELIVER_CONVERSATION",
    "EMULATION_PATH",
    "EVENTS_PATH",
    "POLL_PATH",
    "SERVICE",
    "STREAM_PATH",
    "WEBSOCKET_PATH",
    "ConversationEntry",
    "ConversationsDelivered",
    "Deliver",
    "DeliverConversations",
    "Delivered",
    "InboxEntry",
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


def transport_urls(client_url: str) -> dict[str, str]:
    """Return where clients of a node connect, by transport; `emulation` is where those of the one-way ones send."""
    return {
        "websocket": client_url.replace("http", "ws", 1) + WEBSOCKET_PATH,
        "http_stream": client_url + STREAM_PATH,
        "sse": client_url + EVENTS_PATH,
        "emulation": client_url + EMULATION_PATH,
        "poll": client_url + POLL_PATH,
    }


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    """What an access node says of itself, once a second. `number` counts its reports, 1, 2, 3 ... within one life.

    Totals are since the node started, so that a report that is lost takes nothing with it.
    """

    number: int = 0
    connections: int = 0
    is_draining: bool = False
    accepted: int = 0
    """Total of newcomers that were let in before the upgrade."""
    refused: int = 0
    """Total of newcomers that were not."""
    rejected: int = 0
    """Total of connect commands that failed."""
    abnormal: int = 0
    """Total of connections that ended without a close code."""
    loop_lag_ms: int = 0
    """How late the event loop was, the worst of the last second."""
    resident_bytes: int = 0
    """Resident memory of the process."""
    version: str = ""


_decode_report = msgspec.msgpack.Decoder(NodeReport).decode
_UNREADABLE = NodeReport(is_draining=True)


def report_of(note: bytes) -> NodeReport:
    """Return what a node's note says. One that has not reported yet counts as empty.

    One whose note is none, of some other version say, counts as draining: nobody is sent there, and whoever reads the
    registry goes on with the others.
    """
    try:
        return _decode_report(note) if note else NodeReport()
    except msgspec.MsgspecError:
        return _UNREADABLE


def capacity_of(meta: Mapping[str, str]) -> int:
    """Return how many clients a registered node takes; 0 where it does not say."""
    value = meta.get("capacity", "")
    return int(value) if value.isascii() and value.isdecimal() else 0


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


class ConversationEntry(msgspec.Struct, array_like=True, frozen=True):
    """A message of the conversation `cid` (decimal digits) at its `seq`; `data` is the publication, JSON."""

    cid: str
    seq: int
    data: bytes


class DeliverConversations(msgspec.Struct, array_like=True, frozen=True):
    """Entries of conversations that this node follows (`im.follow`); per conversation in ascending order of seq.

    One that is lost is not sent again: the next one, or the heads of the conversations, tell that it is missing.
    """

    epoch: str
    entries: list[ConversationEntry]


class ConversationsDelivered(msgspec.Struct, array_like=True, frozen=True):
    """The entries were taken."""


DELIVER = Method("access.deliver", Deliver, Delivered)
DELIVER_CONVERSATION = Method("access.deliver_conversation", DeliverConversations, ConversationsDelivered)
