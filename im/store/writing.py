"""Writes what a ledger changed into the tables of the SQLite store."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from im.core.facts import Changes
from im.core.generations import pair_of
from im.core.model import Conversation, FanOut, Member, Pending
from im.store.bulk import Bulk
from im.store.reading import find_members
from im.store.schema import conversation_row, message_row

__all__ = ["write_changes"]

_encode_draft = msgspec.msgpack.Encoder().encode
_encode_users = msgspec.json.Encoder().encode

_ADD_MESSAGES = Bulk("INSERT INTO msg VALUES {rows}", width=18)
_ADD_FAN = Bulk("INSERT INTO fan VALUES {rows}", width=4)
_PUT_CONVERSATIONS = Bulk(
    """INSERT INTO conversation (cid, kind, fan_out, lo, hi, group_info) VALUES {rows}
    ON CONFLICT (cid) DO UPDATE SET fan_out = excluded.fan_out, group_info = excluded.group_info""",
    width=6,
)
_PUT_MEMBERS = Bulk("INSERT OR REPLACE INTO member VALUES {rows}", width=8)
_PUT_VIEWS = Bulk(
    """INSERT INTO view (user, cid, read_seq, read_cseq, delivered_seq, hidden_seq, hidden_cseq, is_marked_unread,
        is_muted, pinned_at) VALUES {rows}
    ON CONFLICT (user, cid) DO UPDATE SET
        read_seq = excluded.read_seq, read_cseq = excluded.read_cseq, delivered_seq = excluded.delivered_seq,
        hidden_seq = excluded.hidden_seq, hidden_cseq = excluded.hidden_cseq,
        is_marked_unread = excluded.is_marked_unread, is_muted = excluded.is_muted, pinned_at = excluded.pinned_at""",
    width=10,
)
_PUT_OVERLAYS = Bulk("INSERT OR REPLACE INTO overlay VALUES {rows}", width=7)
_PUT_MENTIONS = Bulk("INSERT OR IGNORE INTO mention VALUES {rows}", width=3)
_PUT_PENDINGS = Bulk("INSERT OR REPLACE INTO pending VALUES {rows}", width=4)
_ADD_QUEUED = Bulk("INSERT INTO queued VALUES {rows}", width=2)
_ADD_OUTGOING = Bulk("INSERT INTO outbox VALUES {rows}", width=4)
_PUT_SENT = Bulk("INSERT OR REPLACE INTO sent VALUES {rows}", width=2)
_PUT_RECEIVED = Bulk("INSERT OR REPLACE INTO received VALUES {rows}", width=2)
_PUT_FLOORS = Bulk(
    """INSERT INTO floor (user, through) VALUES {rows}
    ON CONFLICT (user) DO UPDATE SET through = max(through, excluded.through)""",
    width=2,
)


def write_changes(connection: sqlite3.Connection, changes: Changes, *, last_pos: int, single_fan_out: FanOut) -> int:
    """Write, in the transaction that is open; return the newest position in `fan`.

    `last_pos` is that before; `single_fan_out` is what single conversations get which their first message makes.
    """
    last_pos = _write_log(connection, changes, last_pos)
    conversations = dict(changes.conversations)
    if single_fan_out != "write":  # which needs no row
        conversations = {made.cid: made for made in _made(changes, single_fan_out)} | conversations
    if conversations:
        _PUT_CONVERSATIONS.run(connection, [conversation_row(one) for one in conversations.values()])
    if changes.members:
        _write_members(connection, changes.members)
    if changes.views:
        _PUT_VIEWS.run(
            connection,
            [
                (
                    view.user,
                    view.cid,
                    view.read_seq,
                    view.read_cseq,
                    view.delivered_seq,
                    view.hidden_seq,
                    view.hidden_cseq,
                    view.is_marked_unread,
                    view.is_muted,
                    view.pinned_at,
                )
                for view in changes.views.values()
            ],
        )
    if changes.overlays:
        _PUT_OVERLAYS.run(connection, [msgspec.structs.astuple(overlay) for overlay in changes.overlays.values()])
    if changes.mentions:
        _PUT_MENTIONS.run(connection, changes.mentions)
    if changes.pendings:
        _write_pendings(connection, changes.pendings)
    if changes.dequeued_through:
        connection.execute("DELETE FROM queued WHERE position <= ?", (changes.dequeued_through,))
    if changes.queued:
        _ADD_QUEUED.run(connection, [(queued.position, _encode_draft(queued.draft)) for queued in changes.queued])
    if changes.floors:
        _PUT_FLOORS.run(connection, list(changes.floors.items()))
    if changes.outgoing or changes.sent or changes.received:
        _write_between_shards(connection, changes)
    return last_pos


def _write_log(connection: sqlite3.Connection, changes: Changes, last_pos: int) -> int:
    rows: list[tuple[Any, ...]] = []
    fan = [(user, offset, message.n) for user, offset, message in changes.entries]
    for message, positions in changes.messages:
        sender_offset = recipient_offset = 0
        for user, offset in positions:
            if user == message.sender:
                sender_offset = offset
            elif user == message.recipient:
                recipient_offset = offset
            else:
                fan.append((user, offset, message.n))
        rows.append(message_row(message, sender_offset, recipient_offset))
    if rows:
        _ADD_MESSAGES.run(connection, rows)
    if fan:
        _ADD_FAN.run(connection, [(pos, *entry) for pos, entry in enumerate(fan, last_pos + 1)])
    return last_pos + len(fan)


def _made(changes: Changes, fan_out: FanOut) -> Iterable[Conversation]:
    """Yield the single conversations that begin with one of the messages."""
    for message, _ in changes.messages:
        if message.seq == 1 and message.recipient and not message.origin:
            yield Conversation(message.cid, "single", fan_out, *pair_of(message.sender, message.recipient))


def _write_members(connection: sqlite3.Connection, members: dict[tuple[int, str], Member]) -> None:
    before = find_members(connection, list(members))
    _PUT_MEMBERS.run(connection, [msgspec.structs.astuple(member) for member in members.values()])
    growth: Counter[int] = Counter()
    for place, member in members.items():
        was_present = place in before and not before[place].leave_seq
        growth[member.cid] += (not member.leave_seq) - was_present
    for cid, difference in growth.items():
        connection.execute("UPDATE conversation SET members = members + ? WHERE cid = ?", (difference, cid))


def _write_between_shards(connection: sqlite3.Connection, changes: Changes) -> None:
    outgoing = [(out.shard, out.position, out.message.n, _encode_users(out.users)) for out in changes.outgoing]
    _ADD_OUTGOING.run(connection, outgoing)
    for sent in changes.sent.items():
        connection.execute("DELETE FROM outbox WHERE shard = ? AND position <= ?", sent)
    _PUT_SENT.run(connection, list(changes.sent.items()))
    _PUT_RECEIVED.run(connection, list(changes.received.items()))


def _write_pendings(connection: sqlite3.Connection, pendings: dict[int, Pending | None]) -> None:
    going = [msgspec.structs.astuple(pending) for pending in pendings.values() if pending is not None]
    _PUT_PENDINGS.run(connection, going)
    for n, pending in pendings.items():
        if pending is None:
            connection.execute("DELETE FROM pending WHERE n = ?", (n,))
