"""What the SQLite store answers to a ledger's needs: from memory what is not indexed, the rest from the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from im.core.facts import ConversationFacts, Facts, Needs, Pair
from im.core.generations import Newest
from im.core.model import Conversation
from im.store.combined import messages_at, newest_entries, users_of, with_sent
from im.store.reading import (
    count_groups,
    find_by_key,
    find_conversations,
    find_heads,
    find_members,
    find_overlays,
    find_pairs,
    find_views,
    read_members,
)

__all__ = ["facts_of", "single_of"]


def facts_of(connection: sqlite3.Connection, newest: Newest, needs: Needs) -> Facts:
    """Answer from the writer's connection, on which a transaction is open, and from memory."""
    facts = Facts()
    if needs.keys:
        known = newest.by_keys(needs.keys)
        unknown = [key for key in needs.keys if key not in known] if known else needs.keys
        facts.messages_by_key = known
        for message in find_by_key(connection, unknown):
            known[message.sender, message.client_msg_id] = message
    if needs.pairs or needs.cids:
        facts.conversations = _conversations(connection, newest, needs.pairs, needs.cids)
    if needs.users:
        heads = {user: head for user in needs.users if (head := newest.head(user)) is not None}
        heads |= find_heads(connection, [user for user in needs.users if user not in heads])
        facts.heads = heads
    if needs.views:
        facts.views = with_sent(newest, needs.views, find_views(connection, needs.views))
    if needs.members:
        facts.members = find_members(connection, needs.members)
    if needs.messages:
        messages, facts.overlays = messages_at(connection, newest, needs.messages)
        facts.messages = {(message.cid, message.seq): message for message in messages}
    if needs.covered:
        facts.overlays = facts.overlays | find_overlays(connection, needs.covered)
    if needs.groups_of:
        facts.groups_of = count_groups(connection, needs.groups_of)
    return facts


def _conversations(
    connection: sqlite3.Connection, newest: Newest, pairs: Sequence[Pair], cids: Iterable[int]
) -> list[ConversationFacts]:
    singles: dict[int, Pair] = {}
    unknown: list[Pair] = []
    for pair in pairs:
        cid = newest.by_pair(pair)
        if cid is None:
            unknown.append(pair)
        else:
            singles[cid] = pair
    singles |= {cid: pair for pair, cid in find_pairs(connection, unknown).items()}
    all_cids = dict.fromkeys((*singles, *cids))
    rows = find_conversations(connection, all_cids)
    singles |= users_of(connection, newest, [cid for cid in all_cids if cid not in rows and cid not in singles])
    ends = newest_entries(connection, newest, all_cids)
    found: list[ConversationFacts] = []
    for cid in all_cids:
        if cid in rows:
            conversation = rows[cid]
        elif cid in singles:
            conversation = single_of(cid, singles[cid])
        else:
            continue  # there is none
        members = read_members(connection, cid, after="", limit=-1) if conversation.group else []
        found.append(ConversationFacts(conversation, ends[cid].seq, ends[cid].cseq, members))
    return found


def single_of(cid: int, pair: Pair) -> Conversation:
    """Return a single conversation that has no row."""
    return Conversation(cid, "single", "write", *pair)
