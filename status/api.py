"""Wire types of the status cluster, for whoever talks to it.

Peer methods, served by status nodes:

    status.beat      an access node reports its sessions and renews its lease
    status.lookup    anybody asks who is online, or what one viewer may see of it
    status.watch     an access node changes of whom it wants to be told, on behalf of which viewers
    status.watched   it asserts that, by a digest

Pushed by status nodes to access nodes:

    status.notice    what viewers see from now on; the answers of `status.watch` come this way, too
    status.evict     a session has to go, since its user is connected elsewhere: said until it is gone

What status nodes say among themselves is in `status.peers`.

Sessions travel *packed* from the access node that holds them to the reader that unpacks them (`status.core.records`):
whatever is between the two moves bytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation
from base.peer import Method
from status.core.partitions import TableDiff
from status.core.visibility import EVERYONE, Audience, Presence
from status.core.watches import Notice, WatchDigest

__all__ = [
    "BEAT",
    "LOOKUP",
    "LOOKUP_USERS_MAX",
    "SERVICE",
    "Beat",
    "BeatReply",
    "Closed",
    "Opened",
    "SessionView",
    "State",
]
__all__ += [
    "Audit",
    "Lookup",
    "LookupReply",
    "Shown",
    "UserStatus",
    "pack_partitions",
    "plain",
    "session_json",
    "status_of",
    "unpack_partitions",
]
__all__ += ["OFFLINE", "PLAIN_BYTES_MAX", "REFUSED", "UNKNOWN", "UNKNOWN_SHOWN", "Stamp"]
__all__ += ["EVICT", "NOTICE", "WATCH", "WATCHED", "Evict", "Notices", "Watch", "WatchReply", "Watched", "WatchedReply"]
__all__ += ["audience_of", "is_public", "said_at"]

assert sys.byteorder == "little", "partition numbers travel as the machine has them"

SERVICE = "status"
LOOKUP_USERS_MAX = 1_000

State = Literal["online", "away", "busy", "invisible"]


class Opened(msgspec.Struct, tag="o", array_like=True, frozen=True, gc=False):
    """A session was opened or changed. `conn_seq` is its connection's number in its access node's life.

    Times are in ms since the Unix epoch. `audience` None: this session says nothing about who may see the user.
    """

    user: str
    session: str
    conn_seq: int
    device: str
    platform: str
    state: State
    since: Timestamp
    last_active: Timestamp = Timestamp(0)
    audience: Audience | None = None

    def leaves_trace(self) -> bool:
        """Return whether its end may show as when the user was last seen: not if it is one that hides the user."""
        return self.state != "invisible" and (self.audience is None or self.audience.mode == "everyone")


class Closed(msgspec.Struct, tag="c", array_like=True, frozen=True, gc=False):
    """A session ended."""

    user: str
    session: str
    conn_seq: int


class SessionView(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One open session, as readers see it. Times are in ms since the Unix epoch.

    The audience is for whoever decides what a viewer sees. It never leaves the system.
    """

    session: str
    device: str
    platform: str
    node: str
    state: State
    since: Timestamp
    last_active: Timestamp = Timestamp(0)
    audience: Audience | None = None


class UserStatus(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A user's status. `unknown` is said while the owner cannot tell; it never means offline.

    `last_seen` is when everybody could see the user last, in ms since the Unix epoch: for most, when the last session
    ended. None while a session is open that the reader may see, or where that is not known any more.
    """

    state: Literal["online", "away", "busy", "invisible", "offline", "unknown"]
    sessions: tuple[SessionView, ...] = ()
    last_seen: Timestamp | None = None


OFFLINE = UserStatus("offline")
UNKNOWN = UserStatus("unknown")

# ---------------------------------------------------------------- beats


class Audit(msgspec.Struct, array_like=True, frozen=True):
    """What the sender has in some partitions, together: partition numbers, and the digest of their open entries."""

    partitions: bytes
    entries: int
    xor: int


class Stamp(msgspec.Struct, array_like=True, frozen=True):
    """A status node's life and clock, and since when it knows the life of the access node that it answers.

    Of what that life told before, it knows nothing.
    """

    incarnation: Incarnation = Incarnation(0)
    at: Instant = Instant(0)
    since: Instant = Instant(-1)


class Beat(msgspec.Struct, array_like=True, frozen=True):
    """One heartbeat of an access node to one status node, with its news of the partitions that it routes there.

    `partitions`, `users` and `entries` go together; entries are packed. Of the partitions in `floors` they are all that
    the sender has, up to the seq `floor`. `echo` is the last stamp that the receiver gave, once everything was told.
    """

    incarnation: Incarnation
    epoch: Epoch
    echo: Stamp
    partitions: bytes = b""
    users: list[str] = []
    entries: list[bytes] = []
    floors: bytes = b""
    floor: int = 0
    audits: tuple[Audit, ...] = ()


class BeatReply(msgspec.Struct, array_like=True, frozen=True):
    """What became of a beat.

    `is_heard` False: nothing of it was taken. `stamp` is to be echoed. For `left_ms` from when the beat was sent, the
    receiver shows the sender's sessions. News of `refused` partitions was not taken; of `mismatched` ones everything
    must be told. `table` leads from the sender's table to the receiver's.
    """

    is_heard: bool
    stamp: Stamp
    epoch: Epoch
    left_ms: int
    refused: bytes = b""
    mismatched: bytes = b""
    table: TableDiff | None = None


# ---------------------------------------------------------------- lookups


class Lookup(msgspec.Struct, array_like=True, frozen=True):
    """Ask for up to 1,000 users that the receiver owns at `epoch`; `partitions` are theirs, in their order.

    With a `viewer`, for what that user may see of them.
    """

    epoch: Epoch
    partitions: bytes
    users: list[str]
    viewer: str | None = None


Shown = None | bool | int | bytes | tuple[bytes, ...]
"""A user as the wire has it: None was never seen, a number is when everybody saw it last, bytes are the entry of the
one open session, several those of several. `UNKNOWN_SHOWN` and `REFUSED` say that there is no answer."""

REFUSED = False
"""The receiver may not answer for this user."""
UNKNOWN_SHOWN = True
"""The receiver is the owner and cannot tell yet."""


class LookupReply(msgspec.Struct, array_like=True, frozen=True):
    """One answer a user, in the order asked. `table` leads from the asker's table to the receiver's, if that is newer.

    What a viewer sees is in `seen`; `shown` then says nothing but who was refused.
    """

    epoch: Epoch
    shown: list[Shown]
    table: TableDiff | None = None
    seen: list[Presence] | None = None

    def completed(self, places: Sequence[int], later: LookupReply) -> LookupReply:
        """Return a later reply, about the users at these places only, with this one's answers for all others."""
        shown = list(self.shown)
        seen = list(self.seen) if self.seen is not None else None
        for number, place in enumerate(places):
            shown[place] = later.shown[number]
            if seen is not None and later.seen is not None:
                seen[place] = later.seen[number]
        return LookupReply(later.epoch, shown, later.table, seen)


_session_decoder = msgspec.msgpack.Decoder(SessionView)
_RANK: dict[str, int] = {"busy": 3, "online": 2, "away": 1, "invisible": 0}
HEADER_BYTES = 15
"""Of an entry, before the packed session: see `status.core.records`."""
PLAIN_BYTES_MAX = 1_000
"""An entry that is longer has an audience that lists users: nothing else in it can be long."""


def status_of(shown: Shown) -> UserStatus:
    """Unpack what a reply shows of a user; REFUSED is unknown too. Of several sessions the best state counts."""
    if shown is None:
        return OFFLINE
    if isinstance(shown, bool):
        return UNKNOWN
    if isinstance(shown, int):
        return UserStatus("offline", (), Timestamp(shown))
    entries = (shown,) if isinstance(shown, bytes) else shown
    views = tuple(_session_decoder.decode(memoryview(entry)[HEADER_BYTES:]) for entry in entries)
    return UserStatus(max(views, key=lambda view: _RANK[view.state]).state, views)


def plain(entry: bytes) -> bytes:
    """Return a packed session as short as nearly all are: if it is longer, without its audience.

    For whoever does not decide what a viewer sees. An audience may be a hundred times as long as all else.
    """
    if len(entry) <= PLAIN_BYTES_MAX:
        return entry
    view = _session_decoder.decode(memoryview(entry)[HEADER_BYTES:])
    return entry[:HEADER_BYTES] + msgspec.msgpack.encode(msgspec.structs.replace(view, audience=None))


def said_at(view: SessionView | None) -> tuple[bool, int, int, str]:
    """Return by which the sessions of a user have their say on the audience: of those that say it, the greatest.

    None, and whatever says nothing, is the least.
    """
    if view is None or view.audience is None:
        return False, 0, 0, ""
    return True, view.last_active, view.since, view.session


def audience_of(status: UserStatus) -> Audience:
    """Return who may see the user: of the sessions that say it, the one reported last decides.

    `status` must have every session that there may be, also those of access nodes that are late: whoever leaves one
    out may show a user to those whom it denies.
    """
    newest = max(status.sessions, key=said_at, default=None)
    return EVERYONE if newest is None or newest.audience is None else newest.audience


def is_public(status: UserStatus) -> bool:
    """Return whether everybody sees that the user is there."""
    return bool(status.sessions) and status.state != "invisible" and audience_of(status).mode == "everyone"


def session_json(view: SessionView) -> dict[str, Any]:
    """Return a session as the HTTP APIs show it. Whom its user shows it to is nobody else's business."""
    shown = msgspec.structs.asdict(view)
    del shown["audience"]
    return shown


def pack_partitions(partitions: Iterable[int]) -> bytes:
    """Return partition numbers as the wire has them: two bytes each, the lower one first."""
    return array("H", partitions).tobytes()


def unpack_partitions(packed: bytes) -> array[int]:
    """Return the partition numbers. Raises ValueError for an odd number of bytes."""
    return array("H", packed)


# ---------------------------------------------------------------- watches


class Watch(msgspec.Struct, array_like=True, frozen=True):
    """Change what the sender watches here: viewers by user. `is_anew`: forget first what it watched before."""

    epoch: Epoch
    is_anew: bool
    added: dict[str, list[str]]
    removed: dict[str, list[str]]


class WatchReply(msgspec.Struct, array_like=True, frozen=True):
    """What became of it. Snapshots for whom it added were pushed before.

    `refused` users are not owned here, or the sender does not know since when; `limited` ones have too many viewers, or
    the sender watches too many. `is_known` False: nothing was taken, as the sender's watches were forgotten here; it
    must say everything anew.
    """

    refused: list[str]
    limited: list[str]
    table: TableDiff | None = None
    is_known: bool = True


class Watched(msgspec.Struct, array_like=True, frozen=True):
    """This is the digest of all that the sender watches here."""

    epoch: Epoch
    digest: WatchDigest


class WatchedReply(msgspec.Struct, array_like=True, frozen=True):
    """Whether it is. If not, the sender says everything anew. By different tables nothing can be said."""

    is_right: bool
    table: TableDiff | None = None


class Notices(msgspec.Struct, array_like=True, frozen=True):
    """What to tell viewers, in order."""

    notices: list[Notice]


class Evict(msgspec.Struct, array_like=True, frozen=True):
    """The session has to go, and why, for people."""

    user: str
    session: str
    reason: str


BEAT = Method("status.beat", Beat, BeatReply)
LOOKUP = Method("status.lookup", Lookup, LookupReply)
WATCH = Method("status.watch", Watch, WatchReply)
WATCHED = Method("status.watched", Watched, WatchedReply)
NOTICE = Method("status.notice", Notices, Notices)
EVICT = Method("status.evict", Evict, Evict)
