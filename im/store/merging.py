"""How what is in the logs gets into the indexes: many rows at a time, sorted, a piece with each transaction.

Neighbours in a log are far apart in each index. So a merge first makes a *plan*: what goes into which index, in that
index's order. It lives in memory and is made anew after a crash. Then pieces of the plan are moved, all indexes side by
side, each in the transaction of whoever stores something at that time.

Invariants:
    I1  After a merge everything that was in its range is in all indexes.
    I2  Moving what an earlier attempt moved changes nothing.
    I3  An index never has an entry of a timeline or conversation without all smaller ones.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from im.core.model import Form

__all__ = ["Merge", "Range", "prepare_plans"]


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of both logs: after the first pair, through the second, of `n` in `msg` and `pos` in `fan`."""

    after: tuple[int, int]
    through: tuple[int, int]


# In this order: the plans of pairs are made from others. Each by one statement, since a sort is work enough for one
# transaction.
_PLANS = {
    "plan_conv": (
        "pos INTEGER PRIMARY KEY, cid INTEGER, seq INTEGER, n INTEGER",
        f"""INSERT INTO plan_conv (cid, seq, n)
        SELECT cid, seq, n FROM msg
        WHERE n > :n_after AND n <= :n_through AND form <> {Form.NOTE:d} AND origin = 0 ORDER BY 1, 2""",  # noqa: S608 - constants
    ),
    "plan_pair": (
        "pos INTEGER PRIMARY KEY, lo TEXT, hi TEXT, cid INTEGER",
        """INSERT INTO plan_pair (lo, hi, cid)
        SELECT min(sender, recipient), max(sender, recipient), msg.cid FROM plan_conv CROSS JOIN msg USING (n)
        WHERE plan_conv.seq = 1 AND recipient <> '' ORDER BY 1, 2""",
    ),
    "plan_pair_hi": (
        "pos INTEGER PRIMARY KEY, hi TEXT, lo TEXT, cid INTEGER",
        "INSERT INTO plan_pair_hi (hi, lo, cid) SELECT hi, lo, cid FROM plan_pair ORDER BY 1, 2",
    ),
    "plan_key": (
        "pos INTEGER PRIMARY KEY, sender TEXT, client_msg_id TEXT, n INTEGER",
        """INSERT INTO plan_key (sender, client_msg_id, n)
        SELECT sender, client_msg_id, n FROM msg
        WHERE n > :n_after AND n <= :n_through AND client_msg_id <> '' AND origin = 0
        ORDER BY 1, 2""",
    ),
    "plan_tl": (
        "pos INTEGER PRIMARY KEY, user TEXT, offset INTEGER, n INTEGER",
        """INSERT INTO plan_tl (user, offset, n)
        SELECT sender, sender_offset, n FROM msg WHERE n > :n_after AND n <= :n_through AND sender_offset > 0
        UNION ALL
        SELECT recipient, recipient_offset, n FROM msg
        WHERE n > :n_after AND n <= :n_through AND recipient_offset > 0
        UNION ALL
        SELECT user, offset, n FROM fan WHERE pos > :pos_after AND pos <= :pos_through
        ORDER BY 1, 2""",
    ),
    "plan_sent": (
        "pos INTEGER PRIMARY KEY, user TEXT, cid INTEGER, seq INTEGER, cseq INTEGER",
        f"""INSERT INTO plan_sent (user, cid, seq, cseq)
        SELECT sender, cid, max(seq), seq - others FROM msg
        WHERE n > :n_after AND n <= :n_through AND form = {Form.MESSAGE:d} AND origin = 0
        GROUP BY sender, cid ORDER BY 1, 2""",  # noqa: S608 - constants
    ),
}

_MOVE = "INSERT OR IGNORE INTO {index} SELECT {columns} FROM {plan} WHERE pos > ?1 AND pos <= ?2 ORDER BY pos"

# Each takes a plan's rows after ?1, through ?2.
_MOVES = (
    ("plan_conv", _MOVE.format(index="conv", columns="cid, seq, n", plan="plan_conv")),
    ("plan_pair", _MOVE.format(index="conv_pair", columns="lo, hi, cid", plan="plan_pair")),
    ("plan_pair_hi", _MOVE.format(index="conv_pair_hi", columns="hi, lo, cid", plan="plan_pair_hi")),
    ("plan_key", _MOVE.format(index="msg_key", columns="sender, client_msg_id, n", plan="plan_key")),
    ("plan_tl", _MOVE.format(index="user_tl", columns="user, offset, n", plan="plan_tl")),
    (
        "plan_sent",
        """INSERT INTO view (user, cid, sent_seq, sent_cseq)
        SELECT user, cid, seq, cseq FROM plan_sent WHERE pos > ?1 AND pos <= ?2 ORDER BY pos
        ON CONFLICT (user, cid) DO UPDATE SET sent_seq = excluded.sent_seq, sent_cseq = excluded.sent_cseq""",
    ),
)


def prepare_plans(connection: sqlite3.Connection) -> None:
    """Make the tables of plans, in this connection's memory. Before its first merge."""
    for name, (columns, _) in _PLANS.items():
        connection.execute(f"CREATE TEMP TABLE {name} ({columns})")


class Merge:
    """One merge, from its beginning in some transaction. A failed one is thrown away."""

    def __init__(self, connection: sqlite3.Connection, reach: Range, size: int) -> None:
        """`size`: how many entries the range has, in the measure of `step`."""
        assert size > 0
        self._connection = connection
        self.reach = reach
        self.size = size
        self._moved = 0
        self._unplanned = list(_PLANS)
        self._counts: dict[str, int] = {}

    @property
    def is_done(self) -> bool:
        """Whether all is moved."""
        return self._moved == self.size

    def step(self, step: int) -> None:
        """Make a plan that is missing, or move the next part of all: `step` out of `size`.

        Where a few long messages are all that there is, a step has room for several plans: it is spent by their rows.
        """
        connection = self._connection
        while self._unplanned and step > 0:
            step -= self._plan(self._unplanned.pop(0))
        if step <= 0:
            return
        moved = min(self._moved + step, self.size)
        for name, statement in _MOVES:
            count = self._counts[name]
            connection.execute(statement, (count * self._moved // self.size, count * moved // self.size))
        self._moved = moved
        if self.is_done:
            ends = zip(self.reach.through, ("indexed_through", "fan_indexed_through"), strict=True)
            connection.executemany("UPDATE meta SET value = ? WHERE name = ?", ends)

    def _plan(self, name: str) -> int:
        """Make a plan; return how many rows it has."""
        connection = self._connection
        connection.execute(f"DELETE FROM {name}")  # noqa: S608 - our names
        (n_after, pos_after), (n_through, pos_through) = self.reach.after, self.reach.through
        values = {"n_after": n_after, "n_through": n_through, "pos_after": pos_after, "pos_through": pos_through}
        count = self._counts[name] = connection.execute(_PLANS[name][1], values).rowcount
        return count
