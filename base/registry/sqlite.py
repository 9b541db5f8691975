"""The registry of a single-process deployment: memory, with its keys kept in an SQLite file.

Keys and their indexes survive a restart; services and sessions do not, since they are about processes that ended with
it. Fencing tokens keep growing, because the index goes on from the greatest one stored.
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
CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, value BLOB NOT NULL, "index" INTEGER NOT NULL) WITHOUT ROWID
"""


class SqliteRegistry(MemoryRegistry):
    """Implements `Registry`. The file belongs to one process at a time."""

    def __init__(self, clock: Clock, path: Path) -> None:
        """Open or make the file. Raises StoreUnavailable when that fails."""
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
            rows = self._db.execute('SELECT key, value, "index" FROM entry').fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{path}: {error}") from error
        super().__init__(clock, entries=[Entry(key, value, index) for key, value, index in rows])

    async def _persist(self, change: KeyChange) -> None:
        try:
            await asyncio.to_thread(self._write, change)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{change.key} could not be stored: {error}") from error

    def _write(self, change: KeyChange) -> None:
        if change.entry is None:
            self._db.execute("DELETE FROM entry WHERE key = ?", (change.key,))
        else:
            row = (change.key, change.entry.value, change.index)
            self._db.execute('INSERT OR REPLACE INTO entry (key, value, "index") VALUES (?, ?, ?)', row)

    async def close(self) -> None:
        """Close the file."""
        self._db.close()
