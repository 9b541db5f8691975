"""Random ids cost more than increasing ones: 1,000,000 rows into SQLite by each kind of id, then read by range.

The value is the CPU time that a row takes with version 4 UUIDs divided by that with version 7: the same size and form,
only the order differs. Rows of 120 bytes go in as the message store commits (256 a transaction, every one on the disk,
32 MB of cache), in a table whose primary key is the id. The details say for each kind what was written for a row, how
large it is, what reading 1,000 rows in key order takes, and what reading 100 rows that came one after another does,
which is a page of history: one range if ids increase, else 100 searches.

Of conversations: counted ids, ids computed from two 32-bit users, and, for comparison only, two 64-bit users as text.

It also counts duplicates in 10,000,000 snowflakes of 8 workers and collisions in 1,000,000 random pairs.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import msgspec

from base.clock import Timestamp
from bench.result import Comparison, Options, Result
from im.core.ids import MessageIdKind, message_ids
from im.core.pair_ids import COUNTED_MAX, pair_cid, users_of
from im.core.snowflake import Snowflake

__all__ = ["run"]

SPEC = ("ID-01", "ID-02", "MI-01", "CI-01", "CI-02", "TW-01")  # rows of docs/spec-coverage.md

ROWS = 1_000_000
GROUP = 256
BODY = bytes(range(120))
IDS_PER_MS = 12
"""A billion messages a day."""
NOW_MS = 1_800_000_000_000
READS = 500
WORKERS = 8
DUPLICATES_OF = 10_000_000
PAIRS = 1_000_000

Id = int | str | bytes


class Kind(msgspec.Struct, frozen=True):
    """A kind of id, as a primary key."""

    name: str
    column: str
    make: Callable[[int], Sequence[Id]]
    """The ids of so many rows, in the order of their coming."""
    is_increasing: bool


class Cost(msgspec.Struct, frozen=True):
    """What rows with one kind of id took."""

    insert_us: float
    insert_cpu_us: float
    rows_per_s: int
    written_bytes: float
    """By write(2) for one row: log and table."""
    stored_bytes: float
    scan_1000_cpu_us: int
    """1,000 rows in key order, from a random one on."""
    history_100_cpu_us: int
    """100 rows that came one after another, from a random one on."""


def run(options: Options) -> Result:
    """Measure, see the module."""
    rows = ROWS // 50 if options.quick else ROWS
    part = 100 if options.quick else 1
    costs: dict[str, Cost] = {}
    for kind in KINDS:
        with TemporaryDirectory(prefix="bench-im-ids-") as folder:
            costs[kind.name] = _cost(kind, rows, Path(folder) / "rows.db")
        print(f"{kind.name}: {costs[kind.name]}", file=sys.stderr)
    return Result(
        name="im_ids",
        value=round(costs["uuid4 text"].insert_cpu_us / costs["uuid7 text"].insert_cpu_us, 2),
        unit="x, CPU for a row with random ids to one with increasing ids",
        goal=1,
        better="higher",
        details={
            "rows": rows,
            "cost": {name: msgspec.structs.asdict(cost) for name, cost in costs.items()},
            "make_one_us": {kind: _make_us(kind, 500_000 // part) for kind in ("snowflake", "uuid7", "uuid4")},
            **_duplicates(DUPLICATES_OF // part),
            **_collisions(PAIRS // part),
        },
        comparison=Comparison(
            unit="us of CPU a row",
            better="lower",
            ours=costs["uuid7 text"].insert_cpu_us,
            others={name: cost.insert_cpu_us for name, cost in costs.items() if name != "uuid7 text"},
            what="uuid7 text",
        ),
    )


# ---------------------------------------------------------------- rows


def _cost(kind: Kind, rows: int, path: Path) -> Cost:
    ids = kind.make(rows)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _prepare(connection)
        rowid = "" if kind.column == "INTEGER" else "WITHOUT ROWID"
        connection.execute(f"CREATE TABLE row (id {kind.column} PRIMARY KEY, body BLOB NOT NULL) {rowid}")
        written, began, began_cpu = _written_bytes(), time.perf_counter(), time.process_time()
        for begin in range(0, rows, GROUP):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO row VALUES (?, ?)", [(mid, BODY) for mid in ids[begin : begin + GROUP]])
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spent, spent_cpu = time.perf_counter() - began, time.process_time() - began_cpu
        written = _written_bytes() - written
    finally:
        connection.close()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _prepare(connection)
        return Cost(
            insert_us=round(spent / rows * 1e6, 2),
            insert_cpu_us=round(spent_cpu / rows * 1e6, 2),
            rows_per_s=round(rows / spent),
            written_bytes=round(written / rows, 1),
            stored_bytes=round(path.stat().st_size / rows, 1),
            scan_1000_cpu_us=_scan_us(connection, ids),
            history_100_cpu_us=_history_us(connection, ids, is_increasing=kind.is_increasing),
        )
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection) -> None:
    """As the message store does."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -32768", "wal_autocheckpoint = 4000"):
        connection.execute(f"PRAGMA {pragma}")


def _scan_us(connection: sqlite3.Connection, ids: Sequence[Id]) -> int:
    random = Random(5)
    starts = [random.choice(ids) for _ in range(READS)]
    began = time.process_time()
    for start in starts:
        connection.execute("SELECT id, body FROM row WHERE id >= ? ORDER BY id LIMIT 1000", (start,)).fetchall()
    return round((time.process_time() - began) / READS * 1e6)


def _history_us(connection: sqlite3.Connection, ids: Sequence[Id], *, is_increasing: bool) -> int:
    random = Random(6)
    pages = [ids[start : start + 100] for start in (random.randrange(len(ids) - 100) for _ in range(READS))]
    search = (
        f"WITH asked (id) AS (VALUES {','.join(['(?)'] * 100)}) SELECT id, body FROM asked CROSS JOIN row USING (id)"  # noqa: S608 - constants
    )
    began = time.process_time()
    for page in pages:
        if is_increasing:
            found = connection.execute("SELECT id, body FROM row WHERE id >= ? ORDER BY id LIMIT 100", page[:1])
        else:
            found = connection.execute(search, page)
        assert len(found.fetchall()) == 100
    return round((time.process_time() - began) / READS * 1e6)


def _written_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


# ---------------------------------------------------------------- ids


def _messages(kind: MessageIdKind) -> Callable[[int], list[Id]]:
    def make(rows: int) -> list[Id]:
        source = message_ids(kind, entropy=Random(1), worker=1)
        ids = [source.next(Timestamp(NOW_MS + number // IDS_PER_MS)) for number in range(rows)]
        return [mid for mid in ids if isinstance(mid, int | str)]

    return make


def _as_blobs(make: Callable[[int], list[Id]]) -> Callable[[int], list[Id]]:
    return lambda rows: [UUID(str(mid)).bytes for mid in make(rows)]


def _pairs(count: int, users: range) -> Iterator[tuple[int, int]]:
    """Different pairs of users, at random."""
    random = Random(2)
    seen: set[tuple[int, int]] = set()
    while len(seen) < count:
        one, other = random.randrange(users.start, users.stop), random.randrange(users.start, users.stop)
        pair = min(one, other), max(one, other)
        if pair not in seen:
            seen.add(pair)
            yield pair


def _special(rows: int) -> list[Id]:
    return [cid for one, other in _pairs(rows, range(1, 2**31)) if (cid := pair_cid(str(one), str(other))) is not None]


def _text_pairs(rows: int) -> list[Id]:
    return [f"{one}{other}" for one, other in _pairs(rows, range(10**18, 2**63))]


KINDS = (
    Kind("snowflake", "INTEGER", _messages("snowflake"), is_increasing=True),
    Kind("uuid7 blob", "BLOB", _as_blobs(_messages("uuid7")), is_increasing=True),
    Kind("uuid7 text", "TEXT", _messages("uuid7"), is_increasing=True),
    Kind("uuid4 blob", "BLOB", _as_blobs(_messages("uuid4")), is_increasing=False),
    Kind("uuid4 text", "TEXT", _messages("uuid4"), is_increasing=False),
    Kind("counted", "INTEGER", lambda rows: range(1, rows + 1), is_increasing=True),
    Kind("special", "INTEGER", _special, is_increasing=False),
    Kind("text pair", "TEXT", _text_pairs, is_increasing=False),
)


def _make_us(kind: MessageIdKind, count: int) -> float:
    source = message_ids(kind, entropy=Random(1), worker=1)
    began = time.process_time()
    for number in range(count):
        source.next(Timestamp(NOW_MS + number // IDS_PER_MS))
    return round((time.process_time() - began) / count * 1e6, 2)


def _duplicates(count: int) -> dict[str, Any]:
    """Count ids that came twice. Chunk by chunk of time, each above all that came before: so none can meet another."""
    workers = [Snowflake(worker, Random(worker)) for worker in range(WORKERS)]
    per_ms, chunk_ms = 1_250, 10
    seen = duplicates = 0
    highest = -1
    for chunk in range(NOW_MS, NOW_MS + max(1, count // (WORKERS * per_ms)), chunk_ms):
        ids = [
            mid
            for now in range(chunk, chunk + chunk_ms)
            for worker in workers
            for _ in range(per_ms)
            if isinstance(mid := worker.next(Timestamp(now)), int)
        ]
        different = set(ids)
        assert min(different) > highest
        highest = max(different)
        seen += len(ids)
        duplicates += len(ids) - len(different)
    return {"workers": WORKERS, "snowflakes": seen, "duplicates": duplicates}


def _collisions(count: int) -> dict[str, Any]:
    """Count pairs whose id is another pair's, one of the counter's, not symmetric, or does not give the pair back."""
    wrong = 0
    cids: set[int] = set()
    for one, other in _pairs(count, range(1, 2**31)):
        cid = pair_cid(str(one), str(other))
        assert cid is not None
        wrong += cid in cids or cid <= COUNTED_MAX or cid != pair_cid(str(other), str(one))
        wrong += users_of(cid) != (str(one), str(other))
        cids.add(cid)
    return {"pairs": count, "collisions": wrong}
