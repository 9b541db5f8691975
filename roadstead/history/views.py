"""What several invariants need to know of a history: channels, what each device saw, who may see what, which bodies.

Each view is made on first use, by one pass.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import cached_property
from typing import TypeAlias

from roadstead.history.events import LogEntry, Read, ReadEntry, Subscribe, TimelineEntry
from roadstead.history.index import Claim, Device, History, Log

__all__ = ["Channel", "Counting", "Placed", "Views", "between"]

Placed: TypeAlias = Claim | ReadEntry | TimelineEntry
"""What stands at an offset, as somebody saw it."""


def between(ascending: list[int], after: int, upto: int) -> list[int]:
    """Return the numbers with after < number <= upto."""
    return ascending[bisect_right(ascending, after) : bisect_right(ascending, upto)]


class Channel:
    """All that anybody saw of one channel."""

    def __init__(self) -> None:
        self.at: dict[int, Placed] = {}
        self.users: set[str] = set()
        self.rewritten: list[tuple[int, Placed, Placed]] = []
        """An offset that was seen with two different things."""

    def put(self, offset: int, placed: Placed) -> None:
        """Say that this was seen at the offset."""
        was = self.at.setdefault(offset, placed)
        if was is not placed and (was.cid != placed.cid or was.seq != placed.seq):
            self.rewritten.append((offset, was, placed))

    @cached_property
    def offsets(self) -> list[int]:
        """All offsets that anybody saw, ascending."""
        return sorted(self.at)

    @cached_property
    def first_at(self) -> dict[tuple[int, int], int]:
        """The lowest offset of each (cid, seq)."""
        at = self.at
        return {(at[offset].cid, at[offset].seq): offset for offset in reversed(self.offsets)}


class Counting:
    """A log as unread counts see it."""

    def __init__(self, log: Log) -> None:
        ordered = sorted(log.by_seq.values(), key=_seq)
        self.countable: list[int] = []
        """Seqs that can be unread, ascending."""
        self.own: defaultdict[str, list[int]] = defaultdict(list)
        """Seqs of each sender's messages, ascending."""
        self.recalled: dict[int, int] = {}
        """Seq of a recalled message: seq of its first recall."""
        cseq = 0
        for entry in ordered:
            if entry.form == "message":
                self.own[entry.sender].append(entry.seq)
            elif entry.form == "recall":
                self.recalled.setdefault(entry.ref, entry.seq)
            if entry.cseq > cseq:
                cseq = entry.cseq
                self.countable.append(entry.seq)
        self._recalled_seqs = sorted(seq for seq in self.recalled if seq in set(self.countable))

    def unread(self, user: str, *, floor: int, upto: int) -> int:
        """Count what can be unread by the user, with floor < seq <= upto, as it was when `upto` was the newest.

        A user's own message reads all before it. What was recalled by then is not counted.
        """
        own = self.own.get(user, [])
        sent = bisect_right(own, upto)
        if sent:
            floor = max(floor, own[sent - 1])
        recalled = sum(self.recalled[seq] <= upto for seq in between(self._recalled_seqs, floor, upto))
        return len(between(self.countable, floor, upto)) - recalled


class Views:
    """The views of one history."""

    def __init__(self, history: History, *, shards: int = 1) -> None:
        self.history = history
        self.shards = shards
        """In how many the messages of the system are."""
        self._seqs: dict[tuple[int, str], list[int]] = {}
        self._shown: dict[tuple[int, str], list[int]] = {}

    @cached_property
    def channels(self) -> dict[str, Channel]:
        """All channels, by name."""
        channels: defaultdict[str, Channel] = defaultdict(Channel)
        for ((user, _), name), steps in self.history.steps.items():
            channel = channels[name]
            channel.users.add(user)
            for step in steps:
                if isinstance(step, Read):
                    for entry in step.entries:
                        channel.put(entry.offset, entry)
                elif not isinstance(step, Subscribe):
                    channel.put(*step)
        for timeline in self.history.timelines.values():
            channel = channels[timeline.channel]
            channel.users.add(timeline.user)
            for placed in timeline.entries:
                channel.put(placed.offset, placed)
        for log in self.history.logs.values():
            if log.channel:
                for logged in log.entries:
                    channels[log.channel].put(logged.seq, TimelineEntry(logged.seq, log.cid, logged.seq, logged.mid))
        return dict(channels)

    @cached_property
    def observed(self) -> dict[tuple[Device, int], set[int]]:
        """Seqs that reached each device, by conversation: pushed, read or shown."""
        observed: defaultdict[tuple[Device, int], set[int]] = defaultdict(set)
        for (device, _), steps in self.history.steps.items():
            for step in steps:
                if isinstance(step, Read):
                    for entry in step.entries:
                        observed[device, entry.cid].add(entry.seq)
                elif not isinstance(step, Subscribe):
                    claim = step[1]
                    observed[device, claim.cid].add(claim.seq)
        for _, display in self.history.displays:
            observed[(display.user, display.device), display.cid].update(entry.seq for entry in display.entries)
        return dict(observed)

    @cached_property
    def bodies(self) -> dict[tuple[int, int], set[str | None]]:
        """What may be shown of each (cid, seq) at one time or another; None: "recalled"."""
        bodies: defaultdict[tuple[int, int], set[str | None]] = defaultdict(set)
        entries = [(cid, entry) for cid, entry in self.history.logged()]
        seen: list[tuple[int, LogEntry | Claim]] = [*entries, *((claim.cid, claim) for claim in self.history.claims)]
        for cid, entry in seen:
            match entry.form:
                case "message" | "change":
                    bodies[cid, entry.seq].add(entry.digest)
                case "edit":
                    bodies[cid, entry.ref].add(entry.digest)
                case "recall":
                    bodies[cid, entry.ref].add(None)
        return dict(bodies)

    @cached_property
    def covers(self) -> dict[tuple[int, int], list[tuple[int, str | None]]]:
        """What each (cid, seq) that was edited or recalled was to show then: (seq of that, digest), None if recalled.

        Ascending, and nothing after a recall.
        """
        covers: defaultdict[tuple[int, int], list[tuple[int, str | None]]] = defaultdict(list)
        for cid, entry in sorted(self.history.logged(), key=lambda logged: (logged[0], logged[1].seq)):
            if entry.form in {"edit", "recall"}:
                found = covers[cid, entry.ref]
                if not found or found[-1][1] is not None:
                    found.append((entry.seq, None if entry.form == "recall" else entry.digest))
        return dict(covers)

    @cached_property
    def counting(self) -> dict[int, Counting]:
        """The logs as unread counts see them, by cid."""
        return {cid: Counting(log) for cid, log in self.history.logs.items()}

    def entitled_seqs(self, cid: int, user: str) -> list[int]:
        """Return the seqs of the final log that the user may see, ascending."""
        found = self._seqs.get((cid, user))
        if found is None:
            found = self._seqs[cid, user] = self._entitled(cid, user, sorted(self.history.logs[cid].by_seq))
        return found

    def shown_seqs(self, cid: int, user: str) -> list[int]:
        """Return the seqs of the messages in the final log that the user may see, ascending."""
        found = self._shown.get((cid, user))
        if found is None:
            by_seq = self.history.logs[cid].by_seq
            messages = [seq for seq in self.entitled_seqs(cid, user) if by_seq[seq].form == "message"]
            found = self._shown[cid, user] = messages
        return found

    def is_gap(self, device: Device, cid: int, seq: int) -> bool:
        """Return whether the device said that it has not loaded the entry."""
        gaps = self.history.gaps
        return (device, cid) in gaps and any(gap.after < seq < gap.before for gap in gaps[device, cid])

    def _entitled(self, cid: int, user: str, seqs: list[int]) -> list[int]:
        if cid not in self.history.members:
            return seqs
        ranges = sorted(self.history.entitled(cid, user), key=lambda range_: range_[0])
        found: list[int] = []
        for join, leave in ranges:
            until = len(seqs) if leave is None else bisect_right(seqs, leave)
            found.extend(seqs[bisect_left(seqs, max(join, found[-1] + 1 if found else join)) : until])
        return found


def _seq(entry: LogEntry) -> int:
    return entry.seq
