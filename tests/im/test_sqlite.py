"""What only the SQLite store can get wrong: files, crashes, failures of the disk, threads. The rest is its contract."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import im
from base.clock import Timestamp
from base.errors import Overloaded, StoreError, StoreUnavailable
from im.ports import Appended, Draft
from im.sqlite import SqliteMessageStore
from im.sqlite_log import SCHEMA_VERSION


def draft(n: int, *, sender: str = "ann", recipient: str = "bob", body: bytes = b"{}") -> Draft:
    return Draft(n, sender, "phone", recipient, f"k{n}", "text", body, Timestamp(1_000))


def drafts(first: int, last: int) -> list[Draft]:
    return [draft(n) for n in range(first, last + 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


def change(path: Path, statement: str, *values: object) -> None:
    """Change the file from outside, as an operator does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


def inspect(path: Path, query: str, *values: object) -> list[tuple]:
    connection = sqlite3.connect(path)
    rows = connection.execute(query, values).fetchall()
    connection.close()
    return rows


def content(path: Path) -> bytes:
    return path.read_bytes()


def copy_as_a_crash_would_leave_it(path: Path, folder: Path) -> Path:
    """Copy the file and its write-ahead log, without whatever memory had."""
    folder.mkdir()
    shutil.copy(f"{path}-wal", folder)
    return Path(shutil.copy(path, folder))


async def keys(store: SqliteMessageStore, user: str) -> list[str]:
    """Read a whole timeline; its offsets must be without a hole."""
    page = await store.timeline(user, since=0, limit=100_000)
    assert [entry.offset for entry in page.entries] == list(range(1, page.head + 1))
    return [entry.message.client_msg_id for entry in page.entries]


async def is_stored(store: SqliteMessageStore, one: Draft) -> bool:
    """Append it and say whether that worked."""
    try:
        [outcome] = await store.append([one])
    except StoreUnavailable:
        return False
    return isinstance(outcome, Appended)


# ---------------------------------------------------------------- opening


async def test_a_newer_schema_is_refused(path: Path):
    """By name and number, and not as an outage that a retry may cure; the file is not touched."""
    await (await SqliteMessageStore.open(path)).close()
    change(path, "UPDATE meta SET value = ? WHERE name = 'schema_version'", SCHEMA_VERSION + 1)
    before = content(path)
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}, written by a newer release") as caught:
        await SqliteMessageStore.open(path)
    assert not isinstance(caught.value, StoreUnavailable)
    assert content(path) == before


async def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path):
    """A folder that is missing, and a folder where the file should be; named without the folders above, which clients
    have no business to know.
    """
    for wrong in (tmp_path / "missing" / "messages.db", tmp_path):
        with pytest.raises(StoreUnavailable, match=f"{wrong.name} failed: unable to open database file"):
            await SqliteMessageStore.open(wrong)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    """It stays as it is."""
    accounts = Path(shutil.copy(__file__, tmp_path))
    with pytest.raises(StoreUnavailable, match="not a database"):
        await SqliteMessageStore.open(accounts)
    assert content(accounts) == content(Path(__file__))


async def test_a_file_system_without_a_write_ahead_log_is_refused():
    """A database in memory stands for it: SQLite keeps its own journal there."""
    with pytest.raises(StoreUnavailable, match="write-ahead log"):
        await SqliteMessageStore.open(Path(":memory:"))


async def test_a_closed_store_leaves_no_threads_and_one_file(path: Path):
    """Nor does one that failed to open."""
    before = set(threading.enumerate())
    store = await SqliteMessageStore.open(path)
    await store.append(drafts(1, 3))
    assert len(set(threading.enumerate()) - before) == 3
    await store.close()
    with pytest.raises(StoreUnavailable):
        await SqliteMessageStore.open(path.parent)
    assert set(threading.enumerate()) == before
    assert [file.name for file in path.parent.iterdir()] == ["messages.db"]


async def test_closing_waits_for_what_was_begun(path: Path):
    """A commit that runs is not cut off, even when whoever closes stops waiting."""
    store = await SqliteMessageStore.open(path)
    async with asyncio.TaskGroup() as tasks:
        append = tasks.create_task(store.append(drafts(1, 500)))
        await asyncio.sleep(0)
        close = tasks.create_task(store.close())
        await asyncio.sleep(0)
        close.cancel()
    assert len(append.result()) == 500
    await store.close()


async def test_every_commit_is_forced_to_the_disk(path: Path):
    """I1: WAL with synchronous FULL (2), which no test can tell from NORMAL without cutting the power."""
    store = await SqliteMessageStore.open(path)
    for pragma, value in (("synchronous", 2), ("journal_mode", "wal")):
        assert await store._writer.run(lambda db, name=pragma: db.execute(f"PRAGMA {name}").fetchone()) == (value,)
    await store.close()


# ---------------------------------------------------------------- merging


async def test_merging_empties_memory_into_the_indexes(path: Path):
    """Each message is in each index once, and a few wait for the next merge."""
    store = await SqliteMessageStore.open(path, lag_max=10)
    for one in drafts(1, 99):
        await store.append([one])
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 100)]
    await store.close()
    [(indexed,)] = inspect(path, "SELECT value FROM meta WHERE name = 'indexed_through'")
    assert 99 - indexed < 2 * 10
    for index, entries in (("conv", 1), ("msg_key", 1), ("user_tl", 2)):
        counts = inspect(path, f"SELECT count(*) FROM {index} WHERE n <= ? GROUP BY n", indexed)  # noqa: S608 - our names
        assert counts == [(entries,)] * indexed
    assert inspect(path, "SELECT * FROM conv_pair") == [("ann", "bob", 1)]


async def test_a_merge_that_was_cut_off_is_done_again(path: Path, tmp_path: Path):
    """At every point of it: a copy of the files, taken between two appends, opens with everything in place."""
    store = await SqliteMessageStore.open(path, lag_max=8)
    for n in range(1, 41):
        await store.append([draft(n), draft(n, sender="cleo")])
        copy = copy_as_a_crash_would_leave_it(path, tmp_path / f"crash-{n}")
        other = await SqliteMessageStore.open(copy, lag_max=8)
        for more in range(n + 1, n + 21):
            await other.append([draft(more), draft(more, sender="cleo")])
        assert await keys(other, "ann") == [f"k{m}" for m in range(1, n + 21)]
        assert await keys(other, "bob") == [f"k{m}" for m in range(1, n + 21) for _ in "ac"]
        for cid in (1, 2):
            page = await other.conversation(cid, since=0, limit=1_000)
            assert [message.seq for message in page.messages] == list(range(1, page.head + 1))
            assert page.head == n + 20
        await other.close()
    await store.close()


async def test_a_new_conversation_after_a_restart_has_a_new_cid(path: Path):
    """Even when every message of the newest one left memory long ago."""
    store = await SqliteMessageStore.open(path, lag_max=2)
    await store.append([draft(1), draft(2, recipient="cleo")])
    for n in range(3, 20):
        await store.append([draft(n)])
    await store.close()
    store = await SqliteMessageStore.open(path, lag_max=2)
    [appended] = await store.append([draft(20, recipient="dan")])
    assert isinstance(appended, Appended)
    assert appended.message.cid == 3
    await store.close()


async def test_older_entries_are_read_from_the_file_and_newer_ones_from_memory(path: Path):
    """One page may have both, and none of it goes through a reader when memory has all."""
    store = await SqliteMessageStore.open(path, lag_max=4)
    for n in range(1, 31):
        await store.append([draft(n)])
    await store._readers[0].close()
    await store._readers[1].close()
    assert (await store.timeline("bob", since=29, limit=5)).head == 30
    assert await store.heads(["ann", "bob"]) == [30, 30]
    assert [message.seq for message in (await store.conversation(1, since=29, limit=5)).messages] == [30]
    assert await store.conversation_heads([1]) == [30]
    assert await store.is_member(1, "bob")
    await store.close()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("failure", ["ABORT", "ROLLBACK"])
async def test_a_failed_append_writes_nothing_and_costs_no_number(path: Path, failure: str):
    """What was placed in memory is forgotten and the next message has the next number, whoever rolled back."""
    store = await SqliteMessageStore.open(path, lag_max=5)
    await store.append(drafts(1, 3))
    change(
        path,
        f"""CREATE TRIGGER fail BEFORE INSERT ON msg WHEN NEW.body = x'bad0'
        BEGIN SELECT RAISE({failure}, 'no such luck'); END""",
    )
    for attempt in range(3):
        with pytest.raises(StoreUnavailable, match=r"messages\.db failed: no such luck"):
            await store.append([draft(4), draft(5, recipient="new"), draft(6, body=b"\xba\xd0")])
        assert await store.heads(["ann", "bob", "new"]) == [3 + attempt] * 2 + [0]
        [appended] = await store.append([draft(100 + attempt)])
        assert isinstance(appended, Appended)
        assert (appended.message.seq, appended.positions) == (4 + attempt, (("ann", 4 + attempt), ("bob", 4 + attempt)))
    change(path, "DROP TRIGGER fail")
    outcomes = await store.append([draft(4), draft(5, recipient="new"), draft(6, body=b"\xba\xd0")])
    assert [outcome.is_new for outcome in outcomes if isinstance(outcome, Appended)] == [True] * 3
    assert len(await keys(store, "ann")) == 9
    await store.close()


async def test_a_failed_merge_is_done_again(path: Path):
    """The append that moves a piece of the merge fails with it; later ones begin the merge anew."""
    store = await SqliteMessageStore.open(path, lag_max=5)
    await store.append(drafts(1, 5))
    change(
        path,
        """CREATE TRIGGER fail BEFORE INSERT ON user_tl WHEN NEW.user = 'bob' AND NEW.offset = 4
        BEGIN SELECT RAISE(FAIL, 'no such luck'); END""",
    )
    failures = 0
    for n in range(6, 31):
        while not await is_stored(store, draft(n)):
            assert await keys(store, "bob") == [f"k{m}" for m in range(1, n)]
            failures += 1
            if failures == 3:
                change(path, "DROP TRIGGER fail")
    assert failures == 3
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 31)]
    await store.close()


async def test_a_full_disk_is_said_and_survived(path: Path):
    """Nothing of the batch is there; with room again the same batch is stored."""
    store = await SqliteMessageStore.open(path)
    await store.append(drafts(1, 3))

    def limit_pages(pages: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._writer.run(limit_pages(20))
    large = [draft(n, body=bytes(10_000)) for n in range(4, 30)]
    with pytest.raises(StoreUnavailable, match="full") as caught:
        await store.append(large)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert await keys(store, "bob") == ["k1", "k2", "k3"]
    await store._writer.run(limit_pages(100_000))
    await store.append(large)
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 30)]
    await store.close()


async def test_a_second_writer_does_no_harm(path: Path):
    """Two processes on one file is a mistake; each notices the other's commits and numbers after them."""
    one, other = await SqliteMessageStore.open(path, lag_max=3), await SqliteMessageStore.open(path, lag_max=3)
    for n in range(1, 30, 2):
        await one.append([draft(n)])
        await other.append([draft(n + 1)])
    [repeat] = await one.append([draft(28)])
    assert isinstance(repeat, Appended)
    assert (repeat.is_new, repeat.message.seq) == (False, 28)
    assert await keys(one, "bob") == [f"k{n}" for n in range(1, 31)]
    await one.close()
    await other.close()


async def test_too_many_waiting_reads_are_refused(path: Path):
    """A bound on the queue for the disk, with a time to come again; what waits is answered."""
    store = await SqliteMessageStore.open(path, readers=2, reads_waiting_max=2)
    async with asyncio.TaskGroup() as readers:
        tasks = [readers.create_task(store.heads([f"user-{n}"])) for n in range(4)]
        await asyncio.sleep(0)  # each runs up to its place in a queue
        with pytest.raises(Overloaded) as caught:
            await store.timeline("ann", since=0, limit=1)
        assert caught.value.detail["what"] == "message_reads"
    assert [task.result() for task in tasks] == [[0]] * 4
    await store.close()


# ---------------------------------------------------------------- crashes

GROUP = 20

CHILD = f"""
import asyncio, itertools, sys
from pathlib import Path
from base.clock import Timestamp
from im.ports import Draft
from im.sqlite import SqliteMessageStore

async def main():
    store = await SqliteMessageStore.open(Path(sys.argv[1]), lag_max=100)
    for first in itertools.count(1, {GROUP}):
        group = [Draft(n, "ann", "phone", "bob", f"k{{n}}", "text", b"x" * 200, Timestamp(n))
                 for n in range(first, first + {GROUP})]
        await store.append(group)
        print("acknowledged", first + {GROUP} - 1, flush=True)

asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.parametrize("lines", [1, 7, 40, 150])
async def test_a_killed_process_loses_nothing_that_it_acknowledged(path: Path, lines: int):
    """Under kill -9 in the middle of appending: every acknowledged group is there, and no group by half."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(path)), stdout=asyncio.subprocess.PIPE, cwd=Path(im.__file__).parents[1]
    )
    assert process.stdout is not None
    output = b"".join([await process.stdout.readline() for _ in range(lines)])
    process.kill()
    output += await process.stdout.read()
    await process.wait()
    acknowledged = int(output.rpartition(b"acknowledged ")[2])

    store = await SqliteMessageStore.open(path)
    found = await keys(store, "bob")
    assert len(found) in {acknowledged, acknowledged + GROUP}
    assert found == [f"k{n}" for n in range(1, len(found) + 1)]
    assert found == await keys(store, "ann")
    repeats = await store.append(drafts(1, len(found)))
    assert all(not (isinstance(outcome, Appended) and outcome.is_new) for outcome in repeats)
    await store.close()
