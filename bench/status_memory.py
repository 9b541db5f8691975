"""Memory a user costs a status node: 1,000,000 users with one session each, in a process of its own.

The difference of the process' resident memory before and after, divided by the users; so it has everything in it, the
tables, the dictionaries' spare room and what the allocator does not give back. Users and sessions have ids of the usual
length (13 and 32 characters), and come in beats of 2,000 as from an access node.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from bench.result import Options, Result
from bench.status_node import opened
from status.api import Beat, Stamp, pack_partitions
from status.core.ownership import Ownership
from status.core.partitions import partition_of, plan_table
from status.core.records import Kind, packed

__all__ = ["run"]

USERS = 1_000_000
BATCH = 2_000


def run(options: Options) -> Result:
    """Measure, see the module."""
    users = 50_000 if options.quick else USERS
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(theirs, users))
    process.start()
    spent, statistics = ours.recv()
    process.join()
    print(f"{spent / 1e6:,.0f} MB for {users:,} users: {statistics}", file=sys.stderr)
    return Result(
        name="status_memory",
        value=round(spent / users, 1),
        unit="bytes per user",
        goal=350,
        better="lower",
        details={"users": users, "resident_mb": round(spent / 1e6, 1), **statistics},
    )


def _hold(answer: Connection, users: int) -> None:
    """Fill a status node's partitions, and tell what it took."""
    node = NodeId("status-1")
    ownership = Ownership(node, Incarnation(1), (), is_leased=lambda _, __: True)
    ownership.adopt(Instant(1), plan_table({node: 1}))
    ownership.step(Instant(1))
    before = _resident()
    now = Instant(1)
    for begin in range(0, users, BATCH):
        # As it comes off the wire: its strings and bytes are nobody else's.
        beat = msgspec.msgpack.decode(msgspec.msgpack.encode(_beat(range(begin, min(users, begin + BATCH)))), type=Beat)
        now = Instant(now + 10)
        ownership.step(now)
        heard = ownership.heard(now, NodeId("access-1"), beat)
        assert heard.is_heard
        assert not heard.refused
        ownership.take_changes()
    spent = _resident() - before
    statistics = ownership.statistics()
    assert statistics["sessions"] == users
    answer.send((spent, {"sessions": statistics["sessions"], "partitions": statistics["partitions"]}))


def _beat(numbers: range) -> Beat:
    sessions = [opened(number) for number in numbers]
    return Beat(
        Incarnation(1),
        Epoch(1),
        Stamp(),
        pack_partitions(partition_of(session.user) for session in sessions),
        [session.user for session in sessions],
        [
            packed(
                session.conn_seq,
                session.conn_seq,
                Kind.OPEN,
                msgspec.msgpack.encode(
                    (session.session, session.device, session.platform, "access-1", session.state, session.since, 0)
                ),
            )
            for session in sessions
        ],
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
