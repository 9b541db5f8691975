"""The durable message store of one machine: a SQLite file, one writing thread and a few reading ones.

Commands go to the writer; `im.store.log` has how, `im.store.schema` the layout. Reads look into memory first: the
newest entries of a timeline or conversation, which is what clients nearly always ask for, are there until they are
indexed. Older ones come from a reader's own connection, which SQLite's write-ahead log lets run beside the writer.

Invariants:
    I1  What `execute` returned is on the disk: with `synchronous = FULL` it survives a power cut too.
    I2  A page is one closed stretch of its timeline or conversation: all entries from where it begins up to its last
        one, and a head that is not below them. Memory is taken before the indexes are looked at: what is merged in
        between is then seen in one of them, never in neither.
    I3  After `close` no thread and no file is left open.

One process at a time should write to a file. A second one does no harm, since each notices the other's commits, but
its messages show late in the first one's reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from base.errors import StoreUnavailable
from im.core.commands import Command, Executed, Outgoing
from im.core.generations import Newest
from im.core.ledger import LedgerSettings
from im.core.model import Member, Message, Overlay, Role, View
from im.ports import ConversationPage, Listed, Page, TimelineEntry, Visible
from im.store.combined import SEQ_END, messages_at, newest_entries, users_of
from im.store.lanes import Lane, ReadLanes
from im.store.listing import read_listed, read_readers
from im.store.log import MessageLog
from im.store.reading import (
    find_ends,
    find_floors,
    find_heads,
    find_members,
    read_conversation,
    read_conversation_before,
    read_log,
    read_members,
    read_outgoing,
    read_timeline,
)
from im.store.schema import prepare_database

__all__ = ["SqliteMessageStore"]


class SqliteMessageStore:
    """A `MessageStore` in one SQLite file. Made by `open`."""

    def __init__(self, writer: Lane, readers: ReadLanes, log: MessageLog, epoch: str) -> None:
        self._writer = writer
        self._readers = readers
        self._log = log
        self._epoch = epoch
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        settings: LedgerSettings | None = None,
        readers: int = 2,
        lag_max: int = 16_384,
        reads_waiting_max: int = 10_000,
    ) -> SqliteMessageStore:
        """Open the file, or make it with a new epoch. An older release's file is brought up to date.

        Args:
            path: its folder must exist; SQLite puts two more files beside it.
            settings: what the ledger decides by.
            readers: threads for reading what memory does not have.
            lag_max: how many entries may wait to be indexed before a merge begins. More of them are cheaper to
                merge; little more than twice as many are kept in memory, at about 1 KB each, and read when the file
                is opened. A long message counts as several: see `im.core.generations.size_of`.
            reads_waiting_max: reads that may wait for a reading thread, each; one more is refused with Overloaded.

        Raises:
            StoreError: a newer release wrote the file.
            StoreUnavailable: the file cannot be opened or written.
        """
        assert readers > 0
        assert lag_max > 0
        decided_by = settings or LedgerSettings()
        lanes = [Lane(path, f"messages-{name}") for name in ("writer", *(f"reader-{i}" for i in range(readers)))]
        writer = lanes[0]
        try:
            await writer.open()
            epoch = await writer.run(prepare_database)
            log = await writer.run(lambda connection: MessageLog(connection, decided_by, lag_max=lag_max))
            for lane in lanes[1:]:
                await lane.open()
        except BaseException:
            for lane in reversed(lanes):
                await lane.close()
            raise
        return cls(writer, ReadLanes(lanes[1:], waiting_max=reads_waiting_max), log, epoch)

    @property
    def epoch(self) -> str:
        """Name of this file's life, made with it."""
        return self._epoch

    @property
    def has_work(self) -> bool:
        """Whether drafts are queued or fan-outs go on."""
        return self._log.has_work

    async def execute(self, commands: Sequence[Command]) -> Executed:
        """Carry out the commands in their order, in one transaction, durable on return.

        A caller that is cancelled while it waits does not know the outcome, as after `StoreUnavailable`.
        """
        self._check_open()
        return await self._writer.run(lambda _: self._log.execute(commands))

    # ------------------------------------------------------------ timelines

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`.

        Raises:
            Overloaded: too many reads wait for the disk.
        """
        assert since >= 0
        assert limit > 0
        newest = self._newest()
        since = min(since, SEQ_END)  # callers' numbers may be beyond 64 bits
        tail = newest.tail(user, since=since, limit=limit)
        first, entries = (SEQ_END, []) if tail is None else (tail.first, tail.entries)
        begin = since if tail is None else max(since, tail.floor)
        overlays: dict[tuple[int, int], Overlay] = {}
        floor, head = begin, tail.head if tail is not None else 0
        if begin + 1 < first:
            floor, head_indexed, older, overlays = await self._readers.run(
                lambda connection: _read_page(connection, user, begin, first, limit)
            )
            if floor >= first:  # trimmed meanwhile
                page = await self.timeline(user, since=floor, limit=limit)
                return Page(page.head, max(floor, page.floor), page.entries, page.overlays)
            head = head or head_indexed
            entries = (older + entries)[:limit]
        overlays |= newest.overlays([message for _, message in entries])
        return Page(
            head,
            floor if floor > since else 0,
            tuple(TimelineEntry(offset, message) for offset, message in entries),
            overlays,
        )

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        newest = self._newest()
        heads: dict[str, int] = {}
        asked: list[str] = []
        for user in users:
            head = newest.head(user)
            if head is None:
                asked.append(user)
            else:
                heads[user] = head
        if asked:
            heads |= await self._readers.run(lambda connection: find_heads(connection, asked))
        return [heads[user] for user in users]

    # ------------------------------------------------------------ conversations

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation's entries after `since`, without a hole, up to the limit."""
        assert since >= 0
        assert limit > 0
        newest = self._newest()
        since = min(since, SEQ_END)  # as in `timeline`
        tail = newest.conversation_tail(cid, since=since, limit=limit)
        if tail is None:
            return await self._readers.run(
                lambda connection: _page(
                    _head(connection, cid),
                    *read_conversation(connection, cid, since=since, before=SEQ_END, limit=limit),
                )
            )
        messages = tail.messages
        overlays: dict[tuple[int, int], Overlay] = {}
        if since + 1 < tail.first:
            older, overlays = await self._readers.run(
                lambda connection: read_conversation(connection, cid, since=since, before=tail.first, limit=limit)
            )
            messages = (older + messages)[:limit]
        return _page(tail.head, messages, overlays | newest.overlays(messages))

    async def conversation_before(self, cid: int, *, before: int, limit: int) -> ConversationPage:
        """Return the conversation's last entries before `before`, without a hole, up to the limit."""
        assert limit > 0
        newest = self._newest()
        before = min(before, SEQ_END)
        tail = newest.conversation_before(cid, before=before, limit=limit)
        if tail is None:
            return await self._readers.run(
                lambda connection: _page(
                    _head(connection, cid),
                    *read_conversation_before(connection, cid, before=before, limit=limit),
                )
            )
        messages = tail.messages
        overlays: dict[tuple[int, int], Overlay] = {}
        if (room := limit - len(messages)) > 0 and min(before, tail.first) > 1:
            older, overlays = await self._readers.run(
                lambda connection: read_conversation_before(connection, cid, before=min(before, tail.first), limit=room)
            )
            messages = older + messages
        return _page(tail.head, messages, overlays | newest.overlays(messages))

    async def messages(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        """Return those of the entries that there are, ascending."""
        newest = self._newest()
        places = [(cid, seq) for seq in sorted(set(seqs)) if seq <= SEQ_END]

        def read(connection: sqlite3.Connection) -> ConversationPage:
            end = newest_entries(connection, newest, [cid]).get(cid)
            messages, overlays = messages_at(connection, newest, places)
            messages.sort(key=lambda message: message.seq)
            return _page(end.seq if end is not None else 0, messages, overlays)

        return await self._readers.run(read)

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        newest = self._newest()
        heads: dict[int, int] = {}
        asked: list[tuple[int, int]] = []
        for cid in cids:
            end = newest.conversation_end(cid)
            if end is None:
                asked.append((cid, SEQ_END))
            else:
                heads[cid] = end.seq
        if asked:
            ends = await self._readers.run(lambda connection: find_ends(connection, asked))
            heads |= {cid: end.seq for cid, end in ends.items()}
        return [heads.get(cid, 0) for cid in cids]

    # ------------------------------------------------------------ who, and what they made of it

    async def membership(self, cid: int, user: str) -> Visible | None:
        """Return what of the conversation the user may see; None: nothing, or there is no such conversation."""
        newest = self._newest()
        pair = newest.users_of(cid)
        if pair is None:
            return await self._readers.run(lambda connection: _membership(connection, newest, cid, user))
        return Visible(1, 0, Role.MEMBER) if user in pair else None

    async def conversations(self, user: str) -> list[Listed]:
        """Return all conversations that the user is in, or was in, in any order, heads in brief."""
        newest = self._newest()
        return await self._readers.run(lambda connection: read_listed(connection, newest, user))

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        """Return these conversations, if the user is or was in them."""
        newest = self._newest()
        return await self._readers.run(lambda connection: read_listed(connection, newest, user, cids))

    async def members(self, cid: int, *, after: str, limit: int) -> list[Member]:
        """Return present members of a group by name, after the name `after`."""
        assert limit > 0
        self._newest()
        return await self._readers.run(lambda connection: read_members(connection, cid, after=after, limit=limit))

    async def users(self, cid: int, *, at_most: int) -> Sequence[str]:
        """Return who is in the conversation now, by name; nobody if they are more than `at_most`, or there is none."""
        assert at_most > 1
        newest = self._newest()
        pair = newest.users_of(cid)
        if pair is not None:
            return sorted(set(pair))
        return await self._readers.run(lambda connection: _users(connection, newest, cid, at_most))

    async def views(self, cid: int, *, read_from: int, limit: int) -> list[View]:
        """Return views of present members who have read `read_from`, or sent something there or later, by name."""
        assert limit > 0
        newest = self._newest()
        return await self._readers.run(
            lambda connection: read_readers(connection, newest, cid, read_from=read_from, limit=limit)
        )

    async def log(self, *, after: int, limit: int) -> list[Message]:
        """Return committed entries of all conversations, in the order of `n`, after `after`; no notes."""
        assert limit > 0
        self._newest()
        return await self._readers.run(lambda connection: read_log(connection, after=after, limit=limit))

    async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
        """Return committed entries that are to go to a shard, behind a position, ascending."""
        assert limit > 0
        self._check_open()
        return await self._readers.run(lambda connection: read_outgoing(connection, shard, after=after, limit=limit))

    async def close(self) -> None:
        """Wait for what was begun, then close files and threads. Idempotent."""
        self._is_closed = True
        await self._readers.close()
        await self._writer.close()  # the last one to leave copies the log into the file

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the message store is closed")

    def _newest(self) -> Newest:
        """Return what is not indexed, for one read: before it looks into the indexes (I2)."""
        self._check_open()
        return self._log.generations.newest


def _read_page(
    connection: sqlite3.Connection, user: str, since: int, before: int, limit: int
) -> tuple[int, int, list[tuple[int, Message]], dict[tuple[int, int], Overlay]]:
    """Return where the page begins, the newest indexed offset, and entries with overlays."""
    begin = max(since, find_floors(connection, [user]).get(user, 0))
    entries, overlays = read_timeline(connection, user, since=begin, before=before, limit=limit)
    return begin, find_heads(connection, [user])[user], entries, overlays


def _head(connection: sqlite3.Connection, cid: int) -> int:
    end = find_ends(connection, [(cid, SEQ_END)]).get(cid)
    return end.seq if end is not None else 0


def _page(head: int, messages: Sequence[Message], overlays: dict[tuple[int, int], Overlay]) -> ConversationPage:
    return ConversationPage(head, tuple(messages), overlays)


def _users(connection: sqlite3.Connection, newest: Newest, cid: int, at_most: int) -> Sequence[str]:
    pair = users_of(connection, newest, [cid]).get(cid)
    if pair is not None:
        return sorted(set(pair))
    users = [member.user for member in read_members(connection, cid, after="", limit=at_most + 1)]
    return users if len(users) <= at_most else ()


def _membership(connection: sqlite3.Connection, newest: Newest, cid: int, user: str) -> Visible | None:
    member = find_members(connection, [(cid, user)]).get((cid, user))
    if member is not None:
        return Visible(member.first_seq, member.leave_seq, member.role)
    pair = users_of(connection, newest, [cid]).get(cid)
    return Visible(1, 0, Role.MEMBER) if pair is not None and user in pair else None
