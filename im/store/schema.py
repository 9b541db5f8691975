"""The SQLite file of the message store: its tables, how it is made and brought up to date, rows as values.

`msg` is the log of all entries, in order of commit, and `fan` the log of those timeline entries that do not fit into
the two columns that `msg` has for them: its sender's and its recipient's. What is found by conversation, users, key and
timeline (`conv`, `conv_pair`, `conv_pair_hi`, `msg_key`, `user_tl`) is filled later; `im.store.log` says why, and until
where it is. All other tables are written with the entry that changes them, but for `view.sent_*`, which is filled as
indexes are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from base.errors import StoreError, StoreUnavailable
from base.ids import new_epoch
from im.core.model import Conversation, Group, Message, Overlay, View

__all__ = [
    "CONVERSATION",
    "COVERED",
    "MEMBER",
    "MESSAGE",
    "OVERLAY",
    "SCHEMA_VERSION",
    "VIEW",
    "conversation_of",
    "conversation_row",
    "covered_of",
    "message_row",
    "overlay_of",
    "prepare_database",
    "view_of",
]

SCHEMA_VERSION = 3

# A single conversation has a row in `conversation` only if it has, or had, read fan-out. `group_info` is JSON, NULL
# for two users; `members` counts those present in a group. What is up to `floor.swept` is gone from `user_tl`, what is
# up to `floor.through` is to go.
_TABLES = """
CREATE TABLE conversation (
    cid INTEGER PRIMARY KEY, kind TEXT NOT NULL, fan_out TEXT NOT NULL, lo TEXT NOT NULL, hi TEXT NOT NULL,
    group_info BLOB, members INTEGER NOT NULL DEFAULT 0);
CREATE TABLE member (
    cid INTEGER, user TEXT, role INTEGER NOT NULL, first_seq INTEGER NOT NULL, join_seq INTEGER NOT NULL,
    join_cseq INTEGER NOT NULL, leave_seq INTEGER NOT NULL, muted_until INTEGER NOT NULL,
    PRIMARY KEY (cid, user)) WITHOUT ROWID;
CREATE INDEX member_user ON member (user, leave_seq);
CREATE TABLE view (
    user TEXT, cid INTEGER, read_seq INTEGER NOT NULL DEFAULT 0, read_cseq INTEGER NOT NULL DEFAULT 0,
    delivered_seq INTEGER NOT NULL DEFAULT 0, sent_seq INTEGER NOT NULL DEFAULT 0,
    sent_cseq INTEGER NOT NULL DEFAULT 0, hidden_seq INTEGER NOT NULL DEFAULT 0,
    hidden_cseq INTEGER NOT NULL DEFAULT 0, is_marked_unread INTEGER NOT NULL DEFAULT 0,
    is_muted INTEGER NOT NULL DEFAULT 0, pinned_at INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user, cid)) WITHOUT ROWID;
CREATE TABLE overlay (
    cid INTEGER, seq INTEGER, version INTEGER NOT NULL, is_recalled INTEGER NOT NULL, cseq INTEGER NOT NULL,
    body BLOB NOT NULL, mentions BLOB NOT NULL, PRIMARY KEY (cid, seq)) WITHOUT ROWID;
CREATE INDEX overlay_recalled ON overlay (cid, seq) WHERE is_recalled;
CREATE TABLE mention (cid INTEGER, user TEXT, seq INTEGER, PRIMARY KEY (cid, user, seq)) WITHOUT ROWID;
CREATE TABLE fan (pos INTEGER PRIMARY KEY, user TEXT NOT NULL, offset INTEGER NOT NULL, n INTEGER NOT NULL);
CREATE TABLE pending (n INTEGER PRIMARY KEY, cid INTEGER NOT NULL, seq INTEGER NOT NULL, after TEXT NOT NULL);
CREATE TABLE queued (position INTEGER PRIMARY KEY, draft BLOB NOT NULL);
CREATE TABLE floor (
    user TEXT PRIMARY KEY, through INTEGER NOT NULL, swept INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX floor_unswept ON floor (user) WHERE swept < through;
CREATE TABLE conv_pair_hi (hi TEXT, lo TEXT, cid INTEGER NOT NULL, PRIMARY KEY (hi, lo)) WITHOUT ROWID
"""

_LOG_TABLES = """
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

# What version 1 lacks; a new file gets it too. `others` counts the entries of the log up to this one that are no
# messages, of which version 1 had none: so no row of an old file has to be written anew, however many there are.
_LOG_COLUMNS = """
ALTER TABLE msg ADD COLUMN others INTEGER NOT NULL DEFAULT 0;
ALTER TABLE msg ADD COLUMN form INTEGER NOT NULL DEFAULT 0;
ALTER TABLE msg ADD COLUMN ref INTEGER NOT NULL DEFAULT 0;
ALTER TABLE msg ADD COLUMN mentions BLOB NOT NULL DEFAULT x''
"""

# What version 2 lacks. `outbox` has entries for timelines of other shards, `users` being JSON; `sent` and `received`
# have, by shard, how far it has taken over what was in the outbox, and how far what it had was taken over here.
_SHARD_TABLES = """
ALTER TABLE msg ADD COLUMN origin INTEGER NOT NULL DEFAULT 0;
CREATE TABLE outbox (
    shard INTEGER, position INTEGER, n INTEGER NOT NULL, users BLOB NOT NULL,
    PRIMARY KEY (shard, position)) WITHOUT ROWID;
CREATE TABLE sent (shard INTEGER PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE received (shard INTEGER PRIMARY KEY, position INTEGER NOT NULL)
"""

# What is derived from a version 1 file's messages, as far as they are indexed.
_FILL = """
INSERT INTO conv_pair_hi SELECT hi, lo, cid FROM conv_pair ORDER BY 1, 2;
INSERT INTO view (user, cid, sent_seq, sent_cseq)
SELECT sender, cid, max(seq), max(seq) FROM msg
WHERE n <= (SELECT value FROM meta WHERE name = 'indexed_through') GROUP BY sender, cid
"""


def prepare_database(connection: sqlite3.Connection) -> str:
    """Make the schema, or bring an older one up to date, in one transaction; return the store's epoch.

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
            meta = {"schema_version": 1, "epoch": new_epoch(), "indexed_through": 0}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            _run(connection, _LOG_TABLES)
        if meta["schema_version"] > SCHEMA_VERSION:
            raise StoreError(
                f"the message store has schema version {meta['schema_version']}, written by a newer release;"
                f" this one reads up to {SCHEMA_VERSION}"
            )
        if meta["schema_version"] == 1:
            _run(connection, _LOG_COLUMNS)
            _run(connection, _TABLES)
            _run(connection, _FILL)
            connection.execute("INSERT INTO meta VALUES ('fan_indexed_through', 0)")
        if meta["schema_version"] < SCHEMA_VERSION:
            _run(connection, _SHARD_TABLES)
            connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (SCHEMA_VERSION,))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    epoch: str = meta["epoch"]
    return epoch


def _run(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        connection.execute(statement)


# --------------------------------------------------------------- rows and values

# A `mid` that is text is kept as a blob: the column would take one that looks like a number for the number.
MESSAGE = (
    "msg.n, msg.cid, msg.seq, msg.seq - others, CASE typeof(mid) WHEN 'blob' THEN CAST(mid AS TEXT) ELSE mid END,"
    " msg.sender, device, recipient, msg.client_msg_id, form, kind, ref, msg.body, msg.mentions, at, origin"
)
"""Columns of `msg`, in the order of a `Message`'s fields."""
OVERLAY = "overlay.cid, overlay.seq, overlay.version, overlay.is_recalled, overlay.cseq, overlay.body, overlay.mentions"
COVERED = f"{MESSAGE}, {OVERLAY}"
"""Of `msg LEFT JOIN overlay`."""
CONVERSATION = "conversation.cid, conversation.kind, fan_out, lo, hi, group_info"
MEMBER = "member.cid, member.user, role, first_seq, join_seq, join_cseq, leave_seq, muted_until"
VIEW = (
    "view.user, view.cid, read_seq, read_cseq, delivered_seq, sent_seq, sent_cseq, hidden_seq, hidden_cseq,"
    " is_marked_unread, is_muted, pinned_at"
)

_MESSAGE_WIDTH = len(Message.__struct_fields__)
_encode = msgspec.json.Encoder().encode
_decode_group = msgspec.json.Decoder(Group).decode

Place = tuple[int, int]


def message_row(message: Message, sender_offset: int, recipient_offset: int) -> tuple[Any, ...]:
    """Return the message as a row, in the order of the table's columns."""
    mid = message.mid
    return (
        message.n,
        message.cid,
        message.seq,
        mid if isinstance(mid, int) else mid.encode(),
        message.sender,
        message.device,
        message.recipient,
        message.client_msg_id,
        message.kind,
        message.body,
        message.at,
        sender_offset,
        recipient_offset,
        message.seq - message.cseq,
        message.form,
        message.ref,
        message.mentions,
        message.origin,
    )


def covered_of(rows: Iterable[Sequence[Any]]) -> tuple[list[Message], dict[Place, Overlay]]:
    """Return the messages of `COVERED` rows, and what became of them."""
    messages: list[Message] = []
    overlays: dict[Place, Overlay] = {}
    for row in rows:
        messages.append(Message(*row[:_MESSAGE_WIDTH]))
        if row[_MESSAGE_WIDTH] is not None:
            overlay = overlay_of(row[_MESSAGE_WIDTH:])
            overlays[overlay.cid, overlay.seq] = overlay
    return messages, overlays


def overlay_of(row: Sequence[Any]) -> Overlay:
    """Return the value of an `OVERLAY` row."""
    cid, seq, version, is_recalled, cseq, body, mentions = row
    return Overlay(cid, seq, version, bool(is_recalled), cseq, body, mentions)


def conversation_of(row: Sequence[Any]) -> Conversation:
    """Return the value of a `CONVERSATION` row."""
    cid, kind, fan_out, lo, hi, group_info = row
    return Conversation(cid, kind, fan_out, lo, hi, _decode_group(group_info) if group_info else None)


def conversation_row(conversation: Conversation) -> tuple[Any, ...]:
    """Return the conversation as a row, in the order of the table's columns but the last."""
    group = conversation.group
    return (
        conversation.cid,
        conversation.kind,
        conversation.fan_out,
        conversation.lo,
        conversation.hi,
        _encode(group) if group else None,
    )


def view_of(row: Sequence[Any]) -> View:
    """Return the value of a `VIEW` row."""
    values = [*row[:-3], bool(row[-3]), bool(row[-2]), row[-1]]
    return View(*values)
