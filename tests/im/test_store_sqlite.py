"""The SQLite message store: what the contract cannot say because only a file, a disk and a process have it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from base.errors import Overloaded, StoreError, StoreUnavailable
from im.core import timelines
from im.core.commands import Appended, Command, CreateGroup, Draft, Mark, Trim
from im.core.fan_out import PRESETS
from im.core.generations import Generations
from im.core.ledger import LedgerSettings
from im.core.model import Message, View
from im.store.listing import read_listed
from im.store.schema import SCHEMA_VERSION
from im.store.sqlite import SqliteMessageStore

NOW = Timestamp(1_000)
VERSION_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema_version', 1), ('epoch', 'then'), ('indexed_through', 4);
CREATE TABLE msg (
    n INTEGER PRIMARY KEY, cid INTEGER NOT NULL, seq INTEGER NOT NULL, mid INTEGER NOT NULL, sender TEXT NOT NULL,
    device TEXT NOT NULL, recipient TEXT NOT NULL, client_msg_id TEXT NOT NULL, kind TEXT NOT NULL,
    body BLOB NOT NULL, at INTEGER NOT NULL, sender_offset INTEGER NOT NULL, recipient_offset INTEGER);
CREATE TABLE conv (cid INTEGER, seq INTEGER, n INTEGER NOT NULL, PRIMARY KEY (cid, seq)) WITHOUT ROWID;
CREATE TABLE conv_pair (lo TEXT, hi TEXT, cid INTEGER NOT NULL, PRIMARY KEY (lo, hi)) WITHOUT ROWID;
CREATE TABLE msg_key (
    sender TEXT, client_msg_id TEXT, n INTEGER NOT NULL, PRIMARY KEY (sender, client_msg_id)) WITHOUT ROWID;
CREATE TABLE user_tl (user TEXT, offset INTEGER, n INTEGER NOT NULL, PRIMARY KEY (user, offset)) WITHOUT ROWID;
INSERT INTO msg VALUES
    (1, 1, 1, 71, 'ann', 'phone', 'bob', 'k1', 'text', x'7b7d', 1000, 1, 1),
    (2, 1, 2, 72, 'bob', 'phone', 'ann', 'k1', 'text', x'7b7d', 1000, 2, 2),
    (3, 2, 1, 73, 'ann', 'phone', 'ann', 'k2', 'text', x'7b7d', 1000, 3, NULL),
    (4, 1, 3, 74, 'ann', 'phone', 'bob', 'k3', 'text', x'7b7d', 1000, 4, 3),
    (5, 1, 4, 75, 'ann', 'phone', 'bob', 'k4', 'text', x'7b7d', 1000, 5, 4),
    (6, 2, 2, 76, 'ann', 'phone', 'ann', 'k5', 'text', x'7b7d', 1000, 6, NULL);
INSERT INTO conv VALUES (1, 1, 1), (1, 2, 2), (2, 1, 3), (1, 3, 4);
INSERT INTO conv_pair VALUES ('ann', 'bob', 1), ('ann', 'ann', 2);
INSERT INTO msg_key VALUES ('ann', 'k1', 1), ('bob', 'k1', 2), ('ann', 'k2', 3), ('ann', 'k3', 4);
INSERT INTO user_tl VALUES
    ('ann', 1, 1), ('ann', 2, 2), ('ann', 3, 3), ('ann', 4, 4), ('bob', 1, 1), ('bob', 2, 2), ('bob', 3, 4);
"""
"""A file as release 0.1 wrote it; the last two messages are not indexed."""


def draft(n: int, *, sender: str = "ann", to: str = "bob", body: bytes = b"{}", cid: int = 0) -> Draft:
    return Draft(n, sender, "phone", "" if cid else to, cid, f"k{n}", "text", body, NOW)


def drafts(first: int, last: int) -> list[Draft]:
    return [draft(n) for n in range(first, last + 1)]


def group_of(*members: str, key: str = "g1") -> CreateGroup:
    return CreateGroup(1, members[0], "phone", key, "friends", members[1:], NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fan-outs go on over many transactions with few users."""
    monkeypatch.setattr(timelines, "AT_ONCE_MAX", 1)
    monkeypatch.setattr(timelines, "STEP_MAX", 12)
    monkeypatch.setattr(timelines, "TURN_MAX", 2)


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


def kilobytes_in_memory(store: SqliteMessageStore) -> int:
    """Of bodies that are not indexed, each object once."""
    newest = store._log.generations.newest
    tails = [newest.tail(user, since=0, limit=100_000) for user in ("ann", "bob", *(f"u{n}" for n in range(40)))]
    found = {id(message): message for tail in tails if tail is not None for _, message in tail.entries}
    return sum(len(message.body) for message in found.values()) // 1_024


async def keys(store: SqliteMessageStore, user: str) -> list[str]:
    """Read a whole timeline; its offsets must be without a hole."""
    page = await store.timeline(user, since=0, limit=100_000)
    assert [entry.offset for entry in page.entries] == list(range(1, page.head + 1))
    return [entry.message.client_msg_id for entry in page.entries]


async def append(store: SqliteMessageStore, *batch: Command) -> list[Message]:
    """Carry out commands of which each is expected to become a new entry."""
    messages = []
    for outcome in (await store.execute(batch)).outcomes:
        assert isinstance(outcome, Appended)
        assert outcome.is_new
        messages.append(outcome.message)
    return messages


async def is_stored(store: SqliteMessageStore, one: Draft) -> bool:
    """Append it and say whether that worked."""
    try:
        await append(store, one)
    except StoreUnavailable:
        return False
    return True


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
    await store.execute(drafts(1, 3))
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
        appended = tasks.create_task(store.execute(drafts(1, 500)))
        await asyncio.sleep(0)
        close = tasks.create_task(store.close())
        await asyncio.sleep(0)
        close.cancel()
    assert len(appended.result().outcomes) == 500
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
        await store.execute([one])
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 100)]
    await store.close()
    [(indexed,)] = inspect(path, "SELECT value FROM meta WHERE name = 'indexed_through'")
    assert 99 - indexed < 2 * 10
    for index, entries in (("conv", 1), ("msg_key", 1), ("user_tl", 2)):
        counts = inspect(path, f"SELECT count(*) FROM {index} WHERE n <= ? GROUP BY n", indexed)  # noqa: S608 - our names
        assert counts == [(entries,)] * indexed
    assert inspect(path, "SELECT * FROM conv_pair") == [("ann", "bob", 1)]
    assert inspect(path, "SELECT * FROM conv_pair_hi") == [("bob", "ann", 1)]
    assert inspect(path, "SELECT user, cid, sent_seq, sent_cseq FROM view") == [("ann", 1, indexed, indexed)]


async def test_long_messages_do_not_pile_up_in_memory(path: Path):
    """What waits to be indexed is bounded by its size as well, after a restart too."""
    store = await SqliteMessageStore.open(path, lag_max=300)
    sizes = []
    for n in range(1, 101):
        await store.execute([draft(n, body=b"x" * 65_536)])
        sizes.append(kilobytes_in_memory(store))
    assert 300 <= max(sizes) <= 3 * 300
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 101)]
    await store.close()
    store = await SqliteMessageStore.open(path, lag_max=300)
    assert kilobytes_in_memory(store) == sizes[-1]
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 101)]
    await store.close()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("lag_max", [1, 1_000])
async def test_a_message_to_many_is_in_memory_once_after_a_restart(path: Path, tmp_path: Path, lag_max: int):
    """Whether it waits to be indexed with its timelines, or was indexed before they were all written."""
    store = await SqliteMessageStore.open(path, lag_max=lag_max)
    await store.execute([group_of("ann", *(f"u{n}" for n in range(40)))])
    await store.execute([draft(1, cid=1, body=b"x" * 65_536)])
    through = "SELECT value FROM meta WHERE name = 'indexed_through'"
    while store.has_work:
        if lag_max > 1 or inspect(path, through) == [(2,)]:
            await store.execute([])
            break
        await store.execute([draft(3, sender="xeno", to="xeno")])
    other = await SqliteMessageStore.open(copy_as_a_crash_would_leave_it(path, tmp_path / "crash"))
    assert kilobytes_in_memory(other) == 64
    while other.has_work:
        await other.execute([])
    for user in ("ann", "u7", "u39"):
        assert await keys(other, user) == ["g1", "k1"]
    await other.close()
    await store.close()


async def test_a_merge_that_was_cut_off_is_done_again(path: Path, tmp_path: Path):
    """At every point of it: a copy of the files, taken between two appends, opens with everything in place."""
    store = await SqliteMessageStore.open(path, lag_max=8)
    for n in range(1, 41):
        await store.execute([draft(n), draft(n, sender="cleo")])
        copy = copy_as_a_crash_would_leave_it(path, tmp_path / f"crash-{n}")
        other = await SqliteMessageStore.open(copy, lag_max=8)
        for more in range(n + 1, n + 21):
            await other.execute([draft(more), draft(more, sender="cleo")])
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
    await store.execute([draft(1), draft(2, to="cleo")])
    for n in range(3, 20):
        await store.execute([draft(n)])
    await store.close()
    store = await SqliteMessageStore.open(path, lag_max=2)
    [message] = await append(store, draft(20, to="dan"))
    assert message.cid == 3
    await store.close()


async def test_older_entries_are_read_from_the_file_and_newer_ones_from_memory(path: Path):
    """One page may have both, and none of it goes through a reader when memory has all."""
    store = await SqliteMessageStore.open(path, lag_max=4)
    for n in range(1, 31):
        await store.execute([draft(n)])
    await store._readers.close()
    assert (await store.timeline("bob", since=29, limit=5)).head == 30
    assert await store.heads(["ann", "bob"]) == [30, 30]
    assert [message.seq for message in (await store.conversation(1, since=29, limit=5)).messages] == [30]
    assert await store.conversation_heads([1]) == [30]
    assert [message.seq for message in (await store.conversation_before(1, before=99, limit=1)).messages] == [30]
    assert await store.membership(1, "bob") is not None
    assert await store.membership(1, "cleo") is None
    await store.close()


async def test_a_timeline_that_is_trimmed_while_it_is_read_begins_after_its_floor(path: Path):
    """Memory was looked at before, the index after: what is told is as after the trim, and whole."""
    store = await SqliteMessageStore.open(path, readers=1, lag_max=4)
    for n in range(1, 31):
        await append(store, draft(n))
    first = store._log.generations.newest.first("bob")
    assert first is not None
    assert 1 < first < 29
    is_trimmed = threading.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store._readers.run(lambda _: is_trimmed.wait(30)))
        page = tasks.create_task(store.timeline("bob", since=0, limit=20))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await store.execute([Trim("bob", 29)])
        is_trimmed.set()
    assert (page.result().head, page.result().floor) == (30, 29)
    assert [entry.offset for entry in page.result().entries] == [30]
    await store.close()


async def test_a_list_is_never_behind_the_rows_that_it_is_made_of(path: Path):
    """A group's rows may be seen a moment before memory shows its entries: its end is told all the same."""
    store = await SqliteMessageStore.open(path)
    await store.execute([group_of("ann", "bob"), draft(1, cid=1), draft(2, cid=1)])
    await store.execute([Mark("bob", "phone", 1, NOW, read_seq=2)])
    earlier = Generations().newest
    for user, end in (("ann", (1, 0)), ("bob", (2, 1))):
        [listed] = await store._readers.run(lambda connection, of=user: read_listed(connection, earlier, of))
        assert (listed.max_seq, listed.max_cseq, listed.head) == (*end, None)
    await store.close()


# ---------------------------------------------------------------- failures


@pytest.mark.spec("MI-06")
@pytest.mark.parametrize("failure", ["ABORT", "ROLLBACK"])
async def test_a_failed_append_writes_nothing_and_costs_no_number(path: Path, failure: str):
    """What was placed in memory is forgotten and the next message has the next number, whoever rolled back."""
    store = await SqliteMessageStore.open(path, lag_max=5)
    await store.execute(drafts(1, 3))
    change(
        path,
        f"""CREATE TRIGGER fail BEFORE INSERT ON msg WHEN NEW.body = x'bad0'
        BEGIN SELECT RAISE({failure}, 'no such luck'); END""",
    )
    for attempt in range(3):
        with pytest.raises(StoreUnavailable, match=r"messages\.db failed: no such luck"):
            await store.execute([draft(4), draft(5, to="new"), draft(6, body=b"\xba\xd0")])
        assert await store.heads(["ann", "bob", "new"]) == [3 + attempt] * 2 + [0]
        executed = await store.execute([draft(100 + attempt)])
        assert executed.deliveries[0].message.seq == 4 + attempt
        assert executed.deliveries[0].positions == (("ann", 4 + attempt), ("bob", 4 + attempt))
    change(path, "DROP TRIGGER fail")
    await append(store, draft(4), draft(5, to="new"), draft(6, body=b"\xba\xd0"))
    assert len(await keys(store, "ann")) == 9
    await store.close()


async def test_a_failed_merge_is_done_again(path: Path):
    """The append that moves a piece of the merge fails with it; later ones begin the merge anew."""
    store = await SqliteMessageStore.open(path, lag_max=5)
    await store.execute(drafts(1, 5))
    change(
        path,
        """CREATE TRIGGER fail BEFORE INSERT ON user_tl WHEN NEW.user = 'bob' AND NEW.offset = 4
        BEGIN SELECT RAISE(FAIL, 'no such luck'); END""",
    )
    failures = 0
    for n in range(6, 61):
        while not await is_stored(store, draft(n)):
            assert await keys(store, "bob") == [f"k{m}" for m in range(1, n)]
            failures += 1
            if failures == 3:
                change(path, "DROP TRIGGER fail")
    assert failures == 3
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 61)]
    await store.close()


@pytest.mark.spec("OR-04")
async def test_a_queued_draft_survives_the_failure_of_its_turn(path: Path):
    """It is acknowledged: the store says that there is work until it is done, without any other command."""
    store = await SqliteMessageStore.open(path)
    await store.execute([replace(draft(1, body=b"\xba\xd0"), is_queued=True)])
    change(
        path,
        """CREATE TRIGGER fail BEFORE INSERT ON msg WHEN NEW.body = x'bad0'
        BEGIN SELECT RAISE(ABORT, 'no such luck'); END""",
    )
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.execute([])
        assert store.has_work
    change(path, "DROP TRIGGER fail")
    await store.execute([])
    assert not store.has_work
    assert await keys(store, "bob") == ["k1"]
    await store.close()


async def test_a_full_disk_is_said_and_survived(path: Path):
    """Nothing of the batch is there; with room again the same batch is stored."""
    store = await SqliteMessageStore.open(path)
    await store.execute(drafts(1, 3))

    def limit_pages(pages: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._writer.run(limit_pages(20))
    large = [draft(n, body=bytes(10_000)) for n in range(4, 30)]
    with pytest.raises(StoreUnavailable, match="full") as caught:
        await store.execute(large)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert await keys(store, "bob") == ["k1", "k2", "k3"]
    await store._writer.run(limit_pages(100_000))
    await store.execute(large)
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 30)]
    await store.close()


async def test_a_second_writer_does_no_harm(path: Path):
    """Two processes on one file is a mistake; each notices the other's commits and numbers after them."""
    one, other = await SqliteMessageStore.open(path, lag_max=3), await SqliteMessageStore.open(path, lag_max=3)
    for n in range(1, 30, 2):
        await one.execute([draft(n)])
        await other.execute([draft(n + 1)])
    [repeat] = (await one.execute([draft(28)])).outcomes
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


# ---------------------------------------------------------------- what is cleaned up


@pytest.mark.usefixtures("small_steps")
async def test_the_log_of_entries_is_emptied_as_it_is_indexed(path: Path):
    """Its positions go on after a restart with nothing in it, so that nothing new passes for indexed."""
    store = await SqliteMessageStore.open(path, lag_max=10)
    await store.execute([group_of("ann", "bob", "cleo", "dan")])
    for first in (1, 21):
        for n in range(first, first + 20):
            await append(store, draft(n, cid=1))
        while store.has_work:
            await store.execute([])
        pads = [draft(1_000 * first + n, sender="xeno", to="xeno") for n in range(250)]
        for pad in pads:
            await append(store, pad)
        await store.close()
        assert inspect(path, "SELECT count(*) FROM fan") == [(0,)]
        store = await SqliteMessageStore.open(path, lag_max=10)
    for user in ("ann", "bob", "cleo", "dan"):
        assert await keys(store, user) == ["g1", *(f"k{n}" for n in range(1, 41))]
    await store.close()


async def test_what_was_trimmed_leaves_the_index_and_does_not_come_back(path: Path):
    """Bit by bit, of entries that are being merged only afterwards, and over restarts."""
    store = await SqliteMessageStore.open(path, lag_max=700)
    for first in range(1, 1_300, 50):
        await append(store, *drafts(first, first + 49))
    await store.execute([Trim("bob", 1_290), Trim("ann", 3)])
    await store.close()
    store = await SqliteMessageStore.open(path, lag_max=700)
    await store.execute([draft(1)])
    [(swept,)] = inspect(path, "SELECT swept FROM floor WHERE user = 'bob'")
    assert 0 <= swept <= 512
    for first in range(2_000, 4_000, 50):
        await append(store, *(draft(n, sender="xeno", to="yara") for n in range(first, first + 50)))
    assert (await store.timeline("bob", since=0, limit=5)).floor == 1_290
    await store.close()
    assert inspect(path, "SELECT user, through, swept FROM floor") == [("ann", 3, 3), ("bob", 1_290, 1_290)]
    for user, floor in (("ann", 3), ("bob", 1_290)):
        assert inspect(path, "SELECT min(offset) FROM user_tl WHERE user = ?", user) == [(floor + 1,)]


# ---------------------------------------------------------------- older files


async def test_a_file_of_the_first_release_is_brought_up_to_date(path: Path):
    """What was indexed, what was not, and a chat with oneself; and it goes on from there."""
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    store = await SqliteMessageStore.open(path, lag_max=3)
    assert store.epoch == "then"
    assert inspect(path, "SELECT value FROM meta WHERE name = 'schema_version'") == [(SCHEMA_VERSION,)]
    for _ in range(2):
        assert await keys(store, "ann") == ["k1", "k1", "k2", "k3", "k4", "k5"]
        assert await keys(store, "bob") == ["k1", "k1", "k3", "k4"]
        listed = {one.conversation.cid: one for one in await store.conversations("ann")}
        assert {cid: (one.view, one.max_seq, one.max_cseq) for cid, one in listed.items()} == {
            1: (View("ann", 1, sent_seq=4, sent_cseq=4), 4, 4),
            2: (View("ann", 2, sent_seq=2, sent_cseq=2), 2, 2),
        }
        [listed_by_bob] = await store.conversations("bob")
        assert (listed_by_bob.view, listed_by_bob.max_cseq) == (View("bob", 1, sent_seq=2, sent_cseq=2), 4)
        page = await store.conversation(1, since=0, limit=9)
        assert [(one.seq, one.cseq, one.mid, one.body) for one in page.messages] == [
            (1, 1, 71, b"{}"),
            (2, 2, 72, b"{}"),
            (3, 3, 74, b"{}"),
            (4, 4, 75, b"{}"),
        ]
        for n in range(10):  # until all is indexed
            await store.execute([draft(n, sender="xeno", to="yara")])
    [answer, other] = await append(store, draft(9, sender="bob", to="ann"), draft(9, to="cleo"))
    assert (answer.cid, answer.seq, answer.cseq) == (1, 5, 5)
    assert other.cid == 4
    await store.close()


async def test_a_file_without_shards_is_brought_up_to_date(path: Path):
    """It is the only shard's; nothing in it came from another one."""
    store = await SqliteMessageStore.open(path, lag_max=3)
    await append(store, *drafts(1, 9))
    epoch = store.epoch
    await store.close()
    for statement in (
        "DROP TABLE outbox", "DROP TABLE sent", "DROP TABLE received", "ALTER TABLE msg DROP COLUMN origin",
        "UPDATE meta SET value = 2 WHERE name = 'schema_version'",
    ):  # fmt: skip
        change(path, statement)
    store = await SqliteMessageStore.open(path, lag_max=3)
    assert store.epoch == epoch
    await append(store, draft(10))
    assert await keys(store, "bob") == [f"k{n}" for n in range(1, 11)]
    page = await store.conversation(1, since=0, limit=99)
    assert {message.origin for message in page.messages} == {0}
    await store.close()
    assert inspect(path, "SELECT value FROM meta WHERE name = 'schema_version'") == [(SCHEMA_VERSION,)]


async def test_a_change_of_the_policy_does_not_change_conversations(path: Path):
    """Two users keep the strategy that their conversation began with; others begin with the new one."""
    hybrid, qq = (LedgerSettings(policy=PRESETS[name], remembered_max=1) for name in ("hybrid", "qq"))
    for n, (settings, other) in enumerate(((hybrid, "dan"), (qq, "cleo"), (hybrid, "erik"))):
        store = await SqliteMessageStore.open(path, settings=settings, lag_max=2)
        await append(store, draft(2 * n), draft(2 * n + 1, to=other))
        await store.close()
    store = await SqliteMessageStore.open(path, settings=qq)
    strategies = {one.conversation.hi: one.conversation.fan_out for one in await store.conversations("ann")}
    assert strategies == {"bob": "write", "dan": "write", "cleo": "read", "erik": "write"}
    await store.close()
