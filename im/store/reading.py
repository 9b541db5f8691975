"""What the indexes and tables of the SQLite store say: queries that a reader or the writer may ask.

Each takes a connection, on which the caller has begun a transaction if several answers must be of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from im.core.commands import Outgoing
from im.core.facts import Key, Pair
from im.core.model import Conversation, Form, Member, Message, Overlay, View
from im.store.bulk import Bulk
from im.store.schema import (
    CONVERSATION,
    COVERED,
    MEMBER,
    MESSAGE,
    OVERLAY,
    VIEW,
    conversation_of,
    covered_of,
    overlay_of,
    view_of,
)

__all__ = [
    "Covered",
    "count_groups",
    "find_by_key",
    "find_conversations",
    "find_ends",
    "find_floors",
    "find_heads",
    "find_members",
    "find_messages",
    "find_overlays",
    "find_pairs",
    "find_shown",
    "find_users",
    "find_views",
    "read_conversation",
    "read_conversation_before",
    "read_log",
    "read_members",
    "read_outgoing",
    "read_timeline",
]

Place = tuple[int, int]
"""(cid, seq)"""
Covered = tuple[list[Message], dict[Place, Overlay]]
"""Messages, and what became of them."""

BRIEF_BYTES_MAX = 1_024
"""Longer bodies are left out in brief: they are empty then, as that of no message is. Those of events are whole."""

_decode_users = msgspec.json.Decoder(tuple[str, ...]).decode

# ruff: noqa: S608 - all that is put into these texts are constants

_COVERED_BY_N = "CROSS JOIN msg USING (n) LEFT JOIN overlay ON overlay.cid = msg.cid AND overlay.seq = msg.seq"

_READ_TIMELINE = f"""
SELECT {COVERED}, offset FROM user_tl {_COVERED_BY_N}
WHERE user = ? AND offset > ? AND offset < ? ORDER BY offset LIMIT ?
"""
_READ_CONVERSATION = f"""
SELECT {COVERED} FROM conv {_COVERED_BY_N}
WHERE conv.cid = ? AND conv.seq > ? AND conv.seq < ? ORDER BY conv.seq LIMIT ?
"""
_READ_CONVERSATION_BEFORE = f"""
SELECT {COVERED} FROM conv {_COVERED_BY_N}
WHERE conv.cid = ? AND conv.seq < ? ORDER BY conv.seq DESC LIMIT ?
"""
_READ_LOG = f"SELECT {MESSAGE} FROM msg WHERE n > ? AND form <> {Form.NOTE:d} AND origin = 0 ORDER BY n LIMIT ?"
_READ_OUTGOING = f"""
SELECT outbox.position, outbox.shard, users, {MESSAGE} FROM outbox CROSS JOIN msg USING (n)
WHERE outbox.shard = ? AND outbox.position > ? ORDER BY outbox.position LIMIT ?
"""
_READ_MEMBERS = f"SELECT {MEMBER} FROM member WHERE cid = ? AND user > ? AND leave_seq = 0 ORDER BY user LIMIT ?"
# The first message names both; what the services say of a single conversation comes after it.
_FIND_USERS = Bulk(
    """WITH asked (cid) AS (VALUES {rows})
    SELECT asked.cid, min(sender, recipient), max(sender, recipient)
    FROM asked CROSS JOIN conv ON conv.cid = asked.cid AND conv.seq = 1 CROSS JOIN msg USING (n)
    WHERE recipient <> ''""",
    width=1,
)
_FIND_KEYS = Bulk(
    f"""WITH asked (sender, client_msg_id) AS (VALUES {{rows}})
    SELECT {MESSAGE} FROM asked CROSS JOIN msg_key USING (sender, client_msg_id) CROSS JOIN msg USING (n)""",
    width=2,
)
_FIND_PAIRS = Bulk(
    """WITH asked (lo, hi) AS (VALUES {rows}) SELECT lo, hi, cid FROM asked CROSS JOIN conv_pair USING (lo, hi)""",
    width=2,
)
_FIND_HEADS = Bulk(
    """WITH asked (user) AS (VALUES {rows})
    SELECT user, max(
        ifnull((SELECT max(offset) FROM user_tl WHERE user_tl.user = asked.user), 0),
        ifnull((SELECT through FROM floor WHERE floor.user = asked.user), 0)
    ) FROM asked""",
    width=1,
)
_FIND_FLOORS = Bulk(
    "WITH asked (user) AS (VALUES {rows}) SELECT user, through FROM asked CROSS JOIN floor USING (user)", width=1
)
_COUNT_GROUPS = Bulk(
    """WITH asked (user) AS (VALUES {rows})
    SELECT user, (SELECT count(*) FROM member WHERE member.user = asked.user AND leave_seq = 0) FROM asked""",
    width=1,
)
_BRIEF = MESSAGE.replace(
    "msg.body", f"CASE WHEN form <> {Form.EVENT:d} AND length(msg.body) > {BRIEF_BYTES_MAX} THEN x'' ELSE msg.body END"
)
_FIND_ENDS, _FIND_BRIEF_ENDS = (
    Bulk(
        f"""WITH asked (cid, last) AS (VALUES {{rows}})
        SELECT {columns} FROM asked
        CROSS JOIN conv ON conv.cid = asked.cid
            AND conv.seq = (SELECT max(seq) FROM conv WHERE conv.cid = asked.cid AND conv.seq <= asked.last)
        CROSS JOIN msg USING (n)""",
        width=2,
    )
    for columns in (MESSAGE, _BRIEF)
)
_FIND_SHOWN, _FIND_BRIEF_SHOWN = (
    Bulk(
        f"""WITH asked (cid, last) AS (VALUES {{rows}})
        SELECT {columns} FROM asked CROSS JOIN msg ON msg.n = (
            SELECT conv.n FROM conv CROSS JOIN msg USING (n)
            WHERE conv.cid = asked.cid AND conv.seq <= asked.last AND form IN ({Form.MESSAGE:d}, {Form.EVENT:d})
            ORDER BY conv.seq DESC LIMIT 1)""",
        width=2,
    )
    for columns in (MESSAGE, _BRIEF)
)
_FIND_MESSAGES = Bulk(
    f"""WITH asked (cid, seq) AS (VALUES {{rows}})
    SELECT {COVERED} FROM asked CROSS JOIN conv USING (cid, seq) {_COVERED_BY_N}""",
    width=2,
)
_FIND_OVERLAYS, _FIND_BRIEF_OVERLAYS = (
    Bulk(
        f"WITH asked (cid, seq) AS (VALUES {{rows}}) SELECT {columns} FROM asked CROSS JOIN overlay USING (cid, seq)",
        width=2,
    )
    for columns in (
        OVERLAY,
        OVERLAY.replace(
            "overlay.body",
            f"CASE WHEN length(overlay.body) > {BRIEF_BYTES_MAX} THEN x'' ELSE overlay.body END",
        ),
    )
)
_FIND_CONVERSATIONS = Bulk(
    f"""WITH asked (cid) AS (VALUES {{rows}}) SELECT {CONVERSATION} FROM asked CROSS JOIN conversation USING (cid)""",
    width=1,
)
_FIND_MEMBERS = Bulk(
    f"""WITH asked (cid, user) AS (VALUES {{rows}}) SELECT {MEMBER} FROM asked CROSS JOIN member USING (cid, user)""",
    width=2,
)
_FIND_VIEWS = Bulk(
    f"""WITH asked (user, cid) AS (VALUES {{rows}}) SELECT {VIEW} FROM asked CROSS JOIN view USING (user, cid)""",
    width=2,
)


# -------------------------------------------------------------------- stretches


def read_timeline(
    connection: sqlite3.Connection, user: str, *, since: int, before: int, limit: int
) -> tuple[list[tuple[int, Message]], dict[Place, Overlay]]:
    """Return up to `limit` indexed entries (offset, message) with `since < offset < before`, ascending."""
    rows = connection.execute(_READ_TIMELINE, (user, since, before, limit)).fetchall()
    messages, overlays = covered_of(row[:-1] for row in rows)
    return [(row[-1], message) for row, message in zip(rows, messages, strict=True)], overlays


def read_conversation(connection: sqlite3.Connection, cid: int, *, since: int, before: int, limit: int) -> Covered:
    """Return up to `limit` indexed entries with `since < seq < before`, ascending: the first ones."""
    return covered_of(connection.execute(_READ_CONVERSATION, (cid, since, before, limit)))


def read_conversation_before(connection: sqlite3.Connection, cid: int, *, before: int, limit: int) -> Covered:
    """Return up to `limit` indexed entries with `seq < before`, ascending: the last ones."""
    rows = connection.execute(_READ_CONVERSATION_BEFORE, (cid, before, limit)).fetchall()
    return covered_of(reversed(rows))


def read_log(connection: sqlite3.Connection, *, after: int, limit: int) -> list[Message]:
    """Return up to `limit` entries of all conversations with `after < n`, in order of `n`."""
    return [Message(*row) for row in connection.execute(_READ_LOG, (after, limit))]


def read_outgoing(connection: sqlite3.Connection, shard: int, *, after: int, limit: int) -> list[Outgoing]:
    """Return up to `limit` entries that are to go to the shard, behind a position, ascending."""
    return [
        Outgoing(position, to, Message(*columns), _decode_users(users))
        for position, to, users, *columns in connection.execute(_READ_OUTGOING, (shard, after, limit))
    ]


def read_members(connection: sqlite3.Connection, cid: int, *, after: str, limit: int) -> list[Member]:
    """Return up to `limit` present members of a group whose names come after `after`, by name; -1: all."""
    return [Member(*row) for row in connection.execute(_READ_MEMBERS, (cid, after, limit))]


# ------------------------------------------------------------------------- many


def find_by_key(connection: sqlite3.Connection, keys: Sequence[Key]) -> list[Message]:
    """Return the indexed messages with these keys."""
    return [Message(*row) for row in _FIND_KEYS.run(connection, keys)]


def find_pairs(connection: sqlite3.Connection, pairs: Sequence[Pair]) -> dict[Pair, int]:
    """Return the cids of the indexed single conversations of these pairs."""
    return {(lo, hi): cid for lo, hi, cid in _FIND_PAIRS.run(connection, pairs)}


def find_users(connection: sqlite3.Connection, cids: Iterable[int]) -> dict[int, Pair]:
    """Return the users of those that are single conversations, and indexed."""
    return {cid: (lo, hi) for cid, lo, hi in _FIND_USERS.run(connection, [(cid,) for cid in cids])}


def find_heads(connection: sqlite3.Connection, users: Iterable[str]) -> dict[str, int]:
    """Return each user's newest indexed offset, trimmed or not, 0 where there is none."""
    return dict(_FIND_HEADS.run(connection, [(user,) for user in users]))


def count_groups(connection: sqlite3.Connection, users: Iterable[str]) -> dict[str, int]:
    """Return in how many groups each user is."""
    return dict(_COUNT_GROUPS.run(connection, [(user,) for user in users]))


def find_floors(connection: sqlite3.Connection, users: Iterable[str]) -> dict[str, int]:
    """Return the offsets up to which timelines were trimmed, of users whose timeline was."""
    return dict(_FIND_FLOORS.run(connection, [(user,) for user in users]))


def find_ends(
    connection: sqlite3.Connection, asked: Sequence[tuple[int, int]], *, is_brief: bool = False
) -> dict[int, Message]:
    """Return, for each (cid, last), the newest indexed entry with `seq <= last`, by cid, maybe in brief."""
    found = (_FIND_BRIEF_ENDS if is_brief else _FIND_ENDS).run(connection, asked)
    return {message.cid: message for message in _messages(found)}


def find_shown(
    connection: sqlite3.Connection, asked: Sequence[tuple[int, int]], *, is_brief: bool = False
) -> dict[int, Message]:
    """Return, for each (cid, last), the newest indexed message or event with `seq <= last`, by cid, maybe in brief."""
    found = (_FIND_BRIEF_SHOWN if is_brief else _FIND_SHOWN).run(connection, asked)
    return {message.cid: message for message in _messages(found)}


def find_messages(connection: sqlite3.Connection, places: Sequence[Place]) -> Covered:
    """Return those of these entries that are indexed."""
    return covered_of(_FIND_MESSAGES.run(connection, places))


def find_overlays(
    connection: sqlite3.Connection, places: Sequence[Place], *, is_brief: bool = False
) -> dict[Place, Overlay]:
    """Return what became of these messages, maybe in brief."""
    rows = (_FIND_BRIEF_OVERLAYS if is_brief else _FIND_OVERLAYS).run(connection, places)
    overlays = [overlay_of(row) for row in rows]
    return {(overlay.cid, overlay.seq): overlay for overlay in overlays}


def find_conversations(connection: sqlite3.Connection, cids: Iterable[int]) -> dict[int, Conversation]:
    """Return those of these conversations that have a row."""
    rows = _FIND_CONVERSATIONS.run(connection, [(cid,) for cid in cids])
    return {row[0]: conversation_of(row) for row in rows}


def find_members(connection: sqlite3.Connection, asked: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Member]:
    """Return those of (cid, user) who are in the group, or were once."""
    members = [Member(*row) for row in _FIND_MEMBERS.run(connection, asked)]
    return {(member.cid, member.user): member for member in members}


def find_views(connection: sqlite3.Connection, asked: Sequence[tuple[str, int]]) -> dict[tuple[str, int], View]:
    """Return those of (user, cid) that have a row, of indexed messages what was sent."""
    views = [view_of(row) for row in _FIND_VIEWS.run(connection, asked)]
    return {(view.user, view.cid): view for view in views}


def _messages(rows: Iterable[Any]) -> Iterable[Message]:
    return (Message(*row) for row in rows)
