"""What the message services need from a store. Adapters: `memory` (the twin) and `sqlite` (the truth, embedded).

Two kinds of append-only logs stand behind this port. A *conversation* has messages numbered 1, 2, 3 ... by `seq`;
a *timeline* is what one user must see, over all conversations, numbered 1, 2, 3 ... by `offset`. Both numbers are
given in the same transaction that stores the message, so that neither can have a hole or a repeat.

The value types are msgspec structs, which are made fifteen times faster than frozen dataclasses, and unseen by the
garbage collector, since they cannot form cycles: there are millions of them.

One contract suite (`tests/contract/test_message_store.py`) runs on every adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from base.clock import Timestamp

__all__ = [
    "Appended",
    "ConversationPage",
    "Draft",
    "KeyConflict",
    "Message",
    "MessageStore",
    "Page",
    "TimelineEntry",
]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A message to be stored. `(sender, client_msg_id)` is its idempotency key; `body` is opaque JSON text."""

    mid: int
    sender: str
    device: str
    recipient: str
    client_msg_id: str
    kind: str
    body: bytes
    at: Timestamp


class Message(msgspec.Struct, frozen=True, gc=False):
    """A stored message: a draft with its place in its conversation."""

    cid: int
    seq: int
    mid: int
    sender: str
    device: str
    recipient: str
    client_msg_id: str
    kind: str
    body: bytes
    at: Timestamp


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The draft is durable. For a repeated key: the first one's place, and no positions, since nothing was written."""

    message: Message
    is_new: bool
    positions: tuple[tuple[str, int], ...]
    """(user, timeline offset) of every timeline that got an entry."""


class KeyConflict(msgspec.Struct, frozen=True, gc=False):
    """The key was used before for another recipient, kind or body. Nothing was written."""

    existing: Message


class TimelineEntry(msgspec.Struct, frozen=True, gc=False):
    """A message at its offset in one user's timeline."""

    offset: int
    message: Message


class Page(msgspec.Struct, frozen=True, gc=False):
    """Entries with `since < offset`, ascending and without a hole, up to the limit; `head` is the newest offset."""

    head: int
    entries: tuple[TimelineEntry, ...]


class ConversationPage(msgspec.Struct, frozen=True, gc=False):
    """Messages with `since < seq`, ascending and without a hole, up to the limit; `head` is the newest seq."""

    head: int
    messages: tuple[Message, ...]


class MessageStore(Protocol):
    """Durable logs. Every method may raise `StoreUnavailable`, and reads `Overloaded` when too many wait."""

    @property
    def epoch(self) -> str:
        """Name of this store's life. It changes only when the data was lost or replaced: positions then mean
        nothing.
        """
        ...

    async def append(self, drafts: Sequence[Draft]) -> list[Appended | KeyConflict]:
        """Store the drafts in their order, in one transaction, durable on return; one outcome each.

        After `StoreUnavailable` the outcome is unknown: append again with the same keys.
        """
        ...

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`. Never shows an entry before a smaller one is visible."""
        ...

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        ...

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation after `since`; head 0 if there is none. Never shows a seq before a smaller one."""
        ...

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        ...

    async def is_member(self, cid: int, user: str) -> bool:
        """Return whether the user is in the conversation, which its first message decides for good: the two users of a
        direct conversation are its members.
        """
        ...

    async def close(self) -> None:
        """Release files and threads. Idempotent."""
        ...
