"""What can be asked of the message log, and what comes of it: values only.

Commands are carried out in the order in which they come, many in one transaction. Each has one outcome: that of a
command which was refused is a `Refused`, and nothing was written for it.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Any, Literal

import msgspec

from base.clock import Timestamp
from im.core.model import Conversation, FanOut, Member, Message, View

__all__ = [
    "Appended",
    "Cause",
    "ChangeGroup",
    "Command",
    "CreateGroup",
    "Delivery",
    "Draft",
    "Executed",
    "GroupAction",
    "GroupChanged",
    "KeyConflict",
    "Mark",
    "Marked",
    "Outcome",
    "Outgoing",
    "Queued",
    "Receive",
    "Received",
    "Refused",
    "Revise",
    "Sent",
    "Trim",
    "Trimmed",
]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """Put a message into a conversation: the single one with the user `to`, which its first message makes, or `cid`.

    `(sender, client_msg_id)` is its idempotency key. `mid` is used only if the message is new.
    """

    mid: int | str
    sender: str
    device: str
    to: str
    """"" when `cid` says where."""
    cid: int
    """0 when `to` says where."""
    client_msg_id: str
    kind: str
    body: bytes
    at: Timestamp
    ref: int = 0
    mentions: bytes = b""
    is_queued: bool = False
    """Only store the draft now, durably, without looking at it: outcome `Queued`. Later it becomes either a message in
    its log or a note of kind `failure` in the sender's timeline, in the order in which a sender's drafts came.
    """


class Revise(msgspec.Struct, frozen=True, gc=False):
    """Edit the sender's own message `(cid, seq)`, or recall it (`is_recall`, without a body).

    Recalled: by its sender within the window, and by admins and the owner of a group at any time. A recalled message is
    neither edited nor recalled again: `Cause.RECALLED`.
    """

    mid: int | str
    sender: str
    device: str
    cid: int
    seq: int
    client_msg_id: str
    is_recall: bool
    body: bytes
    at: Timestamp
    mentions: bytes = b""


class Mark(msgspec.Struct, frozen=True, gc=False):
    """Change the user's view of a conversation; None leaves as it is. What is beyond the end means the end."""

    user: str
    device: str
    cid: int
    at: Timestamp
    read_seq: int | None = None
    """Goes forward only."""
    delivered_seq: int | None = None
    """Goes forward only."""
    is_marked_unread: bool | None = None
    is_muted: bool | None = None
    is_pinned: bool | None = None
    is_hidden: bool | None = None
    """True: not listed, and read, until something new comes."""


class CreateGroup(msgspec.Struct, frozen=True, gc=False):
    """Make a group of the owner and the members. `(owner, client_msg_id)` is an idempotency key as a message's is."""

    mid: int | str
    owner: str
    device: str
    client_msg_id: str
    name: str
    members: tuple[str, ...]
    at: Timestamp
    settings: tuple[tuple[str, str], ...] = ()
    """Fields of `Group`: who_invites, who_joins, history."""


GroupAction = Literal[
    "invite",
    "join",
    "leave",
    "kick",
    "role",
    "mute",
    "mute_all",
    "transfer",
    "rename",
    "settings",
    "dissolve",
    "fan_out",
]


class ChangeGroup(msgspec.Struct, frozen=True, gc=False):
    """Change a group. Repeating what has its effect already is no error: the outcome says that nothing changed.

    `users`: whom it is about (invite, kick, role, mute, transfer), in the order given. `value`: the role's name (role),
    the name (rename), ms since the Unix epoch or 0 (mute), "true" or "false" (mute_all), the strategy (fan_out);
    `settings` as in `CreateGroup`. `by` "" is the operator or a backend, who may do everything.
    """

    mid: int | str
    by: str
    device: str
    cid: int
    action: GroupAction
    at: Timestamp
    users: tuple[str, ...] = ()
    value: str = ""
    settings: tuple[tuple[str, str], ...] = ()


class Trim(msgspec.Struct, frozen=True, gc=False):
    """Forget the user's timeline up to `through`: whoever is further behind is told `too_old`."""

    user: str
    through: int


class Outgoing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry for timelines of another shard, which are told it in the order of `position`, each once."""

    position: int
    """Grows over all shards that something goes to."""
    shard: int
    message: Message
    users: tuple[str, ...]


class Receive(msgspec.Struct, frozen=True, gc=False):
    """Take over what the shard `source` has for timelines here, ascending; what was taken before is passed over."""

    source: int
    entries: tuple[Outgoing, ...]


class Sent(msgspec.Struct, frozen=True, gc=False):
    """Forget what is outgoing to a shard up to a position, which it has taken over."""

    shard: int
    through: int


Command = Draft | Revise | Mark | CreateGroup | ChangeGroup | Trim | Receive | Sent


# -------------------------------------------------------------------- outcomes


@unique
class Cause(Enum):
    """Why a command was refused."""

    NO_CONVERSATION = "there is no such conversation, or you are no member of it"
    MUTED = "you may not send here for now"
    DISSOLVED = "the group was dissolved"
    NO_MESSAGE = "there is no such message, or you may not see it"
    NOT_YOURS = "only its sender may do this to a message"
    WINDOW_CLOSED = "it is too late to do this to the message"
    RECALLED = "the message was recalled"
    NOT_ALLOWED = "your role in the group does not allow this"
    GROUP_FULL = "the group would have too many members"
    TOO_MANY_GROUPS = "the user is in too many groups"
    NO_MEMBER = "a user that this is about is no member of the group"
    BAD_CHANGE = "this cannot be done to such a conversation"
    BLANK = "nothing is to be changed"
    BUSY = "the members of this conversation have yet to be told so much that nothing can be added now"


class Refused(msgspec.Struct, frozen=True):
    """Nothing was written. `detail` has what a program may want to know: `limit`, `user`, `until`.

    Each is final but `BUSY`: that is no more so a moment later.
    """

    cause: Cause
    detail: dict[str, Any] = {}


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The entry is durable. For a repeated key: the first one's place, since nothing was written."""

    message: Message
    is_new: bool


class KeyConflict(msgspec.Struct, frozen=True, gc=False):
    """The key was used before for another conversation, kind or body. Nothing was written."""

    existing: Message | None
    """None while that one is queued."""


class Queued(msgspec.Struct, frozen=True, gc=False):
    """The draft is durable and will become a message or a failure, whose key is the draft's."""

    mid: int | str
    is_new: bool


class Marked(msgspec.Struct, frozen=True, gc=False):
    """The view as it is now; its `sent_seq` may lack what the same transaction stored. Not `is_new`: it was so before,
    and nothing was written. `receivers`: whom a receipt is told, the others there if they are few.
    """

    view: View
    is_new: bool
    receivers: tuple[str, ...] = ()


class GroupChanged(msgspec.Struct, frozen=True):
    """The group as it is now; `message` is the event, of the first time if the key was repeated, None when nothing was
    to be changed. `members`: those it was about.
    """

    conversation: Conversation
    message: Message | None
    is_new: bool
    members: tuple[Member, ...] = ()


class Trimmed(msgspec.Struct, frozen=True, gc=False):
    """The timeline's entries up to here are gone."""

    floor: int


class Received(msgspec.Struct, frozen=True, gc=False):
    """Everything from the shard up to this position is in the timelines here, or is gone there."""

    through: int


Outcome = Appended | KeyConflict | Refused | Queued | Marked | GroupChanged | Trimmed | Received


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """Entries of timelines that became durable, all with the same message: (user, offset) each.

    `is_first` once a message: whoever follows its conversation is told then. `fan_out` is the conversation's when the
    message was stored; `members` are those who saw it enter a log with read fan-out and few members, who are told
    directly, without an entry.
    """

    message: Message
    positions: tuple[tuple[str, int], ...]
    fan_out: FanOut
    is_first: bool = True
    members: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Users whom the conversation is closed to after this entry."""


class Executed(msgspec.Struct, frozen=True):
    """What a transaction did: an outcome for each command, and what is to be told, in order."""

    outcomes: list[Outcome]
    deliveries: list[Delivery]
    outgoing: list[Outgoing] = []
    """What is durable now, and to be told to other shards."""
