"""What the ledger needs to know before it can carry out commands, what it is told, and what it changed.

    needs = ledger.begin(commands)
    while needs is not None:
        ledger.learn(facts of a store about these needs)
        needs = ledger.more()
    changes = ledger.execute()            # then the store writes them, in one transaction

A store answers each need with what it has; what it does not have is left out, and is new to the ledger then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from im.core.commands import Delivery, Draft, Outcome, Outgoing
from im.core.model import Conversation, Member, Message, Overlay, Pending, View

__all__ = ["Changes", "ConversationFacts", "Facts", "Key", "Needs", "Pair", "QueuedDraft"]

Key = tuple[str, str]
"""(sender, client_msg_id)"""

Pair = tuple[str, str]
"""The two users of a single conversation, the smaller first; the same one twice for a chat with oneself."""


class QueuedDraft(msgspec.Struct, frozen=True, gc=False):
    """A draft that was only stored yet; `position` grows by one a draft."""

    position: int
    draft: Draft


@dataclass(slots=True)
class Needs:
    """What must be looked up; nothing is named twice."""

    keys: list[Key] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    cids: list[int] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    """Whose newest timeline offset is wanted."""
    views: list[tuple[str, int]] = field(default_factory=list)
    """(user, cid)"""
    members: list[tuple[int, str]] = field(default_factory=list)
    """(cid, user), of those who are in the group, or were once."""
    messages: list[tuple[int, int]] = field(default_factory=list)
    """(cid, seq): the entry, and its overlay."""
    groups_of: list[str] = field(default_factory=list)
    """Users of whom it matters in how many groups they are."""
    covered: list[tuple[int, int]] = field(default_factory=list)
    """(cid, seq) of messages whose overlay is wanted, though their logs are in other shards."""

    def __bool__(self) -> bool:
        return bool(
            self.keys
            or self.pairs
            or self.cids
            or self.users
            or self.views
            or self.members
            or self.messages
            or self.groups_of
            or self.covered
        )


@dataclass(slots=True)
class ConversationFacts:
    """A conversation that exists: its row, how far its log goes, and who is in it now, if it is a group."""

    conversation: Conversation
    max_seq: int
    max_cseq: int
    members: list[Member] = field(default_factory=list)


@dataclass(slots=True)
class Facts:
    """What a store knows about `Needs`."""

    messages_by_key: dict[Key, Message] = field(default_factory=dict)
    conversations: list[ConversationFacts] = field(default_factory=list)
    """Those asked for by pair or by cid."""
    heads: dict[str, int] = field(default_factory=dict)
    views: dict[tuple[str, int], View] = field(default_factory=dict)
    members: dict[tuple[int, str], Member] = field(default_factory=dict)
    messages: dict[tuple[int, int], Message] = field(default_factory=dict)
    overlays: dict[tuple[int, int], Overlay] = field(default_factory=dict)
    groups_of: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Changes:
    """What a transaction must write, and what it answers. Rows replace those with the same key."""

    messages: list[tuple[Message, tuple[tuple[str, int], ...]]] = field(default_factory=list)
    """In the order of `n`, each with the timeline entries (user, offset) that are stored with it."""
    entries: list[tuple[str, int, Message]] = field(default_factory=list)
    """Timeline entries (user, offset, message) of messages that were stored before or in `messages`."""
    conversations: dict[int, Conversation] = field(default_factory=dict)
    """Without those that `messages` imply: a single one that its first message makes as the fan-out policy says."""
    members: dict[tuple[int, str], Member] = field(default_factory=dict)
    views: dict[tuple[str, int], View] = field(default_factory=dict)
    """But for `sent_seq` and `sent_cseq`, which a store derives from the messages."""
    overlays: dict[tuple[int, int], Overlay] = field(default_factory=dict)
    mentions: list[tuple[int, str, int]] = field(default_factory=list)
    """(cid, user or EVERYBODY, seq)"""
    pendings: dict[int, Pending | None] = field(default_factory=dict)
    """By `n`; None: the fan-out of that message is finished."""
    queued: list[QueuedDraft] = field(default_factory=list)
    dequeued_through: int = 0
    """Drafts up to this position have become messages or failures; 0: none."""
    floors: dict[str, int] = field(default_factory=dict)
    """Users whose timelines are trimmed through these offsets."""
    outgoing: list[Outgoing] = field(default_factory=list)
    sent: dict[int, int] = field(default_factory=dict)
    """By shard: what is outgoing to it up to this position is done."""
    received: dict[int, int] = field(default_factory=dict)
    """By shard: the position up to which everything from it has been taken over."""
    outcomes: list[Outcome] = field(default_factory=list)
    """One a command."""
    deliveries: list[Delivery] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(
            self.messages
            or self.entries
            or self.conversations
            or self.members
            or self.views
            or self.overlays
            or self.pendings
            or self.queued
            or self.dequeued_through
            or self.floors
            or self.sent
            or self.received
        )
