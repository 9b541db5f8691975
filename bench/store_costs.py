"""What a message to a group costs the message store, by strategy and size: transactions, rows, pages, CPU.

A store of its own on an empty file; one sender who waits for each message, so that nothing shares a transaction: what
is told is the most that a message may cost. The write-ahead log is emptied before and looked at after: that is what
has to reach the disk before the message is acknowledged, or, with write fan-out beyond the first members, soon after.
Indexes follow later, sorted and many messages at a time: a row in each for the message, and one for each timeline
entry.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from base.clock import Timestamp
from im.core.commands import Appended, ChangeGroup, Command, CreateGroup, Draft, Executed, GroupChanged
from im.core.fan_out import FanOutPolicy
from im.core.ledger import LedgerSettings
from im.core.model import FanOut
from im.store.sqlite import SqliteMessageStore

__all__ = ["MEASURED", "StoreCost", "store_costs"]

SPEC = ("FO-01", "FO-09")  # rows of docs/spec-coverage.md

POLICIES: dict[FanOut, FanOutPolicy] = {
    "write": FanOutPolicy(single="write", write_members_max=500, members_max=500),
    "read": FanOutPolicy(single="read", write_members_max=0, members_max=100_000),
}
MEASURED: tuple[tuple[FanOut, int], ...] = (
    *(("write", size) for size in (2, 10, 100, 500)),
    *(("read", size) for size in (2, 10, 100, 500, 10_000)),
)
INVITED = 1_000
"""At once."""
BODY = b'{"text":"' + b"x" * 64 + b'"}'
FRAME_HEADER_BYTES = 24
"""Of a page in the write-ahead log. Source: sqlite.org/fileformat2.html, 4.1."""
AT = Timestamp(1_700_000_000_000)


class StoreCost(msgspec.Struct, frozen=True):
    """Of one message, the mean of those that were sent."""

    fan_out: FanOut
    members: int
    transactions: float
    message_rows: float
    entry_rows: float
    """In the log of timeline entries; in a single chat both are in the message's row."""
    entries: float
    """In timelines."""
    wal_bytes: float
    wal_pages: float
    acked_ms: float
    """The median until the message is durable."""
    done_ms: float
    """The median until all of its entries are."""
    cpu_us: float


def store_costs(fan_out: FanOut, members: int, *, messages: int) -> StoreCost:
    """Measure, see the module."""
    with TemporaryDirectory(prefix="store-costs-") as folder:
        return asyncio.run(_measure(Path(folder) / "messages.db", fan_out, members, messages))


async def _measure(path: Path, fan_out: FanOut, members: int, messages: int) -> StoreCost:
    store = await SqliteMessageStore.open(path, settings=LedgerSettings(policy=POLICIES[fan_out]))
    try:
        cid = await _group(store, members) if members > 2 else 0
        log = path.with_name(path.name + "-wal")
        drafts = [_draft(number, cid) for number in range(messages + 1)]
        with closing(sqlite3.connect(path)) as looking:
            looking.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            await _send(store, drafts.pop(0))  # makes the single chat; and what somebody else did here is looked at
            before, written, cpu = _rows(looking), log.stat().st_size, time.process_time()
            sent = [await _send(store, draft) for draft in drafts]
            cpu = time.process_time() - cpu
            written = log.stat().st_size - written
            message_rows, entry_rows = (now - then for now, then in zip(_rows(looking), before, strict=True))
            (page_bytes,) = looking.execute("PRAGMA page_size").fetchone()
    finally:
        await store.close()
    middle = messages // 2
    return StoreCost(
        fan_out=fan_out,
        members=members,
        transactions=sum(one.transactions for one in sent) / messages,
        message_rows=message_rows / messages,
        entry_rows=entry_rows / messages,
        entries=sum(one.entries for one in sent) / messages,
        wal_bytes=round(written / messages),
        wal_pages=round(written / (page_bytes + FRAME_HEADER_BYTES) / messages, 1),
        acked_ms=round(sorted(one.acked_ms for one in sent)[middle], 2),
        done_ms=round(sorted(one.done_ms for one in sent)[middle], 2),
        cpu_us=round(cpu / messages * 1e6),
    )


async def _group(store: SqliteMessageStore, members: int) -> int:
    users = [f"member-{number:05d}" for number in range(1, members)]
    made = await _all(store, CreateGroup("g", "sender", "d", "make", "many", tuple(users[:INVITED]), AT))
    outcome = made.outcomes[0]
    assert isinstance(outcome, GroupChanged), outcome
    cid = outcome.conversation.cid
    for first in range(INVITED, len(users), INVITED):
        invited = ChangeGroup(f"i{first}", "sender", "d", cid, "invite", AT, tuple(users[first : first + INVITED]))
        outcome = (await _all(store, invited)).outcomes[0]
        assert isinstance(outcome, GroupChanged), outcome
    return cid


async def _all(store: SqliteMessageStore, command: Command) -> Executed:
    executed = await store.execute([command])
    while store.has_work:
        await store.execute([])
    return executed


def _draft(number: int, cid: int) -> Draft:
    to = "" if cid else "receiver"
    return Draft(number + 1, "sender", "d", to, cid, f"m{number}", "text", BODY, Timestamp(AT + number))


class _Sent(msgspec.Struct, frozen=True):
    transactions: int
    entries: int
    acked_ms: float
    done_ms: float


async def _send(store: SqliteMessageStore, draft: Draft) -> _Sent:
    began = time.perf_counter()
    executed = await store.execute([draft])
    acked_ms = (time.perf_counter() - began) * 1000
    assert isinstance(executed.outcomes[0], Appended), executed.outcomes
    transactions, entries = 1, _entries(executed)
    while store.has_work:
        entries += _entries(await store.execute([]))
        transactions += 1
    return _Sent(transactions, entries, acked_ms, (time.perf_counter() - began) * 1000)


def _entries(executed: Executed) -> int:
    return sum(len(delivery.positions) for delivery in executed.deliveries)


def _rows(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many messages, and how many entries of timelines beside them, were ever written."""
    row: tuple[int, int] = connection.execute(
        "SELECT (SELECT ifnull(max(n), 0) FROM msg), (SELECT ifnull(max(pos), 0) FROM fan)"
    ).fetchone()
    return row
