"""What memory and the indexes say together.

Memory must have been taken first, and the indexes be of that moment or a later one: what is merged in between is then
seen in one of them, never in neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from im.core.facts import Pair
from im.core.generations import Newest
from im.core.model import Message, View
from im.store.reading import Covered, find_ends, find_messages, find_overlays, find_users

__all__ = ["SEQ_END", "messages_at", "newest_entries", "users_of", "with_sent"]

SEQ_END = 2**63 - 1
"""SQLite's greatest integer, which no log and no timeline reaches."""

Place = tuple[int, int]
"""(cid, seq)"""


def users_of(connection: sqlite3.Connection, newest: Newest, cids: Iterable[int]) -> dict[int, Pair]:
    """Return the users of those that are single conversations."""
    known: dict[int, Pair] = {}
    unknown: list[int] = []
    for cid in cids:
        pair = newest.users_of(cid)
        if pair is None:
            unknown.append(cid)
        else:
            known[cid] = pair
    return known | find_users(connection, unknown)


def newest_entries(connection: sqlite3.Connection, newest: Newest, cids: Iterable[int]) -> dict[int, Message]:
    """Return the newest entry of each conversation that there is."""
    known: dict[int, Message] = {}
    unknown: list[tuple[int, int]] = []
    for cid in cids:
        end = newest.conversation_end(cid)
        if end is None:
            unknown.append((cid, SEQ_END))
        else:
            known[cid] = end
    return known | find_ends(connection, unknown)


def messages_at(connection: sqlite3.Connection, newest: Newest, places: Sequence[Place]) -> Covered:
    """Return those of these entries that there are, with what became of them, in any order."""
    known: list[Message] = []
    unknown: list[Place] = []
    for place in places:
        message = newest.message(*place)
        if message is None:
            unknown.append(place)
        else:
            known.append(message)
    older, overlays = find_messages(connection, unknown)
    return known + older, overlays | find_overlays(connection, [(message.cid, message.seq) for message in known])


def with_sent(
    newest: Newest, asked: Iterable[tuple[str, int]], views: Mapping[tuple[str, int], View]
) -> dict[tuple[str, int], View]:
    """Return the views of (user, cid) with what the users sent lately; those that have neither are left out."""
    found: dict[tuple[str, int], View] = {}
    for place in asked:
        view, sent = views.get(place), newest.sent(*place)
        if sent is not None and (view is None or view.sent_seq < sent.seq):
            view = replace(view or View(*place), sent_seq=sent.seq, sent_cseq=sent.cseq)
        if view is not None:
            found[place] = view
    return found
