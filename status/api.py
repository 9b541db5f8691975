"""Wire types of the status cluster, for whoever talks to it.

Peer methods: `status.beat` (access node -> status node) and `status.lookup` (anybody -> status node).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from base.clock import Timestamp
from base.peer import Method

__all__ = ["BEAT", "LOOKUP", "LOOKUP_USERS_MAX", "TABLE_KEY", "Beat", "BeatReply", "Closed", "Lookup", "LookupReply"]
__all__ += ["Opened", "SessionView", "UserStatus"]

SERVICE = "status"
TABLE_KEY = "status/table"
LOOKUP_USERS_MAX = 1_000

State = Literal["online", "away", "busy", "invisible"]


class Opened(msgspec.Struct, tag="o", array_like=True, frozen=True, gc=False):
    """A session was opened or changed. `conn_seq` grows with every session of its access node's life."""

    user: str
    session: str
    conn_seq: int
    device: str
    platform: str
    state: State
    since: Timestamp


class Closed(msgspec.Struct, tag="c", array_like=True, frozen=True, gc=False):
    """A session ended."""

    user: str
    session: str
    conn_seq: int


Delta = Opened | Closed


class Beat(msgspec.Struct, array_like=True, frozen=True):
    """One heartbeat of an access node to one status node, and what changed since the last.

    `generation` names a full synchronisation; within it `seq` counts 1, 2, 3 ... and `is_complete` says that with this
    beat the receiver knows every session that the sender has for it.
    """

    node: str
    incarnation: int
    generation: int
    seq: int
    is_complete: bool
    epoch: int
    deltas: list[Delta]


class BeatReply(msgspec.Struct, array_like=True, frozen=True):
    """`needs_resync`: the receiver missed something; start a new generation. `epoch` is the receiver's table's."""

    needs_resync: bool
    epoch: int
    lease_ms: int


class Lookup(msgspec.Struct, array_like=True, frozen=True):
    """Ask for up to 1,000 users that the receiver owns at `epoch`."""

    users: list[str]
    epoch: int


class SessionView(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One open session, as readers see it. `since` is in ms since the Unix epoch."""

    session: str
    device: str
    platform: str
    node: str
    state: State
    since: Timestamp


class UserStatus(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A user's status. `unknown` is said while the owner cannot tell; it never means offline."""

    state: Literal["online", "away", "busy", "invisible", "offline", "unknown"]
    sessions: tuple[SessionView, ...] = ()


class LookupReply(msgspec.Struct, array_like=True, frozen=True):
    """One status a user, in the order asked; None where the receiver does not own the user at its `epoch`."""

    epoch: int
    statuses: list[UserStatus | None]


OFFLINE = UserStatus("offline")
UNKNOWN = UserStatus("unknown")

BEAT = Method("status.beat", Beat, BeatReply)
LOOKUP = Method("status.lookup", Lookup, LookupReply)
