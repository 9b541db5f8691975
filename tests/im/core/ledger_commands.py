"""Random commands for a ledger and its twin."""

from __future__ import annotations

import random

from msgspec.structs import replace

from im.core.commands import Command, CreateGroup, Draft, Revise, Trim
from tests.im.core.ledger_twin import Twin
from tests.im.core.ledger_world import change, draft, edit, group, mark, recall

USERS = "abcdef"
ACTIONS = (
    ("invite", "", 9), ("join", "", 5), ("leave", "", 5), ("kick", "", 5), ("role", "admin", 2), ("role", "member", 1),
    ("mute", "2000000", 1), ("mute", "0", 1), ("mute_all", "true", 1), ("mute_all", "false", 2), ("transfer", "", 2),
    ("rename", "new", 1), ("settings", "", 2), ("dissolve", "", 1), ("fan_out", "read", 2), ("fan_out", "write", 3),
)  # fmt: skip
MENTIONS = (b"", b"", b"", b'["a","b"]', b'["*","c"]')


def random_command(draw: random.Random, twin: Twin, *, key: str = "") -> Command:
    """Mostly what its user may do in a young conversation; else anything; `key`: its own, else one that may be used."""
    cids = list(twin.conversations)[-5:] or [1]
    kind = draw.randrange(100)
    if kind >= 76:  # a change of a group
        cids = [cid for cid, one in twin.conversations.items() if one.group and twin.users(cid)][-3:] or cids
    user, other, cid = draw.choice(USERS), draw.choice(USERS), draw.choice(cids)
    if draw.random() < 0.85 and (users := twin.users(cid)):
        user, other = draw.choice(sorted(users)), draw.choice(sorted(users))
    end = len(twin.logs.get(cid, ()))
    seq = draw.choice((0, 1, end // 2, max(1, end - 1), end, end, end + 1, end + 9))
    key = key or f"k{draw.randrange(8 if draw.random() < 0.15 else 10**9)}"
    body = draw.choice("12")
    if kind < 40:
        ref = seq if draw.random() < 0.2 else 0
        to = cid if draw.random() < 0.7 else other
        return draft(user, to, key, body, ref=ref, mentions=draw.choice(MENTIONS), is_queued=draw.random() < 0.2)
    if kind < 50:
        return edit(user, cid, seq, key, body, mentions=draw.choice(MENTIONS))
    if kind < 58:
        return recall(user, cid, seq, key)
    if kind < 70:
        fields = ("read_seq", "delivered_seq", "is_marked_unread", "is_muted", "is_pinned", "is_hidden")
        chosen = draw.sample(fields, draw.choice((1, 1, 2)))
        return mark(user, cid, **{name: seq if name.endswith("seq") else draw.random() < 0.5 for name in chosen})
    if kind < 74:
        chosen_settings = {"who_joins": "anybody"} if draw.random() < 0.5 else {}
        return group(user, draw.sample(USERS, draw.randrange(6)), key, body, **chosen_settings)
    if kind < 76:
        return Trim(user, seq)
    action, value, _ = draw.choices(ACTIONS, [weight for *_, weight in ACTIONS])[0]
    by = draw.choice(("", "", user, user, user))
    chosen_settings = {"history": draw.choice(("all", "joined"))} if action == "settings" else {}
    named = draw.sample(USERS, 1 if action == "transfer" else draw.choice((0, 1, 1, 2)))
    return change(by, cid, action, *named, value=value, **chosen_settings)


def random_batch(draw: random.Random, twin: Twin, sent: list[Command], size: int) -> list[Command]:
    """Commands, some of which were sent before, or nearly; `sent` grows by them."""
    for _ in range(size):
        command = random_command(draw, twin)
        if sent and draw.random() < 0.15:
            command = draw.choice(sent[-20:])
            if isinstance(command, Draft | Revise) and draw.random() < 0.4:
                command = replace(command, body=b"3")
            elif isinstance(command, CreateGroup) and draw.random() < 0.4:
                command = replace(command, settings=(("history", "all"),))
        sent.append(command)
    return sent[len(sent) - size :]
