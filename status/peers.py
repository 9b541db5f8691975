"""What status nodes say among themselves.

status.ask         a node asks another for a serving lease, and reports: to the leader always, to all when it must
status.known       a leader in a registry that has lost the table asks who knows which
status.pull        the target of moves asks their source for what it lacks
status.cease       the target of moves has their source answer no lookups any more
status.census      what the receiver holds, counted
status.count       how many users and sessions are online in partitions of the receiver
status.sessions    who of them is behind one access node
status.events      the receiver's session events after a place in its log
status.events_end  where that log ends, once that is elsewhere than the sender knows
"""

from __future__ import annotations

import msgspec

from base.ids import Epoch, Incarnation, NodeId
from base.peer import Method
from status.core.events import Page, Place, SessionEvent
from status.core.handoff import Chunk, Pull
from status.core.migration import NodeReport
from status.core.partitions import TableDiff
from status.core.rollcall import Bookmark, Listed

__all__ = [
    "ASK",
    "CENSUS",
    "KNOWN",
    "PULL",
    "Ask",
    "Census",
    "CensusAsk",
    "Chunks",
    "Given",
    "Known",
    "KnownAsk",
    "LifeDigest",
]
__all__ += ["CEASE", "Cease", "Ceased", "Pulls"]
__all__ += ["COUNT", "SESSIONS", "Count", "CountAsk", "NodeCount", "SessionsAsk", "SessionsPart"]
__all__ += ["EVENTS", "EVENTS_END", "EventsAsk", "EventsEndAsk", "Snapshot", "Told"]


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """May I answer, by the table of this epoch? `needs_peers`: the leader alone is not enough any more."""

    epoch: Epoch
    needs_peers: bool
    report: NodeReport


class Given(msgspec.Struct, array_like=True, frozen=True):
    """What the other gives: its own grant, the leader's if it leads, and what leads to its table if that is newer."""

    epoch: Epoch
    is_granted: bool
    term: Epoch | None
    table: TableDiff | None


class KnownAsk(msgspec.Struct, array_like=True, frozen=True):
    """What is the newest table that you know? Ours is of this epoch, 0 for none."""

    epoch: Epoch


class Known(msgspec.Struct, array_like=True, frozen=True):
    """The sender's newest table is of this epoch; it comes along, as the registry keeps tables, if it is newer."""

    epoch: Epoch
    table: bytes | None


class Pulls(msgspec.Struct, array_like=True, frozen=True):
    """The next question of each move from the receiver to the sender, by the table of this epoch."""

    epoch: Epoch
    pulls: list[Pull]


class Chunks(msgspec.Struct, array_like=True, frozen=True):
    """An answer a question; None where the receiver is not the source of such a move, or not ready to be.

    `is_cut`: None also stands for what would have made the answer too large. Ask again.
    """

    chunks: list[Chunk | None]
    is_cut: bool


class Cease(msgspec.Struct, array_like=True, frozen=True):
    """Answer no lookups any more of what the sender has of you by these moves, (partition, move_id) each."""

    moves: list[tuple[int, Epoch]]


class Ceased(msgspec.Struct, array_like=True, frozen=True):
    """The sender answers none, and never will by these moves."""


class CensusAsk(msgspec.Struct, array_like=True, frozen=True):
    """What do you hold, by the table of this epoch or a newer one?"""

    epoch: Epoch


class LifeDigest(msgspec.Struct, array_like=True, frozen=True):
    """What is held of one life of an access node: open entries, and the XOR of their hashes."""

    node: NodeId
    incarnation: Incarnation
    entries: int
    xor: int


class Census(msgspec.Struct, array_like=True, frozen=True):
    """The partitions that the sender owns at `epoch`, the open entries of each, and those of each life over them all.

    `session_bytes` is about what one entry takes in a copy, with its user.
    """

    epoch: Epoch
    partitions: bytes
    entries: list[int]
    session_bytes: int
    lives: list[LifeDigest]


class CountAsk(msgspec.Struct, array_like=True, frozen=True):
    """How many are online in these partitions, which you own by the table of this epoch?"""

    epoch: Epoch
    partitions: bytes


class NodeCount(msgspec.Struct, array_like=True, frozen=True):
    """How many users and sessions are behind one access node."""

    node: NodeId
    users: int
    sessions: int


class Count(msgspec.Struct, array_like=True, frozen=True):
    """Users online, and users and sessions of each access node.

    `refused` partitions are not counted, `unsure` ones as far as they are known.
    """

    refused: bytes
    unsure: bytes
    users: int
    nodes: list[NodeCount]


class SessionsAsk(msgspec.Struct, array_like=True, frozen=True):
    """Who is behind the access node `node`, in these partitions, which you own by the table of this epoch?

    They ascend, and are listed from `begin` on, until `limit` sessions are.
    """

    epoch: Epoch
    partitions: bytes
    node: NodeId
    begin: Bookmark
    limit: int


class SessionsPart(msgspec.Struct, array_like=True, frozen=True):
    """The sender's part of a page of sessions, up to `reached`; None: of all that it was asked for.

    `refused` partitions are not listed, `unsure` ones as far as they are known.
    """

    refused: bytes
    unsure: bytes
    items: list[Listed]
    reached: Bookmark | None


class EventsAsk(msgspec.Struct, array_like=True, frozen=True):
    """What comes after a place; None is from now on. The item that makes it `limit` or more is the last."""

    place: Place | None
    limit: int


class Snapshot(msgspec.Struct, array_like=True, frozen=True, tag="r"):
    """A resync: all sessions that are open in the partition as of `user_seq`, each with its user, packed."""

    partition: int
    user_seq: str
    sessions: list[tuple[str, bytes]]


Told = SessionEvent | Snapshot
"""An item of the event feed."""


class EventsEndAsk(msgspec.Struct, array_like=True, frozen=True):
    """Where does your log end? To be answered once that is elsewhere than at `place`, or after `wait_ms`."""

    place: Place
    wait_ms: int


ASK = Method("status.ask", Ask, Given)
KNOWN = Method("status.known", KnownAsk, Known)
PULL = Method("status.pull", Pulls, Chunks)
CEASE = Method("status.cease", Cease, Ceased)
CENSUS = Method("status.census", CensusAsk, Census)
COUNT = Method("status.count", CountAsk, Count)
SESSIONS = Method("status.sessions", SessionsAsk, SessionsPart)
EVENTS = Method("status.events", EventsAsk, Page[Told])
EVENTS_END = Method("status.events_end", EventsEndAsk, Place)
