"""Arguments and results of the methods: `im.<name>` for clients, `POST /v1/users/{user}/im/<name>` for backends.

Conversations are named by `cid` in decimal digits, entries of one by their `seq`. Fields that are not known are
ignored, so that newer clients can talk to older servers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from base.ids import checked_id
from im.core.commands import ChangeGroup, CreateGroup, Draft, GroupAction, Mark, Revise

__all__ = [
    "ChangeGroupArguments",
    "ConversationView",
    "Conversations",
    "ConversationsArguments",
    "CreateGroupArguments",
    "EditArguments",
    "Entries",
    "GroupView",
    "HistoryArguments",
    "MarkArguments",
    "MemberView",
    "Members",
    "MembersArguments",
    "Nothing",
    "QueuedResult",
    "RecallArguments",
    "Receipts",
    "ReceiptsArguments",
    "Search",
    "SearchArguments",
    "Send",
    "SendResult",
    "SetArguments",
    "SyncArguments",
    "SyncResult",
    "TypingArguments",
    "Unread",
    "UnreadArguments",
    "UnreadPart",
    "ViewResult",
    "change_of",
    "cid_of",
    "draft_of",
    "group_of",
    "mark_of",
    "revise_of",
]

KIND_BYTES_MAX = 32
CID_MAX = 2**63 - 1
CID_DIGITS_MAX = len(str(CID_MAX))
MENTIONS_MAX = 100
USERS_MAX = 1_000
NAME_CHARACTERS_MAX = 200

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Cid = Annotated[str, Meta(pattern="^[1-9][0-9]{0,18}$", description="A conversation's id.")]
Limit = Annotated[int, Meta(ge=1, le=1_000)]


class Nothing(msgspec.Struct, frozen=True):
    """No fields."""


# -------------------------------------------------------------------- sending


class Send(msgspec.Struct, frozen=True):
    """Send a message to the user `to`, or into the conversation `cid`. A retry with its `client_msg_id` is harmless.

    `body` is any JSON value. `ack`: `committed` is answered when the message is in its log; `queued` when it is
    durable: then it becomes a message or a note of kind `failure`.
    """

    client_msg_id: str
    body: Raw
    to: str = ""
    cid: str = ""
    type: str = "text"
    reply_to: Seq = 0
    mentions: list[str] = []
    ack: Literal["committed", "queued"] = "committed"


class SendResult(msgspec.Struct, frozen=True):
    """Where the message is; `is_new` is false for a retry."""

    mid: str
    cid: str
    seq: int
    at: Timestamp
    is_new: bool


class QueuedResult(msgspec.Struct, frozen=True):
    """The message is durable, and not in its log yet."""

    mid: str
    is_new: bool
    queued: bool = True


class EditArguments(msgspec.Struct, frozen=True):
    """Replace the body of a message of one's own."""

    cid: Cid
    seq: Seq
    client_msg_id: str
    body: Raw
    mentions: list[str] = []


class RecallArguments(msgspec.Struct, frozen=True):
    """Take a message back: nobody is shown its body any more."""

    cid: Cid
    seq: Seq
    client_msg_id: str


class TypingArguments(msgspec.Struct, frozen=True):
    """Tell the others that one is writing something."""

    cid: Cid


# -------------------------------------------------------------------- reading


class SyncArguments(msgspec.Struct, frozen=True):
    """Read one's timeline after the offset `since`. `epoch` is what the position was of, if that is known."""

    since: Seq = 0
    limit: Limit = 100
    epoch: str = ""


class SyncResult(msgspec.Struct, frozen=True):
    """Entries {offset, data}, ascending and without a hole.

    `too_old`: what follows `since` was trimmed. Then there are no entries: take `im.conversations` and go on after its
    `timeline`. A position of another epoch, or beyond the end, is error 311, and asks for the same.
    """

    epoch: str
    head: int
    has_more: bool
    too_old: bool
    entries: list[Any]


class HistoryArguments(msgspec.Struct, frozen=True):
    """Read a conversation: entries after the seq `after`, or the last ones before `before`."""

    cid: Cid
    after: Seq | None = None
    before: Seq | None = None
    limit: Limit = 100


class Entries(msgspec.Struct, frozen=True):
    """Publications in the order of their seqs, without a hole. `head` is the newest seq that one may see."""

    epoch: str
    head: int
    first_seq: int
    entries: list[Any]


class ConversationsArguments(msgspec.Struct, frozen=True):
    """List one's conversations: pinned ones first, then those with the newest entries."""

    limit: Limit = 100
    after: str = ""
    """`next` of the page before."""


class ConversationView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversation as one has it. `channel`: where its new entries come: `inbox`, or `conv` to be subscribed."""

    cid: str
    kind: Literal["single", "group"]
    fan_out: Literal["write", "read"]
    channel: Literal["inbox", "conv"]
    max_seq: int
    max_cseq: int
    read_seq: int
    unread: int
    first_seq: int
    members: int
    """0 after one left: how many there are is nothing to oneself any more."""
    peer: str = ""
    """The other user of a single conversation."""
    name: str = ""
    role: str = ""
    last: Any = None
    """The newest entry, a publication."""
    last_seq: int = 0
    """The last entry that one may see, after one left."""
    mentioned_seq: int = 0
    is_muted: bool = False
    pinned_at: Timestamp = Timestamp(0)
    is_marked_unread: bool = False
    is_dissolved: bool = False


class Conversations(msgspec.Struct, frozen=True):
    """A page. `timeline` is one's position in one's timeline from before the list was read: go on from there."""

    epoch: str
    timeline: int
    sync_version: int
    total_unread: int
    conversations: list[ConversationView]
    next: str
    """Empty after the last page."""


class UnreadArguments(msgspec.Struct, frozen=True):
    """Ask what is unread."""


class UnreadPart(msgspec.Struct, frozen=True):
    """What is unread in a conversation."""

    cid: str
    unread: int


class Unread(msgspec.Struct, frozen=True):
    """The total is the sum of the parts; `muted` of them are in muted conversations."""

    total: int
    muted: int
    conversations: list[UnreadPart]


class SearchArguments(msgspec.Struct, frozen=True):
    """Find messages of a conversation that have all the words of `text`; a word may end with `*`."""

    cid: Cid
    text: Annotated[str, Meta(min_length=1, max_length=200)]
    before: Seq | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class Search(msgspec.Struct, frozen=True):
    """Publications, the newest first. Go on with `before` = the seq of the last one."""

    entries: list[Any]


# -------------------------------------------------------------------- marks


class MarkArguments(msgspec.Struct, frozen=True):
    """Say how far one has read, and how far one's device was given, a conversation; pointers go forward only."""

    cid: Cid
    read_seq: Seq | None = None
    delivered_seq: Seq | None = None
    unread: bool | None = None
    """Mark it as unread by hand, or take that back."""


class SetArguments(msgspec.Struct, frozen=True):
    """Mute, pin or hide a conversation, or take that back."""

    cid: Cid
    mute: bool | None = None
    pin: bool | None = None
    hide: bool | None = None


class ViewResult(msgspec.Struct, frozen=True):
    """The view as it is now."""

    cid: str
    read_seq: int
    delivered_seq: int
    is_marked_unread: bool
    is_muted: bool
    pinned_at: Timestamp
    hidden_seq: int
    is_new: bool


class ReceiptsArguments(msgspec.Struct, frozen=True):
    """Ask who has read the entry `seq`."""

    cid: Cid
    seq: Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Receipts(msgspec.Struct, frozen=True):
    """How many of the other members have read it, or sent something later; `readers` are the first 100 of them."""

    members: int
    read: int
    readers: list[str]


# -------------------------------------------------------------------- groups


class CreateGroupArguments(msgspec.Struct, frozen=True):
    """Make a group of oneself and the members. `(owner, client_msg_id)` makes a retry harmless."""

    client_msg_id: str
    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    members: Annotated[list[str], Meta(max_length=USERS_MAX)] = []
    settings: dict[str, str] = {}


class ChangeGroupArguments(msgspec.Struct, frozen=True):
    """Change a group; see the actions in the reference."""

    cid: Cid
    action: GroupAction
    users: Annotated[list[str], Meta(max_length=USERS_MAX)] = []
    value: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] = ""
    settings: dict[str, str] = {}


class GroupView(msgspec.Struct, frozen=True):
    """The group as it is now; `seq` is that of the event, 0 if nothing was to be changed."""

    cid: str
    seq: int
    fan_out: str
    name: str
    owner: str
    is_new: bool


class MembersArguments(msgspec.Struct, frozen=True):
    """List who is in a conversation, by name."""

    cid: Cid
    after: str = ""
    limit: Limit = 100


class MemberView(msgspec.Struct, frozen=True):
    """A member; `muted_until` is in ms since the Unix epoch."""

    user: str
    role: str
    join_seq: int
    muted_until: Timestamp


class Members(msgspec.Struct, frozen=True):
    """A page. `next` is empty after the last one."""

    members: list[MemberView]
    next: str


# -------------------------------------------------------------------- checking


def cid_of(text: str) -> int:
    """Return the conversation that decimal digits name, 1 to 2**63 - 1.

    Raises:
        BadRequest: it is written in any other way. Two texts never name the same conversation.
    """
    is_number = text.isascii() and text.isdecimal() and not text.startswith("0") and len(text) <= CID_DIGITS_MAX
    if not is_number or (cid := int(text)) > CID_MAX:
        raise BadRequest("a conversation is named by the decimal digits of its cid")
    return cid


def draft_of(send: Send, *, sender: str, device: str, mid: int | str, at: Timestamp, body_bytes_max: int) -> Draft:
    """Check a send's arguments and make the draft. Raises BadRequest or LimitExceeded."""
    if bool(send.to) == bool(send.cid):
        raise BadRequest("a message goes either to a user, `to`, or into a conversation, `cid`")
    if not 0 < len(send.type.encode()) <= KIND_BYTES_MAX or not send.type.isprintable():
        raise BadRequest(f"type must have 1 to {KIND_BYTES_MAX} printable bytes")
    return Draft(
        mid,
        sender,
        device,
        checked_id(send.to, "to") if send.to else "",
        cid_of(send.cid) if send.cid else 0,
        checked_id(send.client_msg_id, "client_msg_id"),
        send.type,
        _body(send.body, body_bytes_max),
        at,
        send.reply_to,
        _mentions(send.mentions) if send.mentions else b"",
        send.ack == "queued",
    )


def revise_of(
    arguments: EditArguments | RecallArguments,
    *,
    sender: str,
    device: str,
    mid: int | str,
    at: Timestamp,
    body_bytes_max: int,
) -> Revise:
    """Check the arguments of an edit or a recall. Raises BadRequest or LimitExceeded."""
    is_recall = isinstance(arguments, RecallArguments)
    return Revise(
        mid,
        sender,
        device,
        cid_of(arguments.cid),
        arguments.seq,
        checked_id(arguments.client_msg_id, "client_msg_id"),
        is_recall,
        b"" if isinstance(arguments, RecallArguments) else _body(arguments.body, body_bytes_max),
        at,
        b"" if isinstance(arguments, RecallArguments) or not arguments.mentions else _mentions(arguments.mentions),
    )


def mark_of(arguments: MarkArguments | SetArguments, *, user: str, device: str, at: Timestamp) -> Mark:
    """Check the arguments of a mark. Raises BadRequest."""
    cid = cid_of(arguments.cid)
    if isinstance(arguments, MarkArguments):
        mark = Mark(user, device, cid, at, arguments.read_seq, arguments.delivered_seq, arguments.unread)
    else:
        mark = Mark(
            user,
            device,
            cid,
            at,
            is_muted=arguments.mute,
            is_pinned=arguments.pin,
            is_hidden=arguments.hide,
        )
    if mark == Mark(user, device, cid, at):
        raise BadRequest("nothing is to be changed")
    return mark


def group_of(arguments: CreateGroupArguments, *, owner: str, device: str, mid: int | str, at: Timestamp) -> CreateGroup:
    """Check the arguments of a new group. Raises BadRequest."""
    return CreateGroup(
        mid,
        owner,
        device,
        checked_id(arguments.client_msg_id, "client_msg_id"),
        _text(arguments.name, "name"),
        tuple(checked_id(user, "members") for user in arguments.members),
        at,
        tuple(arguments.settings.items()),
    )


def change_of(arguments: ChangeGroupArguments, *, by: str, device: str, mid: int | str, at: Timestamp) -> ChangeGroup:
    """Check the arguments of a change; `by` "" is the operator. Raises BadRequest."""
    return ChangeGroup(
        mid,
        by,
        device,
        cid_of(arguments.cid),
        arguments.action,
        at,
        tuple(checked_id(user, "users") for user in arguments.users),
        _text(arguments.value, "value"),
        tuple(arguments.settings.items()),
    )


def _body(raw: Raw, bytes_max: int) -> bytes:
    body = bytes(raw)
    if len(body) > bytes_max:
        raise LimitExceeded(
            f"body is {len(body)} bytes, the limit is {bytes_max}", what="body", limit=bytes_max, seen=len(body)
        )
    try:
        body.decode()
    except UnicodeDecodeError as error:
        # The JSON decoder passes a Raw on unchecked, and whoever gets the message could not read the frame it is in.
        raise BadRequest("body is not valid UTF-8") from error
    # Line breaks part the commands of a frame. In JSON they stand between tokens only, where a space says the same.
    return body.replace(b"\n", b" ").replace(b"\r", b" ")


def _mentions(users: list[str]) -> bytes:
    if len(users) > MENTIONS_MAX:
        raise LimitExceeded(f"a message mentions {MENTIONS_MAX} users at most", what="mentions", limit=MENTIONS_MAX)
    return msgspec.json.encode([checked_id(user, "mentions") for user in dict.fromkeys(users)])


def _text(value: str, what: str) -> str:
    if not value.isprintable():
        raise BadRequest(f"{what} must be printable")
    return value
