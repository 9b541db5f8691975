"""The writing side of the SQLite message store: logs, and indexes that catch up with them.

A message is looked for by conversation, by key and by the timelines of its users. In each of these orders, neighbours
in time are far apart: indexed at once, a batch of 200 messages changes some 900 pages, and most of a transaction's time
goes into writing pages. So a transaction only adds to the end of `msg` and `fan`, the logs in order of commit: about a
dozen pages, and durable. When `lag_max` entries are not indexed yet, they are sorted for each index, and from then on
every transaction moves a little more than its own size from that plan into the indexes. Neighbours in the plan share
pages; no transaction waits for a big merge; and the merge ends before the next one is due. `Generations` answers for
what is not indexed. It is in memory, so sizes are those of `im.core.generations.size_of`: a long message counts for as
many short ones as have room in its place.

Invariants:
    I1  A batch is one transaction: after any failure or crash all that its commands did is there, or nothing is.
    I2  Every entry up to `indexed_through` and `fan_indexed_through` is in all indexes. Later ones are in memory, and
        may be in some index already: a merge that a crash cut off is done again and finds its own rows.
    I3  Memory never outlives the truth that it was read from: after a failed transaction, and after a commit by
        anybody else, ledger and generations are made anew before the next command is carried out.
    I4  An entry that was trimmed leaves the index only once it is there for good: a merge does not bring it back.

Source: P. O'Neil et al., "The Log-Structured Merge-Tree" (1996), for deferring and sorting what goes into an index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from im.core.commands import Command, Draft, Executed
from im.core.facts import Changes, QueuedDraft
from im.core.generations import Entry, Generations, Stored, size_of
from im.core.ledger import Ledger, LedgerSettings
from im.core.model import Form, Message, Pending
from im.store.facts import facts_of
from im.store.merging import Merge, Range, prepare_plans
from im.store.reading import find_floors, find_overlays
from im.store.schema import MESSAGE
from im.store.writing import write_changes

__all__ = ["MessageLog"]

SWEEP_MAX = 512
"""Trimmed entries that one transaction takes out of the index."""

_decode_draft = msgspec.msgpack.Decoder(Draft).decode

# ruff: noqa: S608 - all that is put into these texts are constants

_READ_UNINDEXED = f"SELECT {MESSAGE}, sender_offset, recipient_offset FROM msg WHERE n > ? ORDER BY n"
_READ_UNINDEXED_FAN = "SELECT user, offset, n FROM fan WHERE pos > ? ORDER BY pos"
_READ_FANNED = f"SELECT {MESSAGE} FROM msg WHERE n <= ?1 AND n IN (SELECT n FROM fan WHERE pos > ?2)"
"""Messages that are indexed, though not in all timelines."""
_READ_PENDING = f"SELECT {MESSAGE}, after FROM pending CROSS JOIN msg USING (n) ORDER BY n"
_READ_LAST_CID = f"""SELECT max(
    ifnull((SELECT max(cid) FROM conv WHERE cid <= :most), 0),
    ifnull((SELECT max(cid) FROM msg WHERE n > :n AND cid <= :most AND form <> {Form.NOTE:d} AND origin = 0), 0))"""
_READ_LAST_OUT = """SELECT max(
    ifnull((SELECT max(position) FROM outbox), 0), ifnull((SELECT max(position) FROM sent), 0))"""


class MessageLog:
    """The one writer. Its thread owns the connection; other threads may only take `generations.newest`."""

    def __init__(self, connection: sqlite3.Connection, settings: LedgerSettings, *, lag_max: int) -> None:
        """Take over a prepared database. `SqliteMessageStore.open` explains the bound."""
        self._connection = connection
        self._settings = settings
        self._lag_max = lag_max
        self._data_version: int | None = None
        """SQLite's count of commits by others at our last look; None when memory must be read anew (I3)."""
        self._merge: Merge | None = None
        self._indexed = (0, 0)
        """The newest `n` of `msg` and `pos` of `fan` that are indexed; as of the last commit."""
        self._last_pos = 0
        self._first_pos = 0
        """The range of `fan`; what of it is indexed is deleted bit by bit."""
        self._unswept: dict[str, tuple[int, int]] = {}
        """By user: entries after the first offset and through the second are to leave the index."""
        prepare_plans(connection)
        self.generations = Generations()
        self._ledger = Ledger(settings, last_n=0, last_cid=0)
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._refresh()
        finally:
            connection.execute("COMMIT")

    @property
    def has_work(self) -> bool:
        """Whether drafts are queued or fan-outs go on; any thread may ask. After a failure: it must be found out."""
        return self._data_version is None or self._ledger.has_work

    def execute(self, commands: Sequence[Command]) -> Executed:
        """Carry out the commands and make what they did durable, in one transaction."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._refresh()
            changes = self._decide(commands)
            # Before what is new is written, and while memory has all that is not indexed.
            self._sweep()
            if units := size_of(changes.messages, changes.entries):
                self._merge_some(units + units // 4 + 1)
            if changes:
                self._write(changes)
            connection.execute("COMMIT")
        except BaseException:
            self._data_version = None
            if connection.in_transaction:  # on a full disk SQLite has rolled back by itself
                connection.execute("ROLLBACK")
            raise
        self.generations.commit(changes.messages, changes.entries, changes.overlays, changes.floors)
        if self._merge is not None and self._merge.is_done:
            self._indexed = self._merge.reach.through
            self._merge = None
            self.generations.retire()
        return Executed(changes.outcomes, changes.deliveries, changes.outgoing)

    def _decide(self, commands: Sequence[Command]) -> Changes:
        ledger, newest = self._ledger, self.generations.newest
        needs = ledger.begin(commands)
        while needs is not None:
            ledger.learn(facts_of(self._connection, newest, needs))
            needs = ledger.more()
        return ledger.execute()

    def _write(self, changes: Changes) -> None:
        self._last_pos = write_changes(
            self._connection, changes, last_pos=self._last_pos, single_fan_out=self._settings.policy.single
        )
        for user in changes.floors:
            row = self._connection.execute("SELECT swept, through FROM floor WHERE user = ?", (user,)).fetchone()
            self._unswept[user] = row

    # ------------------------------------------------------------ memory

    def _refresh(self) -> None:
        """Read memory anew if it may not be the truth (I3)."""
        connection = self._connection
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version:
            return
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        self._indexed = (meta["indexed_through"], meta["fan_indexed_through"])
        first_pos, last_pos = connection.execute("SELECT min(pos), max(pos) FROM fan").fetchone()
        # Positions go on behind what was indexed and deleted.
        self._last_pos = max(last_pos or 0, self._indexed[1])
        self._first_pos = first_pos or self._last_pos + 1
        unswept = connection.execute("SELECT user, swept, through FROM floor WHERE swept < through")
        self._unswept = {user: (swept, through) for user, swept, through in unswept}
        self._merge = None
        self.generations = self._restored()
        self._ledger = Ledger(
            self._settings,
            last_n=connection.execute("SELECT ifnull(max(n), 0) FROM msg").fetchone()[0],
            last_cid=connection.execute(
                _READ_LAST_CID, {"n": self._indexed[0], "most": self._settings.counted_max}
            ).fetchone()[0],
            pendings=[_pending(row) for row in connection.execute(_READ_PENDING)],
            queued=[
                QueuedDraft(position, _decode_draft(draft))
                for position, draft in connection.execute("SELECT position, draft FROM queued ORDER BY position")
            ],
            last_out=connection.execute(_READ_LAST_OUT).fetchone()[0],
            received=dict(connection.execute("SELECT shard, position FROM received").fetchall()),
        )
        self._data_version = version

    def _restored(self) -> Generations:
        """Return what is not indexed, as it was committed."""
        connection, (n, pos) = self._connection, self._indexed
        messages = [_stored(row) for row in connection.execute(_READ_UNINDEXED, (n,))]
        # Each once, though it may go to a thousand timelines.
        fanned = {message.n: message for message, _ in messages}
        fanned |= {row[0]: Message(*row) for row in connection.execute(_READ_FANNED, (n, pos))}
        entries: list[Entry] = [
            (user, offset, fanned[of]) for user, offset, of in connection.execute(_READ_UNINDEXED_FAN, (pos,))
        ]
        covered = [
            place
            for message, _ in messages
            if message.form in {Form.EDIT, Form.RECALL}
            for place in ((message.cid, message.ref), (message.cid, message.seq))
        ]
        users = {user for _, positions in messages for user, _ in positions} | {user for user, *_ in entries}
        generations = Generations()
        generations.commit(messages, entries, find_overlays(connection, covered), find_floors(connection, users))
        return generations

    # ------------------------------------------------------------ indexes

    def _merge_some(self, step: int) -> None:
        """Take the merge a step further, beginning one when it is due; forget as much of what earlier ones indexed."""
        self._delete_indexed_fan(step)
        if self._merge is None:
            size = len(self.generations)
            if size < self._lag_max:
                return
            last_n: int = self._connection.execute("SELECT max(n) FROM msg").fetchone()[0]
            reach = Range(after=self._indexed, through=(last_n, self._last_pos))
            self._merge = Merge(self._connection, reach, size)
            self.generations.freeze()
        # A merge that grew over crashes goes faster: it must end before as much as usual has come.
        self._merge.step(step * max(1, self._merge.size // self._lag_max))

    def _delete_indexed_fan(self, step: int) -> None:
        """Forget a part of the log of entries that the index has."""
        end = min(self._first_pos + step, self._indexed[1] + 1)
        if self._first_pos < end:
            self._connection.execute("DELETE FROM fan WHERE pos < ?", (end,))
            self._first_pos = end

    def _sweep(self) -> None:
        """Take some of what was trimmed out of the index, of one user a time in turns (I4)."""
        if not self._unswept:
            return
        user, (swept, through) = next(iter(self._unswept.items()))
        del self._unswept[user]
        first = self.generations.newest.first(user)
        indexed = through if first is None else first - 1
        end = max(swept, min(through, swept + SWEEP_MAX, indexed))
        if end > swept:
            self._connection.execute(
                "DELETE FROM user_tl WHERE user = ? AND offset > ? AND offset <= ?", (user, swept, end)
            )
            self._connection.execute("UPDATE floor SET swept = ? WHERE user = ?", (end, user))
        if end < through:
            self._unswept[user] = (end, through)  # behind the others


def _stored(row: tuple[Any, ...]) -> Stored:
    *columns, sender_offset, recipient_offset = row
    message = Message(*columns)
    positions = []
    if sender_offset:
        positions.append((message.sender, sender_offset))
    if recipient_offset:  # NULL in version 1, in a chat with oneself
        positions.append((message.recipient, recipient_offset))
    return message, positions


def _pending(row: tuple[Any, ...]) -> tuple[Pending, Message]:
    *columns, after = row
    message = Message(*columns)
    return Pending(message.n, message.cid, message.seq, after), message
