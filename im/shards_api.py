"""Wire types between processes of the message services.

`im.take_over` brings entries of one shard's logs to timelines of another one. The others read what a user's shard does
not have itself: `im.conversations_of` what the user has in some shards, `im.listed` some conversations as the user has
them, `im.membership` what the user may see of one, `im.messages` entries of one.

Who is asked for a shard that it does not have answers with Unavailable: the asker's table, or its own, is an old one.
"""

from __future__ import annotations

import msgspec

from base.peer import Method
from im.core.commands import Outgoing
from im.core.model import Message, Overlay
from im.ports import Listed, Visible

__all__ = [
    "CONVERSATIONS_OF",
    "LISTED",
    "MEMBERSHIP",
    "MESSAGES",
    "TAKE_OVER",
    "ConversationsOf",
    "ListedOf",
    "ListedReply",
    "MembershipOf",
    "MembershipReply",
    "MessagesOf",
    "MessagesReply",
    "TakeOver",
    "TakenOver",
]


class TakeOver(msgspec.Struct, array_like=True, frozen=True):
    """Entries of the shard `source` for timelines in the shard `target`, by position."""

    source: int
    target: int
    entries: tuple[Outgoing, ...]


class TakenOver(msgspec.Struct, array_like=True, frozen=True):
    """The target has everything from the source up to this position, durably."""

    through: int


class ConversationsOf(msgspec.Struct, array_like=True, frozen=True):
    """Return a page of the user's conversations in these shards: those with a greater cid than `after`, by cid."""

    user: str
    shards: tuple[int, ...]
    after: int


class ListedOf(msgspec.Struct, array_like=True, frozen=True):
    """Return these conversations, all of one shard, if the user is or was in them."""

    user: str
    cids: tuple[int, ...]


class ListedReply(msgspec.Struct, array_like=True, frozen=True):
    """`has_more`: the page is full, and there are others."""

    listed: list[Listed]
    has_more: bool = False


class MembershipOf(msgspec.Struct, array_like=True, frozen=True):
    """Return what of the conversation the user may see."""

    cid: int
    user: str


class MembershipReply(msgspec.Struct, array_like=True, frozen=True):
    """None: nothing, or there is no such conversation."""

    visible: Visible | None


class MessagesOf(msgspec.Struct, array_like=True, frozen=True):
    """Return those of the conversation's entries that there are."""

    cid: int
    seqs: tuple[int, ...]


class MessagesReply(msgspec.Struct, array_like=True, frozen=True):
    """As `im.ports.ConversationPage`."""

    head: int
    messages: tuple[Message, ...]
    overlays: tuple[Overlay, ...]


TAKE_OVER = Method("im.take_over", TakeOver, TakenOver)
CONVERSATIONS_OF = Method("im.conversations_of", ConversationsOf, ListedReply)
LISTED = Method("im.listed", ListedOf, ListedReply)
MEMBERSHIP = Method("im.membership", MembershipOf, MembershipReply)
MESSAGES = Method("im.messages", MessagesOf, MessagesReply)
