"""The twin of the durable message store: plain lists and dicts, no cleverness, nothing survives the process.

It says in as few lines as possible what a message store does, so that the contract suite and the differential test
can hold every other adapter against it. It also serves tests and demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence

from base.errors import StoreUnavailable
from base.ids import new_epoch
from im.ports import Appended, ConversationPage, Draft, KeyConflict, Message, Page, TimelineEntry

__all__ = ["MemoryMessageStore"]


class MemoryMessageStore:
    """A `MessageStore` in memory."""

    def __init__(self) -> None:
        self._epoch = new_epoch()
        self._conversations: dict[int, list[Message]] = {}
        self._cids: dict[tuple[str, str], int] = {}
        self._keys: dict[tuple[str, str], Message] = {}
        self._timelines: dict[str, list[Message]] = {}
        self._is_closed = False

    @property
    def epoch(self) -> str:
        """Name of this store's life: as long as its process'."""
        return self._epoch

    async def append(self, drafts: Sequence[Draft]) -> list[Appended | KeyConflict]:
        """Store the drafts in their order; one outcome each."""
        self._check_open()
        return [self._append_one(draft) for draft in drafts]

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`."""
        assert since >= 0
        assert limit > 0
        self._check_open()
        messages = self._timelines.get(user, [])
        found = messages[since : since + limit]
        entries = tuple(TimelineEntry(offset, message) for offset, message in enumerate(found, since + 1))
        return Page(len(messages), entries)

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        self._check_open()
        return [len(self._timelines.get(user, ())) for user in users]

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation after `since`."""
        assert since >= 0
        assert limit > 0
        self._check_open()
        messages = self._conversations.get(cid, [])
        return ConversationPage(len(messages), tuple(messages[since : since + limit]))

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        self._check_open()
        return [len(self._conversations.get(cid, ())) for cid in cids]

    async def is_member(self, cid: int, user: str) -> bool:
        """Return whether the user is in the conversation."""
        self._check_open()
        return any(user in (message.sender, message.recipient) for message in self._conversations.get(cid, ()))

    async def close(self) -> None:
        """Refuse whatever comes after. Idempotent."""
        self._is_closed = True

    def _append_one(self, draft: Draft) -> Appended | KeyConflict:
        key = (draft.sender, draft.client_msg_id)
        existing = self._keys.get(key)
        if existing is not None:
            same = (existing.recipient, existing.kind, existing.body) == (draft.recipient, draft.kind, draft.body)
            return Appended(existing, is_new=False, positions=()) if same else KeyConflict(existing)
        pair = (min(draft.sender, draft.recipient), max(draft.sender, draft.recipient))
        cid = self._cids.setdefault(pair, len(self._cids) + 1)
        log = self._conversations.setdefault(cid, [])
        message = Message(
            cid=cid,
            seq=len(log) + 1,
            mid=draft.mid,
            sender=draft.sender,
            device=draft.device,
            recipient=draft.recipient,
            client_msg_id=draft.client_msg_id,
            kind=draft.kind,
            body=draft.body,
            at=draft.at,
        )
        log.append(message)
        self._keys[key] = message
        positions: list[tuple[str, int]] = []
        for user in dict.fromkeys((draft.sender, draft.recipient)):  # once, where both are the same
            timeline = self._timelines.setdefault(user, [])
            timeline.append(message)
            positions.append((user, len(timeline)))
        return Appended(message, is_new=True, positions=tuple(positions))

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the message store is closed")
