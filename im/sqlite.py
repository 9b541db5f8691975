"""The durable message store of one machine: a SQLite file, one writing thread and a few reading ones.

Appends go to the writer; `im.sqlite_log` has the layout and the crash rules. Reads look into memory first: the newest
entries of a timeline or conversation, which is what clients nearly always ask for, are there until they are indexed.
Older ones come from a reader's own connection, which SQLite's write-ahead log lets run beside the writer.

Invariants:
    I1  What `append` returned is on the disk: with `synchronous = FULL` it survives a power cut too.
    I2  A page is one closed stretch of its timeline or conversation: all entries from `since` up to its last one, and a
        head that is not below them. Memory is looked at before the indexes: what is merged in between is then seen in
        one of them, never in neither.
    I3  After `close` no thread and no file is left open.

One process at a time should write to a file. A second one does no harm, since each notices the other's commits, but
its messages show late in the first one's reads.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from base.errors import Overloaded, StoreUnavailable
from im.ports import Appended, ConversationPage, Draft, KeyConflict, Page, TimelineEntry
from im.sqlite_log import (
    MessageLog,
    prepare_database,
    read_conversation,
    read_conversation_heads,
    read_heads,
    read_members,
    read_timeline,
)

__all__ = ["SqliteMessageStore"]

T = TypeVar("T")

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",  # KiB for each connection
    "PRAGMA wal_autocheckpoint = 4000",  # pages, 16 MB: one that changes again and again is copied less often
    "PRAGMA journal_size_limit = 67108864",  # bytes: a write-ahead log that a reader once held back shrinks again
)

_OFFSET_END = 2**63 - 1  # SQLite's greatest integer, which no timeline reaches

_READ_RETRY_AFTER_MS = 200


class _Lane:
    """A thread with a connection that nobody else touches. Failures of SQLite become ours here, and only here."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None
        """None before `open` and after `close`."""
        self.waiting = 0
        """Calls that have not returned."""

    async def open(self) -> None:
        """Connect. The file is made if its folder exists."""
        await self._call(self._connect)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work on the lane's thread, after whatever was asked before.

        Raises:
            StoreUnavailable: SQLite failed.
        """
        connection = self._connection
        assert connection is not None
        return await self._call(lambda: work(connection))

    async def close(self) -> None:
        """Let the running work end, then close file and thread. Idempotent."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                # A caller that stops waiting must not leave the file open.
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, connection.close))
        finally:
            self._threads.shutdown()

    async def _call(self, work: Callable[[], T]) -> T:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except sqlite3.Error as error:
            reason = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StoreUnavailable(f"the message store {self._path.name} failed: {error} ({reason})") from error
        finally:
            self.waiting -= 1

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=256)
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        self._connection = connection


class SqliteMessageStore:
    """A `MessageStore` in one SQLite file. Made by `open`."""

    def __init__(
        self, writer: _Lane, readers: Sequence[_Lane], log: MessageLog, epoch: str, *, reads_waiting_max: int
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._log = log
        self._epoch = epoch
        self._reads_waiting_max = reads_waiting_max
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        readers: int = 2,
        lag_max: int = 16_384,
        hot_max: int = 100_000,
        reads_waiting_max: int = 10_000,
    ) -> SqliteMessageStore:
        """Open the file, or make it with a new epoch.

        Args:
            path: its folder must exist; SQLite puts two more files beside it.
            readers: threads for reading what memory does not have.
            lag_max: how many messages may wait to be indexed before a merge begins. More of them are cheaper to
                merge; up to twice as many are kept in memory, at about 1 KB each, and read when the file is opened.
            hot_max: conversations and users, each, whose counters stay in memory, at about 300 bytes each.
            reads_waiting_max: reads that may wait for a reading thread, each; one more is refused with Overloaded.

        Raises:
            StoreError: a newer release wrote the file.
            StoreUnavailable: the file cannot be opened or written.
        """
        assert readers > 0
        assert lag_max > 0
        lanes = [_Lane(path, f"messages-{name}") for name in ("writer", *(f"reader-{i}" for i in range(readers)))]
        writer = lanes[0]
        try:
            await writer.open()
            epoch = await writer.run(prepare_database)
            log = await writer.run(lambda connection: MessageLog(connection, lag_max=lag_max, hot_max=hot_max))
            for lane in lanes[1:]:
                await lane.open()
        except BaseException:
            for lane in reversed(lanes):
                await lane.close()
            raise
        return cls(writer, lanes[1:], log, epoch, reads_waiting_max=reads_waiting_max)

    @property
    def epoch(self) -> str:
        """Name of this file's life, made with it."""
        return self._epoch

    async def append(self, drafts: Sequence[Draft]) -> list[Appended | KeyConflict]:
        """Store the drafts in their order, in one transaction, durable on return; one outcome each.

        A caller that is cancelled while it waits does not know the outcome, as after `StoreUnavailable`.
        """
        self._check_open()
        return await self._writer.run(lambda _: self._log.append(drafts)) if drafts else []

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`.

        Raises:
            Overloaded: too many reads wait for the disk.
        """
        assert since >= 0
        assert limit > 0
        self._check_open()
        since = min(since, _OFFSET_END)  # callers' numbers may be beyond 64 bits
        tail = self._log.recent.tail(user, since=since, limit=limit)
        if tail is None:
            return await self._read(lambda connection: _read_page(connection, user, since, limit))
        if since + 1 >= tail.first:
            return Page(tail.head, tuple(tail.entries))
        older = await self._read(lambda connection: _read_entries(connection, user, since, tail.first, limit))
        return Page(tail.head, tuple((older + tail.entries)[:limit]))

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        self._check_open()
        recent = self._log.recent
        heads: dict[str, int] = {}
        asked: list[str] = []
        for user in users:
            head = recent.head(user)
            if head is None:
                asked.append(user)
            else:
                heads[user] = head
        if asked:
            heads.update(await self._read(lambda connection: read_heads(connection, asked)))
        return [heads[user] for user in users]

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation after `since`.

        Raises:
            Overloaded: too many reads wait for the disk.
        """
        assert since >= 0
        assert limit > 0
        self._check_open()
        since = min(since, _OFFSET_END)  # as in `timeline`
        tail = self._log.recent.conversation_tail(cid, since=since, limit=limit)
        if tail is None:
            return await self._read(lambda connection: _read_conversation_page(connection, cid, since, limit))
        messages = tail.messages
        if since + 1 < tail.first:
            before = tail.first
            older = await self._read(
                lambda connection: read_conversation(connection, cid, since=since, before=before, limit=limit)
            )
            messages = (older + messages)[:limit]
        return ConversationPage(tail.head, tuple(messages))

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        self._check_open()
        recent = self._log.recent
        heads: dict[int, int] = {}
        asked: list[int] = []
        for cid in cids:
            end = recent.conversation_end(cid)
            if end is None:
                asked.append(cid)
            else:
                heads[cid] = end.seq
        if asked:
            heads.update(await self._read(lambda connection: read_conversation_heads(connection, asked)))
        return [heads[cid] for cid in cids]

    async def is_member(self, cid: int, user: str) -> bool:
        """Return whether the user is in the conversation."""
        self._check_open()
        end = self._log.recent.conversation_end(cid)
        if end is not None:
            return user in (end.sender, end.recipient)
        return user in await self._read(lambda connection: read_members(connection, cid))

    async def close(self) -> None:
        """Wait for what was begun, then close files and threads. Idempotent."""
        self._is_closed = True
        for lane in (*self._readers, self._writer):  # the last one to leave copies the log into the file
            await lane.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the message store is closed")

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        lane = min(self._readers, key=lambda lane: lane.waiting)
        if lane.waiting >= self._reads_waiting_max:
            raise Overloaded(
                "too many reads wait for the disk", what="message_reads", retry_after_ms=_READ_RETRY_AFTER_MS
            )
        return await lane.run(work)


def _read_page(connection: sqlite3.Connection, user: str, since: int, limit: int) -> Page:
    connection.execute("BEGIN")  # one snapshot for head and entries
    try:
        [(_, head)] = read_heads(connection, [user])
        entries = _read_entries(connection, user, since, _OFFSET_END, limit)
    finally:
        connection.execute("COMMIT")
    return Page(head, tuple(entries))


def _read_conversation_page(connection: sqlite3.Connection, cid: int, since: int, limit: int) -> ConversationPage:
    connection.execute("BEGIN")  # as in `_read_page`
    try:
        [(_, head)] = read_conversation_heads(connection, [cid])
        messages = read_conversation(connection, cid, since=since, before=_OFFSET_END, limit=limit)
    finally:
        connection.execute("COMMIT")
    return ConversationPage(head, tuple(messages))


def _read_entries(
    connection: sqlite3.Connection, user: str, since: int, before: int, limit: int
) -> list[TimelineEntry]:
    rows = read_timeline(connection, user, since=since, before=before, limit=limit)
    return [TimelineEntry(offset, message) for offset, message in rows]
