"""The registry of a single-process deployment: memory, with its keys kept in an SQLite file.

Keys and their indexes survive a restart; services and sessions do not, since they are about processes that ended with
it. Fencing tokens keep growing, because the index goes on from the newest change stored.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from base.clock import Clock
from base.core.registry import Entry, KeyChange
from base.errors import StoreUnavailable
from base.registry.memory import MemoryRegistry

__all__ = ["SqliteRegistry"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, value BLOB NOT NULL, "index" INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS newest (id INTEGER PRIMARY KEY CHECK (id = 1), "index" INTEGER NOT NULL);
INSERT OR IGNORE INTO newest VALUES (1, 0);
"""


class SqliteRegistry(MemoryRegistry):
    """Implements `Registry`. The file belongs to one process at a time."""

    def __init__(self, clock: Clock, path: Path) -> None:
        """Open or make the file. Raises StoreUnavailable when that fails."""
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            (index,) = self._db.execute('SELECT "index" FROM newest').fetchone()
            rows = self._db.execute('SELECT key, value, "index" FROM entry').fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{path}: {error}") from error
        super().__init__(clock, entries=[Entry(*row) for row in rows], index=index)

    def _persist(self, change: KeyChange) -> asyncio.Future[None] | None:
        return asyncio.get_running_loop().run_in_executor(None, self._write, change)

    def _write(self, change: KeyChange) -> None:
        try:
            self._write_whole(change)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{change.key} could not be stored: {error}") from error

    def _write_whole(self, change: KeyChange) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # Apart from the entries, since the newest change may be a deletion: its index must not come again either.
            self._db.execute('UPDATE newest SET "index" = ?', (change.index,))
            if change.entry is None:
                self._db.execute("DELETE FROM entry WHERE key = ?", (change.key,))
            else:
                row = (change.key, change.entry.value, change.index)
                self._db.execute('INSERT OR REPLACE INTO entry (key, value, "index") VALUES (?, ?, ?)', row)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    async def close(self) -> None:
        """Close the file."""
        self._db.close()
