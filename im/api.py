"""Wire types of the message services.

Peer methods, all from access nodes: `im.rpc` carries a client's call as it came, `im.timeline` reads a user's timeline,
`im.heads` asks how far timelines go. Publications are JSON, encoded once here and passed on as they are.
"""

from __future__ import annotations

import msgspec

from base.peer import Method

__all__ = ["HEADS", "RPC", "SERVICE", "TIMELINE", "Heads", "HeadsReply", "Rpc", "RpcReply", "Timeline", "TimelinePage"]

SERVICE = "im"
HEADS_USERS_MAX = 1_000


class Rpc(msgspec.Struct, array_like=True, frozen=True):
    """A client's call: `data` is its JSON argument, `user` and `device` are who the ticket says it is."""

    user: str
    device: str
    method: str
    data: bytes


class RpcReply(msgspec.Struct, array_like=True, frozen=True):
    """The JSON result."""

    data: bytes


class Timeline(msgspec.Struct, array_like=True, frozen=True):
    """Read a user's timeline after `since`: at most `limit` entries (0: only the head) and `bytes_max` bytes."""

    user: str
    since: int
    limit: int
    bytes_max: int


class TimelinePage(msgspec.Struct, array_like=True, frozen=True):
    """Entries (offset, publication) without a hole after `since`; all of them if the last one's offset is `head`."""

    epoch: str
    head: int
    entries: list[tuple[int, bytes]]


class Heads(msgspec.Struct, array_like=True, frozen=True):
    """Ask for the newest timeline offset of up to 1,000 users."""

    users: list[str]


class HeadsReply(msgspec.Struct, array_like=True, frozen=True):
    """The offsets in the order asked, 0 for an empty timeline."""

    epoch: str
    heads: list[int]


RPC = Method("im.rpc", Rpc, RpcReply)
TIMELINE = Method("im.timeline", Timeline, TimelinePage)
HEADS = Method("im.heads", Heads, HeadsReply)
