"""What the message services need from a store. Adapters: `memory` (the twin) and `sqlite` (the truth, embedded).

A store keeps conversations and timelines (`im.core.model`) and carries out commands (`im.core.commands`) by a ledger,
in transactions. What is read is what was committed: a page never shows an entry before a smaller one is visible, and
comes with the overlays of the messages in it, as they are at that time.

One contract suite (`tests/contract/test_store.py`) runs on every adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from im.core.commands import Command, Executed, Outgoing
from im.core.model import Conversation, Member, Message, Overlay, View

__all__ = ["ConversationPage", "Listed", "MessageStore", "Page", "TimelineEntry", "Visible"]


class TimelineEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry at its offset in one user's timeline."""

    offset: int
    message: Message


class Page(msgspec.Struct, frozen=True):
    """Entries with `since < offset`, ascending and without a hole, up to the limit; `head` is the newest offset.

    `floor` is not 0 if what the page should begin with was trimmed, and the last offset of that then: the page begins
    after it. `overlays` are those of the page's messages, by (cid, seq).
    """

    head: int
    floor: int
    entries: tuple[TimelineEntry, ...]
    overlays: Mapping[tuple[int, int], Overlay] = {}


class ConversationPage(msgspec.Struct, frozen=True):
    """Entries of a log, ascending; `head` is the newest seq, 0 if there is no such conversation."""

    head: int
    messages: tuple[Message, ...]
    overlays: Mapping[tuple[int, int], Overlay] = {}


class Visible(msgspec.Struct, frozen=True, gc=False):
    """The part of a log that a user may see. `last_seq` 0: to its end, and what will come."""

    first_seq: int
    last_seq: int
    role: int


class Listed(msgspec.Struct, frozen=True):
    """A conversation as one user has it."""

    conversation: Conversation
    member: Member | None
    """None in a single conversation."""
    view: View
    head: Message | None
    """The newest message or event of the group that the user may see: what a list shows. It may be in brief: the body
    empty, and that of its newest edit as well, if it is long.
    """
    head_overlay: Overlay | None
    max_seq: int
    max_cseq: int
    """Of the newest entry, of any form, that the user may see."""
    recalled: int
    """How many messages after the read position, up to that entry, were recalled."""
    mentioned_seq: int
    """The newest message after the read position that mentions the user; 0 for none."""
    members: int
    """How many users are in it now."""


class MessageStore(Protocol):
    """Durable logs. Every method may raise `StoreUnavailable`, and reads `Overloaded` when too many wait."""

    @property
    def epoch(self) -> str:
        """Name of this store's life. It changes only when the data was lost or replaced: positions then mean
        nothing.
        """
        ...

    @property
    def has_work(self) -> bool:
        """Whether drafts are queued or fan-outs go on: then `execute` should be called, if need be with nothing."""
        ...

    async def execute(self, commands: Sequence[Command]) -> Executed:
        """Carry out the commands in their order, in one transaction, durable on return; an outcome for each.

        After `StoreUnavailable` the outcome is unknown: try again with the same keys.
        """
        ...

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`."""
        ...

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        ...

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation's entries after `since`, without a hole, up to the limit."""
        ...

    async def conversation_before(self, cid: int, *, before: int, limit: int) -> ConversationPage:
        """Return the last entries before `before`, without a hole, up to the limit."""
        ...

    async def messages(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        """Return those of the entries that there are, ascending."""
        ...

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        ...

    async def membership(self, cid: int, user: str) -> Visible | None:
        """Return what of the conversation the user may see; None: nothing, or there is no such conversation."""
        ...

    async def conversations(self, user: str) -> list[Listed]:
        """Return all conversations that the user is in, or was in, in any order, heads in brief."""
        ...

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        """Return these conversations, if the user is or was in them, with heads as they are."""
        ...

    async def members(self, cid: int, *, after: str, limit: int) -> list[Member]:
        """Return present members of a group by name, after the name `after`."""
        ...

    async def users(self, cid: int, *, at_most: int) -> Sequence[str]:
        """Return who is in the conversation now, by name; nobody if they are more than `at_most`, or there is none."""
        ...

    async def views(self, cid: int, *, read_from: int, limit: int) -> list[View]:
        """Return views of present members who see `read_from` and have read it, or sent something there or later."""
        ...

    async def log(self, *, after: int, limit: int) -> list[Message]:
        """Return committed entries of all conversations, in the order of `n`, after `after`; no notes."""
        ...

    async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
        """Return committed entries for timelines of another shard, behind the position `after`, ascending.

        They are there until `Sent` says that they were taken over.
        """
        ...

    async def close(self) -> None:
        """Release files and threads. Idempotent."""
        ...
