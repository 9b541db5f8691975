"""Which table to begin with in a registry that has none, or one that is older than what somebody knows.

Such a registry is new, or it started over: wiped, replaced, put back from a backup. Then the newest table that anybody
knows is the table, wherever it was kept, since owners answer by it at this moment. The leader asks all status nodes and
decides by their answers. It writes the table at an epoch `JUMP` above all that it heard of: of a table that was written
just before the registry went, and that only a node knows which did not answer, none is taken for a newer one later.

    all nodes of the table answered                           nobody owns anything by a newer table: go on as it says
    some access node knows a newer table, no status node does its owners are gone, and with them what it said: refill
    a majority of its nodes answered, and all leases of       who did not answer cannot answer readers either, so what
    the former world must be over                             it owns by a newer table may be given away: refill
    a long time passed                                        the same, without a majority to grant a lease at all
    nobody knows a table, and all who are there answered      a new system: the first one. If others are there that
                                                              start after the first table only, it is not new: refill

*Refill*: every owner asks the access nodes anew and says "unknown" meanwhile, which is what it knows.

Invariants:
    I1  The epoch is above every one that was heard of.
    I2  Nobody's data count on unless every node of the table said that it knows no newer one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from base.ids import Epoch, NodeId, name_order
from status.core.partitions import PARTITIONS, PartitionTable, plan_table, restored
from status.core.serving import LEADER_MS, SERVING_MS, SILENCE_MS, is_majority

__all__ = ["GIVE_UP_MS", "JUMP", "QUIET_MS", "Answers", "begun"]

JUMP = 10_000
"""More than a leader can write in the seconds for which it may not have noticed that the registry started over."""
QUIET_MS = LEADER_MS + SILENCE_MS
"""After that nobody has a lease by a leader of the former world."""
GIVE_UP_MS = QUIET_MS + 3 * SERVING_MS
"""Of the nodes of the table so few are left that nobody waits for them any longer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the leader knows after a round of questions. `table` is the newest one that somebody gave."""

    table: PartitionTable | None
    heard: Collection[NodeId]
    """Who said that it knows no newer one; the leader itself among them."""
    registered: Collection[NodeId]
    """The status nodes that the registry lists."""
    known: Epoch = Epoch(0)
    """The greatest epoch that anybody, also an access node, spoke of."""
    is_running: bool = False
    """Whether nodes are registered that do not start before there is a table."""


def begun(
    answers: Answers, *, at_s: int, waited_ms: int, bootstrap_nodes: int, look_ms: int = 0
) -> PartitionTable | None:
    """Return the table to write, None to ask again.

    Args:
        answers: of the last round.
        at_s: the wall clock, in seconds since 1970. Of a table that only access nodes know nobody says the epoch before
            there is a new one; as no leader writes more than one a second in the long run, this is a greater one.
        waited_ms: for how long this leader has asked so far.
        bootstrap_nodes: how many status nodes, first by name, the first table of a system has.
        look_ms: how long to look for nodes that are registered again before a system is taken for a new one.
    """
    table = answers.table
    if table is None:
        return _first(answers, at_s, bootstrap_nodes) if waited_ms >= look_ms or answers.is_running else None
    epoch = Epoch(max(table.epoch, answers.known) + JUMP)
    members = {*table.nodes, *table.former}
    if members <= {*answers.heard}:
        return restored(table, epoch, is_refilled=answers.known > table.epoch)
    is_quorum = is_majority(table.nodes, answers.heard) and is_majority(table.former, answers.heard)
    if waited_ms >= (QUIET_MS if is_quorum else GIVE_UP_MS):
        return restored(table, epoch, is_refilled=True)
    return None


def _first(answers: Answers, at_s: int, bootstrap_nodes: int) -> PartitionTable | None:
    nodes = sorted(answers.registered, key=name_order)
    if len(nodes) < bootstrap_nodes or not {*nodes} <= {*answers.heard}:
        return None
    table = plan_table(dict.fromkeys(nodes[:bootstrap_nodes], 1), partitions=PARTITIONS)
    if answers.known or answers.is_running:
        return restored(table, Epoch(max(answers.known + JUMP, at_s)), is_refilled=True)
    return table
