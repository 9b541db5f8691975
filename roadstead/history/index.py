"""A history, indexed once for all invariants: O(1) an event.

The many are deliveries, and most of them say the same: message 7 of conversation 3 is this one. So what was seen of a
message is kept once for each way in which it was seen, as a `Claim`; a good history has one claim a message, whatever
the number of its readers. Devices keep only (offset, claim), in the order in which they got them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from roadstead.history.events import (
    Deliver,
    Display,
    Event,
    Failed,
    Failure,
    Fault,
    FinalLog,
    FinalTimeline,
    Form,
    Gap,
    Info,
    Invoke,
    Key,
    LogEntry,
    Members,
    Mode,
    Ok,
    Queued,
    Quiet,
    Read,
    Subscribe,
    TimelineEntry,
    UnreadObs,
)
from roadstead.history.spans import Stamp

__all__ = ["Attempt", "Claim", "Device", "History", "Log", "Seen", "Step", "Timeline", "Written"]

Device: TypeAlias = tuple[str, str]
"""(user, device)."""


class Claim(NamedTuple):
    """One way in which a message was seen."""

    cid: int
    seq: int
    mid: int
    sender: str
    client_msg_id: str
    digest: str
    form: Form
    ref: int

    @property
    def key(self) -> Key:
        """The key under which it was written; empty names: by the system itself."""
        return self.sender, self.client_msg_id


class Seen(NamedTuple):
    """The first time that something was seen, and by whom; `by` is empty for what an answer said."""

    stamp: Stamp
    by: Device


Step: TypeAlias = tuple[int, Claim] | Subscribe | Read
"""What happened next on one channel of one device: (offset, what was delivered), or the position changed."""


class Attempt:
    """One call, and how it ended."""

    __slots__ = ("failed", "invoke", "ok", "ok_stamp", "queued", "stamp")

    def __init__(self, invoke: Invoke, stamp: Stamp) -> None:
        self.invoke = invoke
        self.stamp = stamp
        self.ok: Ok | None = None
        self.ok_stamp: Stamp | None = None
        self.queued: Stamp | None = None
        self.failed = False


class Written:
    """What one key stands for: all attempts to write it."""

    __slots__ = ("attempts", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.attempts: list[Attempt] = []

    @property
    def oks(self) -> list[Attempt]:
        """The attempts that were acknowledged as durable."""
        return [attempt for attempt in self.attempts if attempt.ok is not None]

    @property
    def digests(self) -> frozenset[str]:
        """The bodies that it may have: of the attempts that were acknowledged, or else of those not refused."""
        sure = self.oks or [attempt for attempt in self.attempts if not attempt.failed]
        return frozenset(attempt.invoke.digest for attempt in sure)

    @property
    def acknowledged(self) -> Stamp | None:
        """When it was first acknowledged as durable."""
        return min((attempt.ok_stamp for attempt in self.attempts if attempt.ok_stamp), key=_order, default=None)

    @property
    def effective(self) -> tuple[Stamp, Stamp] | None:
        """The first and the last attempt that may have written it, None if all were refused.

        What was tried after an acknowledgement wrote nothing.
        """
        acknowledged = self.acknowledged
        began = [
            attempt.stamp
            for attempt in self.attempts
            if not attempt.failed and (acknowledged is None or not acknowledged.is_before(attempt.stamp))
        ]
        return (began[0], began[-1]) if began else None


class Log:
    """A conversation's final log."""

    __slots__ = ("by_seq", "channel", "cid", "entries", "first", "mode")

    def __init__(self, event: FinalLog) -> None:
        self.cid = event.cid
        self.mode: Mode = event.mode
        self.channel = event.channel
        self.first = event.first
        self.entries: list[LogEntry] = []
        self.by_seq: dict[int, LogEntry] = {}

    def add(self, entries: Iterable[LogEntry]) -> None:
        """Add the next page."""
        for entry in entries:
            self.entries.append(entry)
            self.by_seq[entry.seq] = entry


class Timeline:
    """A user's final timeline."""

    __slots__ = ("channel", "entries", "first", "mode", "user")

    def __init__(self, event: FinalTimeline) -> None:
        self.user = event.user
        self.channel = event.channel
        self.mode: Mode = event.mode
        self.first = event.first
        self.entries: list[TimelineEntry] = []


class History:
    """The index. Build it from events in the order of `load`: ascending times, each process in its own order."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.counts: Counter[str] = Counter()
        self.written: dict[Key, Written] = {}
        self.unmatched: list[str] = []
        """Outcomes of calls that were never invoked: the record is broken."""
        self.claims: dict[Claim, Seen] = {}
        self.placed: dict[tuple[int, int, int], Seen] = {}
        """(cid, seq, mid) that an answer, a page or a view named, where they say no more."""
        self.steps: defaultdict[tuple[Device, str], list[Step]] = defaultdict(list)
        self.displays: list[tuple[Stamp, Display]] = []
        self.reads: list[tuple[Stamp, Read]] = []
        self.gaps: defaultdict[tuple[Device, int], list[Gap]] = defaultdict(list)
        self.unread: list[tuple[Stamp, UnreadObs]] = []
        self.failures: defaultdict[Key, list[tuple[Stamp, Failure]]] = defaultdict(list)
        self.faults: list[tuple[Stamp, Fault]] = []
        self.members: defaultdict[int, defaultdict[str, list[tuple[int, int | None]]]]
        self.members = defaultdict(lambda: defaultdict(list))
        self.quiet: Stamp | None = None
        self.quiet_devices: frozenset[Device] = frozenset()
        self.logs: dict[int, Log] = {}
        self.logged_keys: defaultdict[Key, list[tuple[int, LogEntry]]] = defaultdict(list)
        self.timelines: dict[str, Timeline] = {}
        self._calls: dict[tuple[str, int], Attempt] = {}
        self._own: dict[Claim, Claim] = {}
        at = 0
        for order, event in enumerate(events):
            assert event.at >= at, "events come in the order of their times"
            at = event.at
            self._add(event, order)

    def entitled(self, cid: int, user: str) -> list[tuple[int, int | None]]:
        """Return the ranges of seqs that the user may see, both ends included, None: to the end."""
        return self.members[cid][user] if cid in self.members and user in self.members[cid] else []

    def may_see(self, cid: int, user: str, seq: int) -> bool:
        """Return whether the user may see the entry. True where nobody said who the members are."""
        if cid not in self.members:
            return True
        return any(join <= seq and (leave is None or seq <= leave) for join, leave in self.entitled(cid, user))

    def log_of(self, key: Key) -> list[tuple[int, LogEntry]]:
        """Return (cid, entry) of all entries that the final logs have under the key: one, in a good history."""
        return self.logged_keys.get(key, [])

    def place_of(self, written: Written) -> tuple[int, int] | None:
        """Return (cid, seq) of what was written, by the log or else by its acknowledgement; None if unknown."""
        for cid, entry in self.log_of(written.key):
            return cid, entry.seq
        for attempt in written.oks:
            if attempt.ok is not None and attempt.ok.mid:
                return attempt.ok.cid, attempt.ok.seq
        return None

    def logged(self) -> Iterator[tuple[int, LogEntry]]:
        """Yield (cid, entry) of all final logs."""
        for cid, log in self.logs.items():
            for entry in log.entries:
                yield cid, entry

    def is_after_quiet(self, stamp: Stamp) -> bool:
        """Return whether nothing may be missing any more at this event."""
        return self.quiet is not None and self.quiet.is_before(stamp)

    # ---------------------------------------------------------------- building

    def _add(self, event: Event, order: int) -> None:
        if isinstance(event, Deliver):  # by far the most
            self._add_deliver(event, order)
            return
        stamp = Stamp(event.at, event.process, order)
        self.counts[_NAMES[type(event)]] += 1
        match event:
            case Invoke():
                self._add_invoke(event, stamp)
            case Ok() | Failed() | Info() | Queued():
                self._add_outcome(event, stamp)
            case Failure():
                self.failures[event.user, event.client_msg_id].append((stamp, event))
            case Subscribe():
                self.steps[(event.user, event.device), event.channel].append(event)
            case Read():
                self._add_read(event, stamp)
            case Gap():
                self.gaps[(event.user, event.device), event.cid].append(event)
            case Display():
                self._add_display(event, stamp)
            case UnreadObs():
                self.unread.append((stamp, event))
            case _:
                self._add_world(event, stamp)

    def _add_world(self, event: Event, stamp: Stamp) -> None:
        match event:
            case Fault():
                self.faults.append((stamp, event))
            case Members():
                self.members[event.cid][event.user].append((event.join_seq, event.leave_seq))
            case Quiet():
                self.quiet = stamp
                self.quiet_devices = frozenset(event.devices)
            case FinalLog():
                if event.cid not in self.logs:
                    self.logs[event.cid] = Log(event)
                self.logs[event.cid].add(event.entries)
                for entry in event.entries:
                    self.logged_keys[entry.sender, entry.client_msg_id].append((event.cid, entry))
                self.counts["log entries"] += len(event.entries)
            case FinalTimeline():
                timeline = self.timelines.setdefault(event.channel, Timeline(event))
                timeline.entries.extend(event.entries)
                self.counts["timeline entries"] += len(event.entries)
            case _:
                raise AssertionError(f"an event that nobody indexes: {event}")

    def _add_deliver(self, event: Deliver, order: int) -> None:
        self.counts["deliveries"] += 1
        claim = Claim(
            event.cid,
            event.seq,
            event.mid,
            event.sender,
            event.client_msg_id,
            event.digest,
            event.form,
            event.ref,
        )
        device = event.user, event.device
        own = self._own.get(claim)
        if own is None:
            own = self._own[claim] = claim
            self.claims[claim] = Seen(Stamp(event.at, event.process, order), device)
        self.steps[device, event.channel].append((event.offset, own))

    def _add_invoke(self, event: Invoke, stamp: Stamp) -> None:
        self.counts[f"{event.op} calls"] += 1
        attempt = self._calls[event.process, event.call] = Attempt(event, stamp)
        key = event.user, event.client_msg_id
        if key not in self.written:
            self.written[key] = Written(key)
        self.written[key].attempts.append(attempt)

    def _add_outcome(self, event: Ok | Failed | Info | Queued, stamp: Stamp) -> None:
        attempt = self._calls.get((event.process, event.call))
        if attempt is None:
            self.unmatched.append(f"process {event.process} has an outcome of call {event.call}, which nobody made")
            return
        match event:
            case Ok():
                attempt.ok, attempt.ok_stamp = event, stamp
                if event.mid:
                    self._place((event.cid, event.seq, event.mid), stamp, ("", ""))
            case Failed():
                attempt.failed = True
            case Queued():
                attempt.queued = stamp
            case Info():
                pass  # a call without an outcome is the same

    def _add_read(self, event: Read, stamp: Stamp) -> None:
        self.counts["read entries"] += len(event.entries)
        device = event.user, event.device
        self.reads.append((stamp, event))
        self.steps[device, event.channel].append(event)
        for entry in event.entries:
            self._place((entry.cid, entry.seq, entry.mid), stamp, device)

    def _add_display(self, event: Display, stamp: Stamp) -> None:
        self.counts["displayed entries"] += len(event.entries)
        self.displays.append((stamp, event))
        for entry in event.entries:
            self._place((event.cid, entry.seq, entry.mid), stamp, (event.user, event.device))

    def _place(self, place: tuple[int, int, int], stamp: Stamp, device: Device) -> None:
        if place not in self.placed:
            self.placed[place] = Seen(stamp, device)


def _order(stamp: Stamp) -> int:
    return stamp.order


_NAMES: dict[type, str] = {
    Invoke: "calls",
    Ok: "acknowledged",
    Failed: "refused",
    Info: "unknown outcomes",
    Queued: "queued",
    Failure: "failure notices",
    Subscribe: "subscriptions",
    Read: "reads",
    Gap: "gaps",
    Display: "displays",
    UnreadObs: "unread observations",
    Fault: "faults",
    Members: "memberships",
    Quiet: "quiet points",
    FinalLog: "log pages",
    FinalTimeline: "timeline pages",
}
