"""A user's conversations as a list shows them, a thousand at a time: few queries, each about many conversations.

A list of all is in brief, without long bodies: nobody who wants a page of it, or a sum, has to hold all that is said in
it. The page's own are read for themselves then.

What is written directly (members, views) may be one transaction ahead of the memory that was taken before. Where such a
row points at an entry, that entry is durable, so the ends that are told are never behind it. Overlays may be ahead as
well: what was recalled behind the end that is told is not counted as recalled.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from im.core.facts import Pair
from im.core.generations import Newest, pair_of
from im.core.model import EVERYBODY, Conversation, Form, Member, Message, View
from im.ports import Listed
from im.store.bulk import Bulk
from im.store.combined import SEQ_END, users_of, with_sent
from im.store.facts import single_of
from im.store.reading import find_conversations, find_ends, find_members, find_overlays, find_shown, find_views
from im.store.schema import MEMBER, VIEW, view_of

__all__ = ["read_listed", "read_readers"]

# ruff: noqa: S608 - all that is put into these texts are constants

_READ_MEMBER = f"SELECT {MEMBER} FROM member WHERE user = ?"
_READ_SINGLES = """
SELECT cid, lo, hi FROM conv_pair WHERE lo = ?1 UNION SELECT cid, lo, hi FROM conv_pair_hi WHERE hi = ?1
"""
_READ_VIEWS = f"SELECT {VIEW} FROM view WHERE user = ?"
_COUNT_MEMBERS = Bulk(
    "WITH asked (cid) AS (VALUES {rows}) SELECT cid, members FROM asked CROSS JOIN conversation USING (cid)", width=1
)
_COUNT_RECALLED = Bulk(
    """WITH asked (cid, after, through) AS (VALUES {rows})
    SELECT cid, (
        SELECT count(*) FROM overlay
        WHERE overlay.cid = asked.cid AND seq > after AND seq <= through AND version <= through AND is_recalled
    ) FROM asked""",
    width=3,
)
_FIND_MENTIONED = Bulk(
    """WITH asked (cid, user, after, through) AS (VALUES {rows})
    SELECT asked.cid, max(seq) FROM asked CROSS JOIN mention ON mention.cid = asked.cid AND mention.user = asked.user
    WHERE seq > after AND seq <= through AND NOT EXISTS (
        SELECT 1 FROM overlay WHERE overlay.cid = asked.cid AND overlay.seq = mention.seq AND is_recalled)
    GROUP BY 1""",
    width=4,
)
_SHOWN = (Form.MESSAGE, Form.EVENT)
"""What a list shows of a conversation."""
_READ_READERS = f"""
SELECT {VIEW} FROM member CROSS JOIN view ON view.user = member.user AND view.cid = member.cid
WHERE member.cid = ?1 AND leave_seq = 0 AND first_seq <= ?2 AND max(read_seq, sent_seq, hidden_seq) >= ?2
ORDER BY member.user LIMIT ?3
"""


@dataclass(slots=True)
class _Row:
    """A conversation while its parts are put together. `last`: the newest seq that the user may see."""

    conversation: Conversation
    member: Member | None
    view: View
    last: int = SEQ_END
    end: Message | None = None
    shown: Message | None = None
    max_seq: int = 0
    max_cseq: int = 0


def read_listed(
    connection: sqlite3.Connection, newest: Newest, user: str, cids: Sequence[int] | None = None
) -> list[Listed]:
    """Return the user's conversations: those of `cids` that the user is or was in, or all of them, in brief."""
    if cids is None:
        members = {row[0]: Member(*row) for row in connection.execute(_READ_MEMBER, (user,))}
        singles: dict[int, Pair] = {cid: (lo, hi) for cid, lo, hi in connection.execute(_READ_SINGLES, (user,))}
        singles |= {one.cid: pair_of(one.sender, one.recipient) for one in newest.singles(user)}
        views = [view_of(row) for row in connection.execute(_READ_VIEWS, (user,))]
    else:
        cids = list(dict.fromkeys(cids))
        found = find_members(connection, [(cid, user) for cid in cids])
        members = {cid: member for (cid, _), member in found.items()}
        pairs = users_of(connection, newest, [cid for cid in cids if cid not in members])
        singles = {cid: pair for cid, pair in pairs.items() if user in pair}
        views = list(find_views(connection, [(user, cid) for cid in cids]).values())
    conversations = {cid: single_of(cid, pair) for cid, pair in singles.items()}
    conversations |= find_conversations(connection, (*members, *singles))
    seen = with_sent(newest, [(user, cid) for cid in conversations], {(view.user, view.cid): view for view in views})
    rows: list[_Row] = []
    for cid, conversation in conversations.items():
        member = members.get(cid)
        last = member.leave_seq if member is not None else 0
        rows.append(_Row(conversation, member, seen.get((user, cid)) or View(user, cid), last or SEQ_END))
    is_brief = cids is None
    _fill_ends(connection, newest, rows, is_brief=is_brief)
    return _listed(connection, user, rows, is_brief=is_brief)


def _fill_ends(connection: sqlite3.Connection, newest: Newest, rows: Sequence[_Row], *, is_brief: bool) -> None:
    """Find the newest entry of each, and the one to be shown, in memory first."""
    for row in rows:
        row.end = _end_in_memory(newest, row.conversation.cid, row.last)
    if connection.in_transaction:
        # Memory went on since the snapshot was taken. What is counted up to these ends needs one that has all of them.
        connection.execute("COMMIT")
        connection.execute("BEGIN")
    unknown = [(row.conversation.cid, row.last) for row in rows if row.end is None]
    ends = find_ends(connection, unknown, is_brief=is_brief)
    asked: list[tuple[int, int]] = []
    for row in rows:
        cid = row.conversation.cid
        row.end = row.end or ends.get(cid)
        if (end := row.end) is None:
            continue
        row.max_seq, row.max_cseq = end.seq, end.cseq
        shown: Message | None = end
        seq = end.seq
        while shown is not None and shown.form not in _SHOWN:
            seq -= 1
            shown = newest.message(cid, seq)
        row.shown = shown
        if shown is None:
            asked.append((cid, seq))
    older = find_shown(connection, asked, is_brief=is_brief)
    for row in rows:
        row.shown = row.shown or older.get(row.conversation.cid)


def _end_in_memory(newest: Newest, cid: int, last: int) -> Message | None:
    end = newest.conversation_end(cid)
    return newest.message(cid, last) if end is not None and end.seq > last else end


def _listed(connection: sqlite3.Connection, user: str, rows: Sequence[_Row], *, is_brief: bool) -> list[Listed]:
    heads = [(row.shown.cid, row.shown.seq) for row in rows if row.shown is not None]
    overlays = find_overlays(connection, heads, is_brief=is_brief)
    sizes = dict(_COUNT_MEMBERS.run(connection, [(row.conversation.cid,) for row in rows if row.member is not None]))
    unread: list[tuple[int, int, int]] = []
    for row in rows:
        view, member = row.view, row.member
        known = [(view.read_seq, view.read_cseq), (view.hidden_seq, view.hidden_cseq)]
        if member is not None:
            known.append((member.join_seq, member.join_cseq))
        row.max_seq, row.max_cseq = max((row.max_seq, row.max_cseq), *(end for end in known if end[0] <= row.last))
        after = max(view.read_seq, view.sent_seq, view.hidden_seq, member.join_seq if member is not None else 0)
        if after < row.max_seq:
            unread.append((row.conversation.cid, after, row.max_seq))
    recalled = dict(_COUNT_RECALLED.run(connection, unread))
    mentioned: dict[int, int] = {}
    for who in (user, EVERYBODY):
        for cid, seq in _FIND_MENTIONED.run(connection, [(cid, who, *span) for cid, *span in unread]):
            mentioned[cid] = max(seq, mentioned.get(cid, 0))
    return [
        Listed(
            row.conversation,
            row.member,
            row.view,
            row.shown,
            overlays.get((row.shown.cid, row.shown.seq)) if row.shown is not None else None,
            row.max_seq,
            row.max_cseq,
            recalled.get(row.conversation.cid, 0),
            mentioned.get(row.conversation.cid, 0),
            sizes[row.conversation.cid] if row.member is not None else len({row.conversation.lo, row.conversation.hi}),
        )
        for row in rows
    ]


def read_readers(connection: sqlite3.Connection, newest: Newest, cid: int, *, read_from: int, limit: int) -> list[View]:
    """Return up to `limit` views of present users who see `read_from` and have read up to it or further, by name."""
    rows = find_conversations(connection, [cid])
    senders = newest.senders(cid, since=read_from)
    if cid not in rows or rows[cid].group is None:
        pair = users_of(connection, newest, [cid]).get(cid, ())
        asked = [(user, cid) for user in dict.fromkeys(pair)]
        views = with_sent(newest, asked, find_views(connection, asked))
    else:
        found = [view_of(row) for row in connection.execute(_READ_READERS, (cid, read_from, limit))]
        present = [
            (user, cid)
            for (_, user), member in find_members(connection, [(cid, user) for user in senders]).items()
            if not member.leave_seq and member.first_seq <= read_from
        ]
        known = {(view.user, cid): view for view in found} | find_views(connection, present)
        views = with_sent(newest, known.keys() | set(present), known)
    readers = [view for view in views.values() if max(view.read_seq, view.sent_seq, view.hidden_seq) >= read_from]
    return sorted(readers, key=lambda view: view.user)[:limit]
