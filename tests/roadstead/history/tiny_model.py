"""The tiny system's parts: its bugs, its clients' state, and the server's state, which is the fold of a journal."""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Lock

from base.clock import SimClock
from roadstead.history.events import Event, Form, Key, LogEntry, Op
from roadstead.history.recorder import Recorder

USERS = ("ann", "bob", "cid", "dan")
SINGLES = {1: ("ann", "bob"), 2: ("ann", "cid"), 3: ("bob", "cid")}
GROUP = 4
FORMS: dict[Op, Form] = {"send": "message", "edit": "edit", "recall": "recall", "join": "change"}


class Bug(Enum):
    """Each is known to have happened."""

    SEQ_OUTSIDE_TRANSACTION = auto()
    ACK_BEFORE_COMMIT = auto()
    NO_DEDUPE = auto()
    QUEUE_OFFSET_BEFORE_WRITE = auto()
    SHARDED_BY_RECIPIENT = auto()
    NO_SYNC = auto()
    COUNTERS_NOT_IDEMPOTENT = auto()
    TOTAL_APART = auto()
    CURSOR_IS_NEWEST_SEEN = auto()
    RECALL_NOT_FOR_LATE_DEVICES = auto()
    BOUNDARY_IGNORED = auto()
    READ_POINTER_GOES_BACK = auto()
    PUSH_OUT_OF_ORDER = auto()
    VIEW_BY_ARRIVAL = auto()
    TIMELINE_ENTRY_LATE = auto()
    TWO_SEQUENCERS = auto()
    EDIT_REWRITES_LOG = auto()
    REFUSED_BUT_WRITTEN = auto()
    FAILURE_OF_WHAT_WAS_WRITTEN = auto()
    CONFLICT_ACCEPTED = auto()


class MemoryRecorder(Recorder):
    """Keeps events in a list that all recorders of a history share."""

    __slots__ = ("_events",)

    def __init__(self, events: list[Event], process: str, clock: SimClock) -> None:
        self.process = process
        self._events = events
        self._clock = clock
        self._lock = Lock()
        self._calls = iter(range(1, 1 << 30))

    def _write(self, event: Event) -> None:
        self._events.append(event)


@dataclass(eq=False)
class Request:
    device: Device
    connection: int
    call: int
    op: Op
    cmid: str
    cid: int
    body: str
    ref: int = 0

    @property
    def key(self) -> Key:
        return self.device.user, self.cmid


@dataclass(eq=False)
class Device:
    """A client: it sends again, under the same key, what it got no answer to, and reads what it was not pushed."""

    user: str
    name: str
    is_queued: bool
    recorder: MemoryRecorder
    connection: int = 0
    is_online: bool = False
    cursor: int = 0
    outstanding: list[Request] = field(default_factory=list)
    unanswered: list[Request] = field(default_factory=list)
    pushes: deque[tuple[int, int, int]] = field(default_factory=deque)
    notices: deque[str] = field(default_factory=deque)
    views: dict[int, dict[int, tuple[int, str | None]]] = field(default_factory=dict)

    @property
    def channel(self) -> str:
        return f"inbox:{self.user}"


@dataclass
class State:
    """What the journal says."""

    logs: dict[int, list[LogEntry]] = field(default_factory=lambda: {cid: [] for cid in (*SINGLES, GROUP)})
    timelines: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: {user: [] for user in USERS})
    keys: dict[Key, tuple[int, int, int, str]] = field(default_factory=dict)
    joined: dict[tuple[int, str], int] = field(default_factory=dict)
    read: dict[tuple[str, int], int] = field(default_factory=dict)
    queue: list[Request] = field(default_factory=list)
    refused: set[Key] = field(default_factory=set)

    def apply(self, record: tuple[object, ...]) -> None:
        match record:
            case ("entry", int(cid), LogEntry() as entry, dict(offsets)):
                insort(self.logs[cid], entry, key=lambda one: one.seq)
                self.keys[entry.sender, entry.client_msg_id] = cid, entry.seq, entry.mid, entry.digest
                if entry.form == "change":
                    self.joined[cid, entry.sender] = entry.seq
                for user, offset in offsets.items():
                    insort(self.timelines[user], (offset, cid, entry.seq))
            case ("offset", str(user), int(offset), int(cid), int(seq)):
                insort(self.timelines[user], (offset, cid, seq))
            case ("read", str(user), int(cid), int(seq)):
                self.read[user, cid] = seq
            case ("enqueue", Request() as request):
                self.queue.append(request)
            case ("dequeue", bool(is_refused)):
                request = self.queue.pop(0)
                if is_refused:
                    self.refused.add(request.key)
            case _:
                raise AssertionError(record)

    def head(self, user: str) -> int:
        return self.timelines[user][-1][0] if self.timelines[user] else 0

    def members(self, cid: int) -> list[str]:
        return [user for user in USERS if (cid, user) in self.joined]

    def entry(self, cid: int, seq: int) -> LogEntry:
        return next(entry for entry in self.logs[cid] if entry.seq == seq)

    def is_by(self, cid: int, seq: int, user: str) -> bool:
        return any(entry.seq == seq and entry.sender == user for entry in self.logs[cid])

    def is_recalled(self, cid: int, seq: int) -> bool:
        return any(entry.form == "recall" and entry.ref == seq for entry in self.logs[cid])


def initial() -> State:
    state = State()
    for cid, users in SINGLES.items():
        state.joined.update({(cid, user): 1 for user in users})
    state.joined.update({(GROUP, user): 1 for user in USERS[:3]})  # dan joins later
    return state
