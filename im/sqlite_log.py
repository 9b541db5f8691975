"""The writing side of the SQLite message store: a log, and indexes that catch up with it.

A message is looked for by conversation, by key and by the timelines of two users. In each of these orders,
neighbours in time are far apart: indexed at once, a batch of 200 messages changes some 900 pages, and most of an
append's time goes into writing pages. So an append only adds to the end of `msg`, the log in order of commit: about
a dozen pages, and durable. When `lag_max` messages are not indexed yet, they are sorted for each index, and from
then on every append moves a little more than its own size from that plan into the indexes, in its own transaction.
Neighbours in the plan share pages; no append waits for a big merge; and the merge ends before the next one is due.
`Recent` answers for what is not indexed.

Invariants:
    I1  An append is one transaction: after any failure or crash each of its messages is there, with its key, its
        sequence number and its timeline offsets, or none is.
    I2  Every message with `n <= indexed_through` is in all indexes. Later ones are in `Recent`, and may be in some
        index already: a merge that a crash cut off is done again and finds its own rows.
    I3  An index never has an entry of a timeline or conversation without all smaller ones.
    I4  Memory never outlives the truth that it was read from: after a failed transaction, and after a commit by
        anybody else, it is read anew before the next message is placed.

Source: P. O'Neil et al., "The Log-Structured Merge-Tree" (1996), for deferring and sorting what goes into an index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from base.errors import StoreError, StoreUnavailable
from base.ids import new_epoch
from im.core.recent import Lookup, Recent
from im.ports import Appended, Draft, KeyConflict, Message

__all__ = [
    "SCHEMA_VERSION",
    "MessageLog",
    "prepare_database",
    "read_conversation",
    "read_conversation_heads",
    "read_heads",
    "read_members",
    "read_timeline",
]

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE msg (
    n INTEGER PRIMARY KEY, cid INTEGER NOT NULL, seq INTEGER NOT NULL, mid INTEGER NOT NULL, sender TEXT NOT NULL,
    device TEXT NOT NULL, recipient TEXT NOT NULL, client_msg_id TEXT NOT NULL, kind TEXT NOT NULL,
    body BLOB NOT NULL, at INTEGER NOT NULL, sender_offset INTEGER NOT NULL, recipient_offset INTEGER);
CREATE TABLE conv (cid INTEGER, seq INTEGER, n INTEGER NOT NULL, PRIMARY KEY (cid, seq)) WITHOUT ROWID;
CREATE TABLE conv_pair (lo TEXT, hi TEXT, cid INTEGER NOT NULL, PRIMARY KEY (lo, hi)) WITHOUT ROWID;
CREATE TABLE msg_key (
    sender TEXT, client_msg_id TEXT, n INTEGER NOT NULL, PRIMARY KEY (sender, client_msg_id)) WITHOUT ROWID;
CREATE TABLE user_tl (user TEXT, offset INTEGER, n INTEGER NOT NULL, PRIMARY KEY (user, offset)) WITHOUT ROWID
"""

# The plan of a merge: what goes into which index, in that index's order. It lives in memory and is made anew.
_PLAN_SCHEMA = """
CREATE TEMP TABLE plan_conv (pos INTEGER PRIMARY KEY, cid INTEGER, seq INTEGER, n INTEGER);
CREATE TEMP TABLE plan_key (pos INTEGER PRIMARY KEY, sender TEXT, client_msg_id TEXT, n INTEGER);
CREATE TEMP TABLE plan_tl (pos INTEGER PRIMARY KEY, user TEXT, offset INTEGER, n INTEGER);
"""

# Each takes the messages to plan: after ?1, through ?2. One an append, since a sort is work enough for one.
_PLAN = (
    "INSERT INTO plan_conv (cid, seq, n) SELECT cid, seq, n FROM msg WHERE n > ?1 AND n <= ?2 ORDER BY 1, 2",
    """INSERT INTO plan_key (sender, client_msg_id, n)
    SELECT sender, client_msg_id, n FROM msg WHERE n > ?1 AND n <= ?2 ORDER BY 1, 2""",
    """INSERT INTO plan_tl (user, offset, n)
    SELECT sender, sender_offset, n FROM msg WHERE n > ?1 AND n <= ?2
    UNION ALL
    SELECT recipient, recipient_offset, n FROM msg WHERE n > ?1 AND n <= ?2 AND recipient_offset IS NOT NULL
    ORDER BY 1, 2""",
)

# Each takes the positions to move: after ?1, through ?2. IGNORE, because an earlier attempt may have moved it (I2).
_MOVE = (
    "INSERT OR IGNORE INTO conv SELECT cid, seq, n FROM plan_conv WHERE pos > ?1 AND pos <= ?2 ORDER BY pos",
    """INSERT OR IGNORE INTO conv_pair SELECT min(sender, recipient), max(sender, recipient), msg.cid
    FROM plan_conv CROSS JOIN msg USING (n) WHERE pos > ?1 AND pos <= ?2 AND plan_conv.seq = 1""",
    """INSERT OR IGNORE INTO msg_key SELECT sender, client_msg_id, n
    FROM plan_key WHERE pos > ?1 AND pos <= ?2 ORDER BY pos""",
    # A message has at most two entries.
    """INSERT OR IGNORE INTO user_tl SELECT user, offset, n
    FROM plan_tl WHERE pos > 2 * ?1 AND pos <= 2 * ?2 ORDER BY pos""",
)

_MESSAGE = "msg.cid, msg.seq, mid, msg.sender, device, recipient, msg.client_msg_id, kind, body, at"

_READ_UNINDEXED = f"SELECT {_MESSAGE}, sender_offset, recipient_offset FROM msg WHERE n > ? ORDER BY n"  # noqa: S608 - constants
_READ_TIMELINE = f"""
SELECT offset, {_MESSAGE} FROM user_tl CROSS JOIN msg USING (n)
WHERE user = ? AND offset > ? AND offset < ? ORDER BY offset LIMIT ?
"""  # noqa: S608 - constants
_READ_CONVERSATION = f"""
SELECT {_MESSAGE} FROM conv CROSS JOIN msg USING (n)
WHERE conv.cid = ? AND conv.seq > ? AND conv.seq < ? ORDER BY conv.seq LIMIT ?
"""  # noqa: S608 - constants
_READ_MEMBERS = "SELECT sender, recipient FROM conv CROSS JOIN msg USING (n) WHERE conv.cid = ? AND conv.seq = 1"


class _Bulk:
    """A statement about many rows at once: `{rows}` in its text becomes `(?,?),(?,?),...`.

    Not `executemany`, which gives up and takes back the interpreter lock for every row: next to a busy event loop
    each of these can take milliseconds. Here one step is up to 64 rows.
    """

    ROWS_MAX = 64  # times 12 columns stays under the 999 parameters that any SQLite allows

    def __init__(self, template: str, *, width: int) -> None:
        row = "(" + ",".join("?" * width) + ")"
        # Sizes are powers of two, so that a few texts serve all batches and stay in the statement cache.
        sizes = [1 << power for power in reversed(range(self.ROWS_MAX.bit_length()))]
        self._texts = [(size, template.replace("{rows}", ",".join([row] * size))) for size in sizes]

    def run(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Execute for all rows, in their order; return what it selects."""
        found: list[tuple[Any, ...]] = []
        begin = 0
        for size, text in self._texts:
            while len(rows) - begin >= size:
                values = list(chain.from_iterable(rows[begin : begin + size]))
                found += connection.execute(text, values).fetchall()
                begin += size
        return found


_ADD_MESSAGES = _Bulk(
    """INSERT INTO msg (cid, seq, mid, sender, device, recipient, client_msg_id, kind, body, at,
    sender_offset, recipient_offset) VALUES {rows}""",
    width=12,
)
_FIND_KEYS = _Bulk(
    f"""WITH asked (sender, client_msg_id) AS (VALUES {{rows}})
    SELECT {_MESSAGE} FROM asked CROSS JOIN msg_key USING (sender, client_msg_id) CROSS JOIN msg USING (n)
    """,  # noqa: S608 - constants
    width=2,
)
_FIND_PAIRS = _Bulk(
    """WITH asked (lo, hi) AS (VALUES {rows})
    SELECT lo, hi, cid, (SELECT max(seq) FROM conv WHERE conv.cid = conv_pair.cid)
    FROM asked CROSS JOIN conv_pair USING (lo, hi)""",
    width=2,
)
_FIND_HEADS = _Bulk(
    """WITH asked (user) AS (VALUES {rows})
    SELECT user, ifnull((SELECT max(offset) FROM user_tl WHERE user_tl.user = asked.user), 0) FROM asked""",
    width=1,
)
_FIND_CONVERSATION_HEADS = _Bulk(
    """WITH asked (cid) AS (VALUES {rows})
    SELECT cid, ifnull((SELECT max(seq) FROM conv WHERE conv.cid = asked.cid), 0) FROM asked""",
    width=1,
)


def prepare_database(connection: sqlite3.Connection) -> str:
    """Make the schema if there is none yet; return the store's epoch, made once and kept.

    Raises:
        StoreError: a newer release wrote the file.
    """
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnavailable(f"SQLite cannot keep a write-ahead log here (journal mode {mode})")
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID")
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        if not meta:
            meta = {"schema_version": SCHEMA_VERSION, "epoch": new_epoch(), "indexed_through": 0}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
        if meta["schema_version"] > SCHEMA_VERSION:
            raise StoreError(
                f"the message store has schema version {meta['schema_version']}, written by a newer release;"
                f" this one reads up to {SCHEMA_VERSION}"
            )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    epoch: str = meta["epoch"]
    return epoch


def read_timeline(
    connection: sqlite3.Connection, user: str, *, since: int, before: int, limit: int
) -> list[tuple[int, Message]]:
    """Return up to `limit` indexed entries (offset, message) with `since < offset < before`, ascending."""
    rows = connection.execute(_READ_TIMELINE, (user, since, before, limit)).fetchall()
    return [(offset, Message(*columns)) for offset, *columns in rows]


def read_heads(connection: sqlite3.Connection, users: Sequence[str]) -> list[tuple[str, int]]:
    """Return (user, newest indexed offset) for each user, 0 where there is none."""
    return [(user, head) for user, head in _FIND_HEADS.run(connection, [(user,) for user in users])]


def read_conversation(
    connection: sqlite3.Connection, cid: int, *, since: int, before: int, limit: int
) -> list[Message]:
    """Return up to `limit` indexed messages with `since < seq < before`, ascending."""
    rows = connection.execute(_READ_CONVERSATION, (cid, since, before, limit)).fetchall()
    return [Message(*columns) for columns in rows]


def read_conversation_heads(connection: sqlite3.Connection, cids: Sequence[int]) -> list[tuple[int, int]]:
    """Return (cid, newest indexed seq) for each conversation, 0 where there is none."""
    return [(cid, head) for cid, head in _FIND_CONVERSATION_HEADS.run(connection, [(cid,) for cid in cids])]


def read_members(connection: sqlite3.Connection, cid: int) -> tuple[str, ...]:
    """Return the users of an indexed direct conversation, as its first message names them; empty if there is none."""
    return tuple(connection.execute(_READ_MEMBERS, (cid,)).fetchone() or ())


class MessageLog:
    """The one writer. Its thread owns the connection; other threads may only read `recent`."""

    def __init__(self, connection: sqlite3.Connection, *, lag_max: int, hot_max: int) -> None:
        """Take over a prepared database. `SqliteMessageStore.open` explains the two bounds."""
        self._connection = connection
        self._lag_max = lag_max
        self._hot_max = hot_max
        self._data_version: int | None = None
        """SQLite's count of commits by others at our last look; None when memory must be read anew (I4)."""
        self._merge_range = (0, 0)
        """The running merge: messages after the first `n`, through the second; how many; how far it is."""
        self._merge_size = 0
        self._merge_planned = 0
        self._merge_moved = 0
        self.recent = Recent(last_cid=0, hot_max=hot_max)
        connection.executescript(_PLAN_SCHEMA)
        self.append(())

    def append(self, drafts: Sequence[Draft]) -> list[Appended | KeyConflict]:
        """Place the drafts and make them durable, in one transaction."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._refresh()
            lookup = self.recent.lookup(drafts)
            self._answer(lookup)
            outcomes = self.recent.place(drafts, lookup.known)
            fresh = [outcome for outcome in outcomes if isinstance(outcome, Appended) and outcome.is_new]
            if fresh:
                self._merge(len(fresh) + len(fresh) // 4 + 1)
                _ADD_MESSAGES.run(connection, [_row(appended) for appended in fresh])
            connection.execute("COMMIT")
        except BaseException:
            self._data_version = None
            if connection.in_transaction:  # on a full disk SQLite has rolled back by itself
                connection.execute("ROLLBACK")
            raise
        self.recent.commit(fresh)
        if self.recent.is_merging and self._merge_moved == self._merge_size:
            self.recent.retire()
        return outcomes

    def _refresh(self) -> None:
        """Read memory anew if it may not be the truth (I4)."""
        version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version:
            return
        last_cid: int = self._connection.execute("SELECT ifnull(max(cid), 0) FROM conv").fetchone()[0]
        recent = Recent(last_cid=last_cid, hot_max=self._hot_max)
        rows = self._connection.execute(_READ_UNINDEXED, (self._indexed_through(),))
        recent.restore(_appended(row) for row in rows)
        self.recent = recent
        self._data_version = version

    def _indexed_through(self) -> int:
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'indexed_through'").fetchone()
        through: int = row[0]
        return through

    def _answer(self, lookup: Lookup) -> None:
        """Look up in the indexes what `Recent` does not know."""
        for row in _FIND_KEYS.run(self._connection, lookup.keys):
            message = Message(*row)
            lookup.known[message.sender, message.client_msg_id] = message
        pairs = _FIND_PAIRS.run(self._connection, lookup.pairs)
        conversations = [((lo, hi), cid, max_seq) for lo, hi, cid, max_seq in pairs]
        self.recent.learn(conversations, read_heads(self._connection, lookup.users))

    def _merge(self, step: int) -> None:
        """Take the merge a step further, beginning one when it is due: up to `step` messages move into the indexes."""
        if not self.recent.is_merging:
            if len(self.recent) < self._lag_max:
                return
            self._begin_merge()
        if self._merge_planned < len(_PLAN):
            self._connection.execute(_PLAN[self._merge_planned], self._merge_range)
            self._merge_planned += 1
            return
        after, through = self._merge_moved, min(self._merge_moved + step, self._merge_size)
        for statement in _MOVE:
            self._connection.execute(statement, (after, through))
        self._merge_moved = through
        if through == self._merge_size:
            self._connection.execute("UPDATE meta SET value = ? WHERE name = 'indexed_through'", self._merge_range[1:])

    def _begin_merge(self) -> None:
        """Let `Recent` collect apart from what is going to be indexed: all that is not."""
        for table in ("plan_conv", "plan_key", "plan_tl"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
        last: int = self._connection.execute("SELECT max(n) FROM msg").fetchone()[0]
        self._merge_range = (self._indexed_through(), last)
        self._merge_size = len(self.recent)
        self._merge_planned = 0
        self._merge_moved = 0
        self.recent.freeze()


def _row(appended: Appended) -> tuple[Any, ...]:
    message, positions = appended.message, appended.positions
    return (
        message.cid,
        message.seq,
        message.mid,
        message.sender,
        message.device,
        message.recipient,
        message.client_msg_id,
        message.kind,
        message.body,
        message.at,
        positions[0][1],
        positions[1][1] if len(positions) > 1 else None,  # a chat with oneself has one timeline
    )


def _appended(row: tuple[Any, ...]) -> Appended:
    *columns, sender_offset, recipient_offset = row
    message = Message(*columns)
    positions = [(message.sender, sender_offset)]
    if recipient_offset is not None:
        positions.append((message.recipient, recipient_offset))
    return Appended(message, is_new=True, positions=tuple(positions))
