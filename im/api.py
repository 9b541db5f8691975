"""Wire types of the message services.

Peer methods, all from access nodes, which ask the process that has the shard of the user or of the conversation:
`im.rpc` carries a client's call as it came, `im.timeline` reads a user's timeline, `im.heads` asks how far timelines
go; `im.conversation` and `im.conversation_heads` do the same for conversations, and `im.follow` says to all processes
which conversations' messages the asking node wants pushed to it, and `im.unproven` which sessions ended without a sign
that they got all that was written to them. Publications are JSON, encoded once here and passed on as they are.

A conversation is named by its `cid` in decimal digits, the number that its messages carry in `cid`.
"""

from __future__ import annotations

import msgspec

from base.peer import Method

__all__ = [
    "CONVERSATION",
    "CONVERSATIONS_MAX",
    "CONVERSATION_ENTRIES_MAX",
    "CONVERSATION_HEADS",
    "FOLLOW",
    "HEADS",
    "HEADS_USERS_MAX",
    "RPC",
    "SERVICE",
    "TIMELINE",
    "UNPROVEN",
    "UNPROVEN_MAX",
    "Conversation",
    "ConversationHeads",
    "ConversationReply",
    "Follow",
    "FollowReply",
    "Heads",
    "HeadsReply",
    "Rpc",
    "RpcReply",
    "Taken",
    "Timeline",
    "TimelinePage",
    "Unproven",
]

SERVICE = "im"
HEADS_USERS_MAX = 1_000
CONVERSATIONS_MAX = 1_000
"""Conversations that one message may name."""
CONVERSATION_ENTRIES_MAX = 1_000
"""Entries of a conversation in one reply."""


class Rpc(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A client's call: `data` is its JSON argument, `user` and `device` are who the ticket says it is."""

    user: str
    device: str
    method: str
    data: bytes
    is_backend: bool = False
    is_forwarded: bool = False
    """By another im node, which was asked in its stead: it is not forwarded again."""


class RpcReply(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The JSON result."""

    data: bytes


class Timeline(msgspec.Struct, array_like=True, frozen=True):
    """Read a user's timeline after `since`: at most `limit` entries (0: only the head) and `bytes_max` bytes."""

    user: str
    since: int
    limit: int
    bytes_max: int


class TimelinePage(msgspec.Struct, array_like=True, frozen=True):
    """Entries (offset, publication) without a hole after `since`; all of them if the last one's offset is `head`."""

    epoch: str
    head: int
    entries: list[tuple[int, bytes]]


class Heads(msgspec.Struct, array_like=True, frozen=True):
    """Ask for the newest timeline offset of up to 1,000 users, all of one shard."""

    users: list[str]


class HeadsReply(msgspec.Struct, array_like=True, frozen=True):
    """The offsets or seqs in the order asked, 0 for an empty timeline or a conversation that does not exist."""

    epoch: str
    heads: list[int]
    versions: list[int] = []
    """For each user of `im.heads` its sync version, 0 where it is not known yet; empty where heads say everything."""


class Conversation(msgspec.Struct, array_like=True, frozen=True):
    """Read a conversation after `since` for a member: at most `limit` entries (0: only the head; never over 1,000) and
    `bytes_max` bytes, but one entry at least if there is any.

    Who is no member is refused with PermissionDenied, and so is everybody if there is no such conversation.
    """

    cid: str
    user: str
    since: int
    limit: int
    bytes_max: int


class ConversationReply(msgspec.Struct, array_like=True, frozen=True):
    """Entries (seq, publication) without a hole after `since`; all of them if the last one's seq is `head`.

    They begin with the first one that the user may see, if that is later. `last_seq`: the user has left and sees
    nothing after it; 0: the user is in. `removed`: whom the conversation is closed to after an entry of these, as in
    `ConversationEntry`, by its seq; without the entry that dissolves a group, which is the `last_seq` of everybody.
    """

    epoch: str
    head: int
    entries: list[tuple[int, bytes]]
    last_seq: int = 0
    removed: list[tuple[int, list[str]]] = []


class ConversationHeads(msgspec.Struct, array_like=True, frozen=True):
    """Ask for the newest seq of up to 1,000 conversations, all of one shard."""

    cids: list[str]


class Follow(msgspec.Struct, array_like=True, frozen=True):
    """Change which conversations the sender follows: at most 1,000 in both lists.

    What is followed is kept for 30 s after the sender was heard last, and no longer than its stream. So the sender says
    it all anew every 10 s: the message with `is_first` begins, changes may come in between, and what was not named by
    the end of the one with `is_last` is not followed any more. `number` counts the sender's messages to the receiver,
    1, 2, 3 ... over all streams.
    """

    number: int
    added: list[str]
    removed: list[str]
    is_first: bool = False
    is_last: bool = False


class FollowReply(msgspec.Struct, array_like=True, frozen=True):
    """What was said is taken in any case. `is_whole` False: something is missing, and the sender says it all anew."""

    is_whole: bool


UNPROVEN_MAX = 1_000


class Unproven(msgspec.Struct, array_like=True, frozen=True):
    """Sessions of one shard's users that ended by silence or an abnormal close: (user, timeline offset), at most 1,000.

    Up to that offset the session is known to have got what was written to it, since it gave a sign of life later.
    """

    sessions: list[tuple[str, int]]


class Taken(msgspec.Struct, array_like=True, frozen=True):
    """The message was taken."""


RPC = Method("im.rpc", Rpc, RpcReply)
TIMELINE = Method("im.timeline", Timeline, TimelinePage)
HEADS = Method("im.heads", Heads, HeadsReply)
CONVERSATION = Method("im.conversation", Conversation, ConversationReply)
CONVERSATION_HEADS = Method("im.conversation_heads", ConversationHeads, HeadsReply)
FOLLOW = Method("im.follow", Follow, FollowReply)
UNPROVEN = Method("im.unproven", Unproven, Taken)
