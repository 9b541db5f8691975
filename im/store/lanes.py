"""Threads with a SQLite file each, for an event loop that must not wait for the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from base.errors import DeadlineExceeded, Overloaded, StoreUnavailable

__all__ = ["Lane", "ReadLanes", "SqliteThread"]

T = TypeVar("T")

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",  # KiB for each connection
    "PRAGMA wal_autocheckpoint = 4000",  # pages, 16 MB: one that changes again and again is copied less often
    "PRAGMA journal_size_limit = 67108864",  # bytes: a write-ahead log that a reader once held back shrinks again
)

_READ_RETRY_AFTER_MS = 200


class _Opened(Protocol):
    def close(self) -> None: ...


class SqliteThread:
    """A thread for all work with a connection. Failures of SQLite become ours here, and only here."""

    def __init__(self, name: str, *, what: str) -> None:
        """`what` is it that fails, in the words of errors."""
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._what = what
        self.waiting = 0
        """Calls that have not returned."""

    async def call(self, work: Callable[[], T]) -> T:
        """Do the work on the thread, after whatever was asked before.

        Raises:
            DeadlineExceeded: it interrupted itself, since it took too long.
            StoreUnavailable: SQLite failed.
        """
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except sqlite3.Error as error:
            reason = getattr(error, "sqlite_errorname", type(error).__name__)
            if reason == "SQLITE_INTERRUPT":
                raise DeadlineExceeded(f"{self._what} took too long") from error
            raise StoreUnavailable(f"{self._what} failed: {error} ({reason})") from error
        finally:
            self.waiting -= 1

    async def end(self, opened: _Opened | None) -> None:
        """Let the running work end, then close what it works on, if that is open, and the thread."""
        try:
            if opened is not None:
                # A caller that stops waiting must not leave the file open.
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, opened.close))
        finally:
            self._threads.shutdown()


class Lane(SqliteThread):
    """A thread with a connection that nobody else touches."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(name, what=f"the message store {path.name}")
        self._path = path
        self._connection: sqlite3.Connection | None = None
        """None before `open` and after `close`."""

    async def open(self) -> None:
        """Connect. The file is made if its folder exists."""
        await self.call(self._connect)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work on the lane's thread, after whatever was asked before.

        Raises:
            StoreUnavailable: SQLite failed.
        """
        connection = self._connection
        assert connection is not None
        return await self.call(lambda: work(connection))

    async def close(self) -> None:
        """Let the running work end, then close file and thread. Idempotent."""
        connection, self._connection = self._connection, None
        await self.end(connection)

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=256)
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        self._connection = connection


class ReadLanes:
    """Lanes that only read, and a bound on what waits for each."""

    def __init__(self, lanes: Sequence[Lane], *, waiting_max: int) -> None:
        assert lanes
        self._lanes = lanes
        self._waiting_max = waiting_max

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work in one transaction: all that it reads is of one moment, at or after this call.

        Raises:
            Overloaded: too many reads wait for the disk.
            StoreUnavailable: SQLite failed.
        """
        lane = min(self._lanes, key=lambda lane: lane.waiting)
        if lane.waiting >= self._waiting_max:
            raise Overloaded(
                "too many reads wait for the disk", what="message_reads", retry_after_ms=_READ_RETRY_AFTER_MS
            )
        return await lane.run(lambda connection: _in_snapshot(connection, work))

    async def close(self) -> None:
        """Close all lanes. Idempotent."""
        for lane in self._lanes:
            await lane.close()


def _in_snapshot(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    try:
        return work(connection)
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
