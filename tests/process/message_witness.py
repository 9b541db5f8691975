"""What one device saw, written down for the checker; and how far it has come in each channel."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from roadstead.history.events import Form, LogEntry, ReadEntry, UnreadPart
from roadstead.history.recorder import Recorder, digest

__all__ = ["NOTES", "Entries", "Entry", "Listed", "Page", "Track", "Witness", "log_entry", "note_mid", "notes_of"]

_FORMS: dict[str, Form] = {"message": "message", "edit": "edit", "recall": "recall", "group": "change"}
NOTES = frozenset({"read", "settings", "failure"})


def notes_of(user: str) -> int:
    """Return the conversation as which the notes in a user's timeline are written down: their seq is the offset.

    Names have three characters, so that it is another one for each.
    """
    return -int.from_bytes(user.encode())


class GroupBody(msgspec.Struct, frozen=True):
    """What an event of a group says."""

    event: str
    users: list[str]
    fan_out: str


class Entry(msgspec.Struct, frozen=True):
    """A publication of the message services."""

    kind: str
    cid: str = ""
    mid: str = ""
    seq: int = 0
    cseq: int = 0
    sender: str = msgspec.field(name="from", default="")
    to: str = ""
    client_msg_id: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")
    target: int = 0
    edited: int = 0
    recalled: int = 0

    @property
    def digest(self) -> str:
        """Of the body that was written; group changes and recalls have none of a client's."""
        return digest(bytes(self.body)) if self.kind in {"message", "edit"} else ""

    @property
    def shown(self) -> str | None:
        """What is to be seen of it: None where that is "recalled"."""
        return None if self.recalled else self.digest

    @property
    def group(self) -> GroupBody:
        """What happened to the group."""
        return _group_body(self.body)


class Placed(msgspec.Struct, frozen=True):
    """An entry of a timeline."""

    offset: int
    data: Entry


class Entries(msgspec.Struct, frozen=True):
    """A page of a conversation, of which the user sees the stretch from `first_seq` on."""

    head: int
    first_seq: int
    entries: list[Entry]


class Part(msgspec.Struct, frozen=True):
    """What is unread in a conversation, as the list of conversations has it."""

    cid: str
    unread: int
    read_seq: int
    max_seq: int


class Listed(msgspec.Struct, frozen=True):
    """The whole list of conversations."""

    total_unread: int
    conversations: list[Part]


class Page(msgspec.Struct, frozen=True):
    """A page of a timeline."""

    epoch: str
    head: int
    has_more: bool
    too_old: bool
    entries: list[Placed]


_group_body = msgspec.json.Decoder(GroupBody).decode


def log_entry(entry: Entry, written: str) -> LogEntry:
    """Return the entry for a final log, with the digest that it was written with."""
    key = entry.client_msg_id
    return LogEntry(entry.seq, entry.cseq, int(entry.mid), entry.sender, key, written, _FORMS[entry.kind], entry.target)


def _read_entry(user: str, offset: int, entry: Entry) -> ReadEntry:
    """Return the entry for a page."""
    if entry.kind in NOTES:
        cid = notes_of(user)
        return ReadEntry(offset, cid, offset, note_mid(cid, offset), "")
    return ReadEntry(offset, int(entry.cid), entry.seq, int(entry.mid), entry.shown)


def note_mid(cid: int, offset: int) -> int:
    """Return the id of a note."""
    return cid * 1_000_000_000 - offset


class Track:
    """How far a device has come in a channel: it has all up to `covered`, and is told what comes after `live`."""

    __slots__ = ("covered", "ends_at", "is_reading", "is_subscribed", "last", "live")

    def __init__(self, covered: int = 0) -> None:
        self.covered = covered
        self.last = self.live = covered
        self.is_subscribed = False
        self.is_reading = False
        self.ends_at: int | None = None
        """The last one that is for this device; None: there is no end."""

    @property
    def has_gap(self) -> bool:
        """Whether something before what it is told is missing."""
        return self.covered < (self.live if self.ends_at is None else self.ends_at)

    def begin(self, since: int) -> None:
        """From here on it is told everything after `since`."""
        self.last = self.live = since
        self.is_subscribed = True

    def got(self, offset: int) -> None:
        """It was told this one, after the one before."""
        self.last = max(self.last, offset)
        self._join()

    def read(self, since: int, reached: int) -> None:
        """It read a page."""
        if since <= self.covered:
            self.covered = max(self.covered, reached)
        self._join()

    def _join(self) -> None:
        if self.is_subscribed and self.covered >= self.live:
            self.covered = max(self.covered, self.last)


class Witness:
    """Writes down what one device sees."""

    __slots__ = ("_failures", "device", "recorder", "user")

    def __init__(self, recorder: Recorder, user: str, device: str) -> None:
        self.recorder = recorder
        self.user = user
        self.device = device
        self._failures: set[int] = set()

    def subscribed(self, channel: str, since: int, *, is_recovered: bool) -> None:
        """It is told everything after an offset from here on."""
        self.recorder.subscribe(
            user=self.user, device=self.device, channel=channel, since=since, is_recovered=is_recovered
        )

    def told(self, channel: str, offset: int, entry: Entry) -> None:
        """A publication came."""
        if entry.edited or entry.recalled:
            # It is not what was written then, but what is to be seen now: as if it had been read.
            self.read(channel, offset - 1, offset, offset, [(offset, entry)])
            return
        user, device = self.user, self.device
        if entry.kind in NOTES:
            self._note(offset, entry)
            cid = notes_of(user)
            self.recorder.deliver(
                user=user,
                device=device,
                channel=channel,
                offset=offset,
                cid=cid,
                seq=offset,
                mid=note_mid(cid, offset),
                sender="",
                client_msg_id="",
                form="change",
            )
            return
        self.recorder.deliver(
            user=user,
            device=device,
            channel=channel,
            offset=offset,
            cid=int(entry.cid),
            seq=entry.seq,
            mid=int(entry.mid),
            sender=entry.sender,
            client_msg_id=entry.client_msg_id,
            digest=entry.digest,
            form=_FORMS[entry.kind],
            ref=entry.target,
        )

    def read(
        self,
        channel: str,
        since: int,
        reached: int,
        head: int,
        entries: Sequence[tuple[int, Entry]],
    ) -> None:
        """A page was read of a timeline, or of a conversation."""
        for offset, entry in entries:
            if entry.kind == "failure":
                self._note(offset, entry)
        self.recorder.read(
            user=self.user,
            device=self.device,
            channel=channel,
            since=since,
            reached=reached,
            head=head,
            entries=tuple(_read_entry(self.user, offset, entry) for offset, entry in entries),
            cid=int(channel.removeprefix("conv:")) if channel.startswith("conv:") else None,
        )

    def unread(self, listed: Listed, asked_at: int) -> None:
        """It was told what is unread."""
        parts = [UnreadPart(int(part.cid), part.unread, part.read_seq, part.max_seq) for part in listed.conversations]
        self.recorder.unread_obs(
            user=self.user, device=self.device, total=listed.total_unread, parts=parts, asked_at=asked_at
        )

    def _note(self, offset: int, entry: Entry) -> None:
        if entry.kind == "failure" and offset not in self._failures:
            self._failures.add(offset)
            key = entry.client_msg_id
            self.recorder.failure(user=self.user, device=self.device, client_msg_id=key, why=bytes(entry.body).decode())
