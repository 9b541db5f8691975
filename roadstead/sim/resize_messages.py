"""What the hosts of the resize history send to each other, beside the wire types of the cores themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

from base.ids import Epoch, Incarnation, NodeId
from status.api import Beat, BeatReply
from status.core.migration import NodeReport, Wished
from status.core.partitions import PartitionTable

__all__ = [
    "Answering",
    "Ask",
    "Beating",
    "Campaign",
    "Elected",
    "Given",
    "Lookup",
    "Operate",
    "Read",
    "Sign",
    "Signed",
    "TableIs",
    "Wish",
    "Write",
]


class _Message:
    """Messages show in the trace by their name: tables are long, and the trace is hashed."""

    __slots__ = ()

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Read(_Message):
    """What is the table?"""


@dataclass(frozen=True, slots=True)
class Write(_Message):
    """Compare and set."""

    expect: Epoch
    table: PartitionTable


@dataclass(frozen=True, slots=True)
class Wish:
    """What operators want, as the registry has it: the `number`th of these."""

    number: int = 0
    wished: Wished = field(default_factory=Wished)


@dataclass(frozen=True, slots=True)
class TableIs(_Message):
    """The table that the registry had when it answered, or that a node read, who may lead, and the wish."""

    table: PartitionTable
    leader: str = ""
    wish: Wish = field(default_factory=Wish)


@dataclass(frozen=True, slots=True)
class Campaign(_Message):
    """Ask for the leader's lock, or renew it."""

    number: int
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Elected(_Message):
    """The lock is yours; sign before you lead."""

    number: int
    incarnation: Incarnation
    term: Epoch


@dataclass(frozen=True, slots=True)
class Sign(_Message):
    """Write down that the sender leads, and tell who did before."""

    number: int
    incarnation: Incarnation
    term: Epoch


@dataclass(frozen=True, slots=True)
class Signed(_Message):
    """It is written; `last` led before, and this is the table that it left."""

    number: int
    incarnation: Incarnation
    term: Epoch
    last: str
    table: PartitionTable


@dataclass(frozen=True, slots=True)
class Ask(_Message):
    """A status node asks another for a serving lease, and reports."""

    number: int
    epoch: Epoch
    report: NodeReport
    needs_peers: bool


@dataclass(frozen=True, slots=True)
class Given(_Message):
    """What another status node gives: its own grant, the leader's if it leads, and its table to who is behind."""

    number: int
    incarnation: Incarnation
    epoch: Epoch
    is_granted: bool
    term: Epoch | None
    table: PartitionTable | None


@dataclass(frozen=True, slots=True)
class Beating(_Message):
    """An access node's beat, with a number for its answer."""

    number: int
    beat: Beat


@dataclass(frozen=True, slots=True)
class Answering(_Message):
    """What became of a beat; `incarnation` is of who sent it."""

    number: int
    incarnation: Incarnation
    reply: BeatReply


@dataclass(frozen=True, slots=True)
class Lookup(_Message):
    """A reader's question, by its table."""

    partition: int
    user: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Operate(_Message):
    """An operator wants this from now on; None: as it is. An abort is of the moves that the registry has then."""

    weights: tuple[tuple[NodeId, int], ...] | None = None
    is_paused: bool | None = None
    is_abort: bool = False
