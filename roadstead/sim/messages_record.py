"""Writes a simulated history down for the checker (`roadstead.history`): in memory, at true time.

What is only in a user's timeline, the notes, is put down as a conversation of the user with nobody (`note_cid`), whose
seqs are the offsets: so the checker also sees that no note is lost, doubled or changed.

A device that reads its list anew, since its memory or what follows its position is gone, is another device from then
on, for which what is older than the list is a gap that it knows of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from im.core.facts import Key
from im.core.model import Form, Message
from roadstead.client.conversation import Conversation
from roadstead.client.rows import Publication
from roadstead.history.events import (
    Deliver,
    Display,
    DisplayEntry,
    Event,
    Failed,
    Failure,
    Fault,
    FinalLog,
    FinalTimeline,
    Gap,
    Invoke,
    LogEntry,
    Members,
    Ok,
    Op,
    Queued,
    Quiet,
    Read,
    ReadEntry,
    TimelineEntry,
    UnreadObs,
    UnreadPart,
)
from roadstead.history.events import Form as FormName
from roadstead.history.events import Subscribe as Subscribed
from roadstead.sim.messages_store import Entries, Rows

__all__ = ["Record", "note_cid"]

_FORMS: Mapping[str, FormName] = {"message": "message", "edit": "edit", "recall": "recall", "group": "change"}
_FORMS_OF: Mapping[int, FormName] = {
    Form.MESSAGE: "message",
    Form.EDIT: "edit",
    Form.RECALL: "recall",
    Form.EVENT: "change",
}
NOTES_MAX = 1_000_000


def note_cid(user: str) -> int:
    """Return what stands for the conversation that a user's notes are in."""
    return -int(user)


def _note_mid(user: str, offset: int) -> int:
    return -(int(user) * NOTES_MAX + offset)


def _body(data: Publication) -> str | None:
    """Return what a message shows: its body, which stands for itself, or None if it was recalled."""
    return None if data.get("recalled") else str(data["body"])


class Record:
    """The events of one process: a device, or the referee."""

    def __init__(self, events: list[Event], process: str, now: Callable[[], int], *, user: str = "") -> None:
        """`events` is shared by all processes of a history, `now` is true time."""
        self._events = events
        self._process = process
        self._now = now
        self._user = user
        self._channel = f"inbox:{user}"
        self._device = ""
        self._calls = 0

    def now(self) -> int:
        """Return the true time."""
        return self._now()

    # ------------------------------------------------------------ calls

    def invoke(self, op: Op, key: str, cid: int | None, body: str, ref: int) -> int:
        """A call is made. Returns its number."""
        self._calls += 1
        device = self._process
        self._events.append(
            Invoke(self._now(), self._process, self._calls, op, self._user, device, key, cid, body, ref)
        )
        return self._calls

    def ok(self, call: int, cid: int, seq: int, mid: int = 0) -> None:
        """It was acknowledged."""
        self._events.append(Ok(self._now(), self._process, call, cid, seq, mid))

    def queued(self, call: int) -> None:
        """It was queued."""
        self._events.append(Queued(self._now(), self._process, call))

    def fail(self, call: int, why: str) -> None:
        """It was refused."""
        self._events.append(Failed(self._now(), self._process, call, why))

    def failure(self, key: str) -> None:
        """The device was told that a queued message failed."""
        self._events.append(Failure(self._now(), self._process, self._user, self._device, key))

    # ------------------------------------------------------------ what a device is told

    def began(self, generation: int, timeline: int, ends: Mapping[int, int]) -> None:
        """The device begins with a list: what is before its ends was not read."""
        self._device = f"{self._process}.{generation}"
        self.subscribed(timeline, is_recovered=False)
        for cid, end in [*ends.items(), (note_cid(self._user), timeline)]:
            self._events.append(Gap(self._now(), self._process, self._user, self._device, cid, 0, end + 1))

    @property
    def device(self) -> tuple[str, str]:
        """The device as it is called now, with its user."""
        return self._user, self._device

    def subscribed(self, since: int, *, is_recovered: bool) -> None:
        """The inbox goes on after a position."""
        self._events.append(
            Subscribed(self._now(), self._process, self._user, self._device, self._channel, since, is_recovered)
        )

    def told(self, data: Publication, offset: int) -> None:
        """A publication is handed to the view: from the timeline at an offset, or only pushed (0)."""
        kind = data["kind"]
        who = self._now(), self._process, self._user, self._device
        if kind not in _FORMS:
            if offset:
                cid, mid, said = note_cid(self._user), _note_mid(self._user, offset), repr(data["body"])
                self._events.append(Deliver(*who, self._channel, offset, cid, offset, mid, "", "", said, "change"))
            return
        cid, seq, mid = int(data["cid"]), data["seq"], int(data["mid"])
        if offset and "edited" not in data and "recalled" not in data:
            digest = str(data["body"]) if kind in {"message", "edit"} else ""
            names = data["from"], data["client_msg_id"]
            ref = data.get("target", 0)
            self._events.append(Deliver(*who, self._channel, offset, cid, seq, mid, *names, digest, _FORMS[kind], ref))
        elif offset:
            entries = (ReadEntry(offset, cid, seq, mid, _body(data)),)
            self._events.append(Read(*who, self._channel, offset - 1, offset, offset, entries))
        else:
            self.page(cid, seq - 1, seq, seq, [data])

    def page(self, cid: int, since: int, reached: int, head: int, page: Sequence[Publication]) -> None:
        """A stretch of a conversation was read."""
        entries = tuple(
            ReadEntry(data["seq"], cid, data["seq"], int(data["mid"]), _body(data) if data["kind"] == "message" else "")
            for data in page
        )
        who = self._now(), self._process, self._user, self._device
        self._events.append(Read(*who, f"conv:{cid}", since, reached, head, entries, cid))

    def synced(self, since: int, head: int, page: Entries) -> None:
        """A page of the timeline was read."""
        entries = tuple(self._read_entry(offset, data) for offset, data in page)
        reached = page[-1][0] if page else max(since, head)
        who = self._now(), self._process, self._user, self._device
        self._events.append(Read(*who, self._channel, since, reached, head, entries))

    def _read_entry(self, offset: int, data: Publication) -> ReadEntry:
        if data["kind"] not in _FORMS:
            return ReadEntry(offset, note_cid(self._user), offset, _note_mid(self._user, offset), "")
        digest = _body(data) if data["kind"] == "message" else ""
        return ReadEntry(offset, int(data["cid"]), data["seq"], int(data["mid"]), digest)

    def unread(self, total: int, listed: Sequence[Publication], asked_at: int) -> None:
        """A list was read, with what is unread."""
        parts = tuple(UnreadPart(int(one["cid"]), one["unread"], one["read_seq"], one["max_seq"]) for one in listed)
        who = self._now(), self._process, self._user, self._device
        self._events.append(UnreadObs(*who, total, parts, asked_at))

    def missing(self, cid: int, after: int, before: int) -> None:
        """The device has not loaded what is between these seqs."""
        self._events.append(Gap(self._now(), self._process, self._user, self._device, cid, after, before))

    def shown(self, conversation: Conversation, first: int = 1) -> None:
        """The device shows a conversation from a seq on; what is beyond a gap is not looked at."""
        rows = [row.data for row in conversation.rows() if first <= row.seq <= conversation.hi]
        rows.sort(key=lambda data: data["seq"])
        entries = tuple(
            DisplayEntry(data["seq"], int(data["mid"]), _body(data)) for data in rows if data["kind"] == "message"
        )
        who = self._now(), self._process, self._user, self._device
        self._events.append(Display(*who, int(conversation.cid), entries))

    # ------------------------------------------------------------ the referee

    def fault(self, kind: str, target: str) -> None:
        """Something was broken."""
        self._events.append(Fault(self._now(), self._process, kind, target))

    def quiet(self, devices: Sequence[tuple[str, str]]) -> None:
        """All is well, and all that was to come came."""
        self._events.append(Quiet(self._now(), self._process, tuple(devices)))

    def settle(self, waited: Collection[Key]) -> None:
        """Say of the calls that were never answered which ones queued something: the rows know.

        Who tried again and was refused then knows what came of it, if no notice said so.
        """
        answered: set[tuple[str, int]] = set()
        refused: set[tuple[str, int]] = set()
        noticed: set[Key] = set()
        for event in self._events:
            if isinstance(event, Ok | Failed | Queued):
                answered.add((event.process, event.call))
                if isinstance(event, Failed):
                    refused.add((event.process, event.call))
            elif isinstance(event, Failure):
                noticed.add((event.user, event.client_msg_id))
        invokes = [event for event in self._events if isinstance(event, Invoke)]
        told = {(one.user, one.client_msg_id) for one in invokes if (one.process, one.call) in refused} - noticed
        for one in invokes:
            key = one.user, one.client_msg_id
            if key in waited and key not in told and (one.process, one.call) not in answered:
                self._events.append(Queued(self._now(), one.process, one.call))

    def final(self, rows: Rows, devices: Sequence[tuple[str, str]]) -> None:
        """Put down the logs and timelines, and who may see what.

        What somebody saw who left and came back is not to be read any more: whichever of the devices never did has a
        gap there.
        """
        now, process = self._now(), self._process
        for cid, log in rows.logs.items():
            entries = tuple(_log_entry(log[seq]) for seq in sorted(log))
            self._events.append(FinalLog(now, process, cid, entries, channel=f"conv:{cid}"))
            if rows.conversations[cid].group is None:
                self._events.extend(Members(now, process, cid, user) for user in rows.users(cid))
        for (cid, user), ranges in rows.ranges.items():
            self._events.extend(Members(now, process, cid, user, one.first, one.last) for one in ranges)
            for one in ranges[:-1]:
                last = one.last or one.first
                gaps = (Gap(now, process, *device, cid, one.first - 1, last + 1) for device in devices)
                self._events.extend(gap for gap in gaps if gap.user == user)
        for user, timeline in rows.timelines.items():
            kept = [(offset, timeline[offset]) for offset in sorted(timeline)]
            first = rows.floors[user] + 1
            placed = tuple(_timeline_entry(user, offset, message) for offset, message in kept if offset >= first)
            self._events.append(FinalTimeline(now, process, user, f"inbox:{user}", placed, first=first))
            notes = tuple(_note_entry(user, *entry) for entry in kept if entry[1].form == Form.NOTE)
            if notes:
                self._events.append(FinalLog(now, process, note_cid(user), notes, "monotonic"))
                self._events.append(Members(now, process, note_cid(user), user))


def _log_entry(message: Message) -> LogEntry:
    form = _FORMS_OF[message.form]
    is_said = form in {"message", "edit"}
    return LogEntry(
        message.seq,
        message.cseq,
        int(message.mid),
        message.sender,
        message.client_msg_id,
        msgspec.json.decode(message.body, type=str) if is_said else "",
        form,
        message.ref if form != "message" else 0,
    )


def _timeline_entry(user: str, offset: int, message: Message) -> TimelineEntry:
    if message.form == Form.NOTE:
        return TimelineEntry(offset, note_cid(user), offset, _note_mid(user, offset))
    return TimelineEntry(offset, message.cid, message.seq, int(message.mid))


def _note_entry(user: str, offset: int, message: Message) -> LogEntry:
    said = repr(msgspec.json.decode(message.body))
    return LogEntry(offset, 0, _note_mid(user, offset), "", "", said, "change")
