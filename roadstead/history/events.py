"""What is written down: one event a line, JSON, told apart by `event`.

Identities: a user and a device are names; `(user, client_msg_id)` is the key of everything that a client wrote, the
same for all attempts; `cid`, `seq` and `mid` are what the system answered. A body is known by its digest alone.

A conversation's log holds messages, and the edits, recalls and group changes that refer to them, each with its own
`seq`. A *channel* is what a device reads by increasing offsets: its user's timeline, or one conversation, where the
offset is the `seq`. When offsets begin anew (another epoch), it is another channel: give it another name.

Times are ms of the machine's monotonic clock: histories of several machines cannot be merged.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "CRASHES",
    "Deliver",
    "Display",
    "DisplayEntry",
    "Event",
    "Failed",
    "Failure",
    "Fault",
    "FinalLog",
    "FinalTimeline",
    "Form",
    "Gap",
    "Info",
    "Invoke",
    "Key",
    "LogEntry",
    "Members",
    "Mode",
    "Ok",
    "Op",
    "Queued",
    "Quiet",
    "Read",
    "ReadEntry",
    "Subscribe",
    "TimelineEntry",
    "UnreadObs",
    "UnreadPart",
]

Key: TypeAlias = tuple[str, str]
"""(user, client_msg_id)."""
Op: TypeAlias = Literal["send", "edit", "recall", "mark_read", "create", "join", "leave", "kick"]
Form: TypeAlias = Literal["message", "edit", "recall", "change"]
Mode: TypeAlias = Literal["continuous", "monotonic"]

CRASHES = frozenset({"kill", "power_loss"})
"""Kinds of faults that take away what was not durable."""


class _Event(msgspec.Struct, frozen=True, gc=False, tag_field="event", omit_defaults=True):
    at: int
    """Monotonic ms, when it was written down."""
    process: str
    """Which recorder wrote it. One process's events are in the order in which they happened."""


# ---------------------------------------------------------------- calls


class Invoke(_Event, tag="invoke", frozen=True, gc=False):
    """A client is about to call: written before the first byte leaves. Each attempt is a call of its own.

    `call` numbers the process's calls. `ref` is the seq that an edit or a recall refers to, or that `mark_read` reads
    up to. `cid` is None while the client does not know it.
    """

    call: int
    op: Op
    user: str
    device: str
    client_msg_id: str
    cid: int | None = None
    digest: str = ""
    ref: int = 0


class Ok(_Event, tag="ok", frozen=True, gc=False):
    """The call was acknowledged as durable, and this is where what it wrote is.

    For `mark_read`: `seq` is the read pointer afterwards. What wrote nothing into the log has no `mid`.
    """

    call: int
    cid: int
    seq: int
    mid: int = 0


class Failed(_Event, tag="fail", frozen=True, gc=False):
    """The call was refused: this attempt certainly changed nothing."""

    call: int
    why: str = ""


class Info(_Event, tag="info", frozen=True, gc=False):
    """The outcome is unknown (timeout, broken connection): it may or may not have happened, or may yet."""

    call: int
    why: str = ""


class Queued(_Event, tag="queued", frozen=True, gc=False):
    """The call was acknowledged as durably queued: it will be in the log, or else a failure notice comes."""

    call: int


class Failure(_Event, tag="failure", frozen=True, gc=False):
    """A failure notice for a queued send reached a device of its sender."""

    user: str
    device: str
    client_msg_id: str
    why: str = ""


# ---------------------------------------------------------------- what devices are told and show


class Subscribe(_Event, tag="subscribe", frozen=True, gc=False):
    """A device was attached to a channel: the next delivery is the first entry after `since`.

    `is_recovered` says that the server vouched for continuity from the position that the client named.
    """

    user: str
    device: str
    channel: str
    since: int
    is_recovered: bool = False


class Deliver(_Event, tag="deliver", frozen=True, gc=False):
    """A publication was handed to a device. `ref` is the seq that an edit or a recall refers to."""

    user: str
    device: str
    channel: str
    offset: int
    cid: int
    seq: int
    mid: int
    sender: str
    client_msg_id: str
    digest: str = ""
    form: Form = "message"
    ref: int = 0


class ReadEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry of a page. `digest` is None for a recalled body, and empty where it was not written down."""

    offset: int
    cid: int
    seq: int
    mid: int
    digest: str | None = ""


class Read(_Event, tag="read", frozen=True, gc=False):
    """A device read a page of a channel: all entries with `since` < offset <= `reached`. `head` is the newest offset.

    `cid` names the conversation where the channel is one, and is None for a timeline.
    """

    user: str
    device: str
    channel: str
    since: int
    reached: int
    head: int
    entries: tuple[ReadEntry, ...]
    cid: int | None = None


class Gap(_Event, tag="gap", frozen=True, gc=False):
    """The device knows, and would show, that it has not loaded `after` < seq < `before`. Nothing is hidden by it."""

    user: str
    device: str
    cid: int
    after: int
    before: int


class DisplayEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message as it is shown: `digest` of the body, of its last edit, or None where "recalled" is shown."""

    seq: int
    mid: int
    digest: str | None


class Display(_Event, tag="display", frozen=True, gc=False):
    """What the device's view of a conversation shows, from top to bottom: messages, with edits and recalls applied.

    `is_sorted` False: the view appends what comes late and sorts it later, as it says.
    """

    user: str
    device: str
    cid: int
    entries: tuple[DisplayEntry, ...]
    is_sorted: bool = True


class UnreadPart(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Unread messages of one conversation, and the positions at which they were counted; None: not told."""

    cid: int
    unread: int
    read_seq: int | None = None
    max_seq: int | None = None


class UnreadObs(_Event, tag="unread_obs", frozen=True, gc=False):
    """A device was told unread counts. `asked_at`: when it asked (ms); None where the server told it unasked."""

    user: str
    device: str
    total: int
    parts: tuple[UnreadPart, ...]
    asked_at: int | None = None


# ---------------------------------------------------------------- the world around


class Fault(_Event, tag="fault", frozen=True, gc=False):
    """Something was broken or mended: "kill", "power_loss", "partition", "heal" ... of `target`."""

    kind: str
    target: str = ""


class Members(_Event, tag="members", frozen=True, gc=False):
    """A user may see `join_seq` <= seq <= `leave_seq` of the conversation; None: to its end. One event a range."""

    cid: int
    user: str
    join_seq: int = 1
    leave_seq: int | None = None


class Quiet(_Event, tag="quiet", frozen=True, gc=False):
    """All faults are over and these (user, device) had the time to catch up: from now on nothing may be missing."""

    devices: tuple[tuple[str, str], ...]


class LogEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry of a conversation's log. `cseq` counts messages that can be unread, up to and including this one.

    `sender` and `client_msg_id` are empty for what the system wrote itself. `prev` links to the entry before, 0 at the
    first; None where there are no links.
    """

    seq: int
    cseq: int
    mid: int
    sender: str
    client_msg_id: str
    digest: str = ""
    form: Form = "message"
    ref: int = 0
    prev: int | None = None


class FinalLog(_Event, tag="final_log", frozen=True, gc=False):
    """A conversation's log as it was read at the end, in the order in which it came; pages follow one another.

    `channel`: the channel whose offsets are this log's seqs, if any. `first`: the lowest
    seq there may be; what is older was dropped by a rule.
    """

    cid: int
    entries: tuple[LogEntry, ...]
    mode: Mode = "continuous"
    channel: str = ""
    first: int = 1


class TimelineEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry of a user's timeline."""

    offset: int
    cid: int
    seq: int
    mid: int


class FinalTimeline(_Event, tag="final_timeline", frozen=True, gc=False):
    """A user's timeline as it was read at the end, in the order in which it came; pages follow one another.

    `first`: the lowest offset there may be; what is older was dropped by a rule.
    """

    user: str
    channel: str
    entries: tuple[TimelineEntry, ...]
    mode: Mode = "continuous"
    first: int = 1


Event: TypeAlias = (
    Invoke
    | Ok
    | Failed
    | Info
    | Queued
    | Failure
    | Subscribe
    | Deliver
    | Read
    | Gap
    | Display
    | UnreadObs
    | Fault
    | Members
    | Quiet
    | FinalLog
    | FinalTimeline
)
