"""What tests of message stores share: stores of each kind, commands in short, reading as clients do."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from im.core import timelines
from im.core.commands import Appended, ChangeGroup, Command, CreateGroup, Draft, GroupChanged, Outcome, Revise
from im.core.ledger import LedgerSettings
from im.core.model import Message
from im.ports import Listed, MessageStore, TimelineEntry
from im.store.memory import MemoryMessageStore
from im.store.sqlite import SqliteMessageStore

USERS = ("ann", "bob", "cleo", "dan")
NOW = Timestamp(1_000)


async def open_store(kind: str, folder: Path, decided_by: LedgerSettings | None = None) -> MessageStore:
    match kind:
        case "memory":
            return MemoryMessageStore(decided_by)
        case "sqlite":
            return await SqliteMessageStore.open(folder / "messages.db", settings=decided_by)
        case _:
            decided_by = replace(decided_by or LedgerSettings(), remembered_max=1)
            return await SqliteMessageStore.open(folder / "messages.db", settings=decided_by, lag_max=3)


def make_steps_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(timelines, "AT_ONCE_MAX", 1)
    patch.setattr(timelines, "STEP_MAX", 3)
    patch.setattr(timelines, "TURN_MAX", 2)


def draft(sender: str = "ann", to: str = "bob", key: str = "k1", body: bytes = b"{}", *, cid: int = 0) -> Draft:
    return Draft(7, sender, "phone", "" if cid else to, cid, key, "text", body, NOW)


def drafts(count: int, *, sender: str = "ann", to: str = "bob", first: int = 1, cid: int = 0) -> list[Draft]:
    return [draft(sender, to, f"k{n}", cid=cid) for n in range(first, first + count)]


def revise(sender: str, cid: int, seq: int, key: str, body: bytes = b"[]", *, recall: bool = False) -> Revise:
    return Revise(9, sender, "phone", cid, seq, key, recall, b"" if recall else body, NOW)


def group_of(*members: str, owner: str = "ann", key: str = "g1", history: str = "joined") -> CreateGroup:
    return CreateGroup(1, owner, "phone", key, "friends", members, NOW, (("history", history),))


def change(by: str, cid: int, action: str, *users: str, value: str = "") -> ChangeGroup:
    return ChangeGroup(2, by, "phone", cid, action, NOW, users, value)  # type: ignore[arg-type]


async def carry_out(store: MessageStore, *commands: Command) -> list[Outcome]:
    return (await store.execute(commands)).outcomes


async def append(store: MessageStore, *batch: Draft | Revise) -> list[Message]:
    """Carry out commands of which each is expected to become an entry."""
    messages: list[Message] = []
    for outcome in await carry_out(store, *batch):
        assert isinstance(outcome, Appended)
        messages.append(outcome.message)
    return messages


async def make_group(store: MessageStore, command: CreateGroup) -> int:
    [outcome] = await carry_out(store, command)
    assert isinstance(outcome, GroupChanged)
    return outcome.conversation.cid


async def finish(store: MessageStore) -> int:
    """Let all work that goes on be done; return in how many transactions."""
    count = 0
    while store.has_work:
        await store.execute([])
        count += 1
    return count


async def push_out_of_memory(store: MessageStore, count: int = 20) -> None:
    """Have others talk until a merging store has indexed what was before."""
    for n in range(count):
        await append(store, draft("xeno", "yara", f"pad-{n}"))


async def whole(store: MessageStore, user: str, *, limit: int = 100) -> list[TimelineEntry]:
    """Read a timeline from its beginning, page by page, as a client does."""
    entries: list[TimelineEntry] = []
    since = 0
    while True:
        page = await store.timeline(user, since=since, limit=limit)
        begin = max(since, page.floor)
        assert [entry.offset for entry in page.entries] == list(range(begin + 1, begin + 1 + len(page.entries)))
        entries.extend(page.entries)
        since = begin + len(page.entries)
        if len(page.entries) < limit:
            assert page.head == since
            return entries


async def whole_conversation(store: MessageStore, cid: int, *, limit: int = 100) -> list[Message]:
    """Read a conversation from its beginning, page by page, and once more from its end."""
    messages: list[Message] = []
    while True:
        since = len(messages)
        page = await store.conversation(cid, since=since, limit=limit)
        assert [(one.cid, one.seq) for one in page.messages] == [
            (cid, seq) for seq in range(since + 1, since + 1 + len(page.messages))
        ]
        messages.extend(page.messages)
        if len(page.messages) < limit:
            assert page.head == len(messages)
            break
    backwards: list[Message] = []
    while len(backwards) < len(messages):
        before = backwards[0].seq if backwards else page.head + 1
        earlier = await store.conversation_before(cid, before=before, limit=limit)
        assert earlier.head == page.head
        assert len(earlier.messages) == min(limit, before - 1)
        backwards = [*earlier.messages, *backwards]
    assert backwards == messages
    return messages


async def texts(store: MessageStore, user: str) -> list[str]:
    """Return kinds and keys of a timeline's entries, to be compared at a glance."""
    return [entry.message.client_msg_id or entry.message.kind for entry in await whole(store, user)]


async def listing(store: MessageStore, user: str) -> dict[int, Listed]:
    found = await store.conversations(user)
    assert len({one.conversation.cid for one in found}) == len(found)
    return {one.conversation.cid: one for one in found}
