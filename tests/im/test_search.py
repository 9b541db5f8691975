"""Search: the index and its tail against a scan of the log, then files, failures and the follower."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant, SimClock, SystemClock, Timestamp
from base.errors import BadRequest, DeadlineExceeded, NotReady, Overloaded, StoreUnavailable
from im.core.model import Form, Message
from im.core.searchable import matches, parse, searchable
from im.search.index import SEQ_END, Position, SearchIndex
from im.search.search import Search, SearchSettings

WORDS = ("ab", "abc", "ABD", "é", "e", "世界", "世", "界人", "学", "が", "น้ำ", "👍🏽", "a.b", "世a", "-", "x" * 40)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
QUERIES = st.one_of(
    st.lists(
        st.sampled_from([*WORDS, "a*", "世*", '"ab abc"', '"世界 学"', "x" * 35 + "*"]), min_size=1, max_size=3
    ).map(" ".join),
    st.text(min_size=1, max_size=8),
)
BODIES = st.one_of(
    TEXTS.map(lambda text: msgspec.json.encode({"text": text})),
    TEXTS.map(lambda text: msgspec.json.encode({"caption": text})),
)
PLACES = st.tuples(st.integers(1, 17).filter(lambda cid: cid in {1, 16, 17}), st.integers(1, 6))
STEPS = st.one_of(
    st.tuples(st.just("send"), PLACES, st.sampled_from(["text", "image"]), BODIES),
    st.tuples(st.just("edit"), PLACES, st.just(""), BODIES),
    st.tuples(st.just("recall"), PLACES, st.just(""), st.just(b"")),
    st.tuples(st.just("event"), PLACES, st.just(""), BODIES),
    st.tuples(st.just("index"), PLACES, st.just(""), st.just(b"")),
    st.tuples(st.just("find"), PLACES, QUERIES, st.just(b"")),
)


class FakeStore:
    """A log in a list. Entries have every second `n`: the notes in between are in no conversation."""

    epoch = "e1"

    def __init__(self) -> None:
        self.entries: list[Message] = []
        self.calls: list[tuple[int, int]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def log(self, *, after: int, limit: int) -> Sequence[Message]:
        self.calls.append((after, limit))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        first = (after + 1) // 2
        return self.entries[first : first + limit]

    def add(self, form: Form, cid: int, *, kind: str = "", ref: int = 0, body: bytes = b"") -> Message:
        n = 2 * len(self.entries) + 1
        seq = 1 + sum(entry.cid == cid for entry in self.entries)
        entry = Message(n, cid, seq, seq, n, "ann", "phone", "bob", f"k{n}", form, kind, ref, body, b"", Timestamp(1))
        self.entries.append(entry)
        return entry

    def send(self, text: str, *, cid: int = 1) -> int:
        return self.add(Form.MESSAGE, cid, kind="text", body=msgspec.json.encode({"text": text})).seq

    def edit(self, seq: int, text: str, *, cid: int = 1) -> None:
        self.add(Form.EDIT, cid, kind="edit", ref=seq, body=msgspec.json.encode({"text": text}))

    def recall(self, seq: int, *, cid: int = 1) -> None:
        self.add(Form.RECALL, cid, kind="recall", ref=seq)

    def scan(self, cid: int, query: str, *, first_seq: int = 1, end_seq: int = SEQ_END) -> list[int]:
        """Go through the whole log: what search must find."""
        texts: dict[int, tuple[str, bytes]] = {}
        for entry in self.entries:
            if entry.cid == cid and entry.form == Form.MESSAGE:
                texts[entry.seq] = (entry.kind, entry.body)
            elif entry.cid == cid and entry.form in {Form.EDIT, Form.RECALL} and entry.ref in texts:
                texts[entry.ref] = (texts[entry.ref][0], entry.body)
        parsed = parse(query)
        found = [seq for seq, (kind, body) in texts.items() if matches(searchable(kind, body), parsed)]
        return sorted((seq for seq in found if first_seq <= seq < end_seq), reverse=True)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages-search.db"


@asynccontextmanager
async def searching(path: Path, store: FakeStore, **changed: int) -> AsyncIterator[Search]:
    search = await Search.open(path, store, SystemClock(), SearchSettings(**changed))
    try:
        yield search
    finally:
        await search.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(4):
        while not condition():  # noqa: ASYNC110 - of another thread's work
            await asyncio.sleep(0.001)


@asynccontextmanager
async def following(search: Search, is_busy: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(search.run(is_busy))
        try:
            yield
        finally:
            task.cancel()


def inspect(path: Path, *statements: str) -> list[tuple]:
    connection = sqlite3.connect(path, isolation_level=None)
    rows = [connection.execute(statement).fetchall() for statement in statements][-1]
    connection.close()
    return rows


# ---------------------------------------------------------------- what is found


@pytest.mark.spec("FO-02")
@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, max_size=40), st.data())
async def test_search_finds_what_a_scan_finds(steps: list[tuple], data: st.DataObject):
    """FO-02: whatever was sent, edited and recalled, and however far the index has come."""
    store = FakeStore()
    with tempfile.TemporaryDirectory() as folder:
        async with searching(Path(folder, "search.db"), store, page_max=3, tail_max=1_000) as search:
            for what, (cid, seq), word, body in [*steps, ("find", (1, 1), "ab", b"")]:
                if what == "index":
                    await search._step()
                elif what == "find":
                    await check(store, search, cid, word, data)
                elif what == "send":
                    store.add(Form.MESSAGE, cid, kind=word, body=body)
                elif what == "event":
                    store.add(Form.EVENT, cid, kind="group", body=body)
                else:
                    store.add(Form.EDIT if what == "edit" else Form.RECALL, cid, kind=what, ref=seq, body=body)


async def check(store: FakeStore, search: Search, cid: int, query: str, data: st.DataObject) -> None:
    first_seq, last_seq, before = (data.draw(st.integers(low, 8)) for low in (1, 0, 0))
    limit = data.draw(st.integers(1, 5))
    try:
        end_seq = min(last_seq + 1 if last_seq else SEQ_END, before or SEQ_END)
        expected = store.scan(cid, query, first_seq=first_seq, end_seq=end_seq)[:limit]
    except BadRequest:
        with pytest.raises(BadRequest):
            await search.find(cid, query, limit=limit)
        return
    found = await search.find(cid, query, first_seq=first_seq, last_seq=last_seq, before=before, limit=limit)
    assert found == expected


async def test_pages_of_a_search_have_everything_once(store: FakeStore, path: Path):
    """`before` the last one of a page is where the next page begins, also when that one was recalled since."""
    for i in range(50):
        store.send(f"word {i}", cid=1 + (i % 5 == 0))
    async with searching(path, store) as search:
        await search._step()
        found: list[int] = []
        while page := await search.find(1, "word", before=found[-1] if found else 0, limit=3):
            found += page
            store.recall(page[-1])
            await search._step()
        assert found == list(range(40, 0, -1))
        recalled = {*found[2::3], 1}
        assert await search.find(1, "word", limit=50) == [seq for seq in found if seq not in recalled]


async def test_a_page_is_full_although_its_newest_were_just_recalled(store: FakeStore, path: Path):
    """What the tail takes away is made up for by older ones."""
    for i in range(6):
        store.send(f"word {i}")
    async with searching(path, store) as search:
        await search._step()
        store.recall(6)
        store.edit(5, "other")
        assert await search.find(1, "word", limit=2) == [4, 3]


async def test_conversations_whose_numbers_begin_alike_are_apart(store: FakeStore, path: Path):
    """0x1, 0x10 and 0x1f: a number ends where the term begins."""
    for cid in (0x1, 0x10, 0x1F, 0xF):
        store.send("fox f 1", cid=cid)
    async with searching(path, store) as search:
        await search._step()
        for cid in (0x1, 0x10, 0x1F, 0xF):
            assert await search.find(cid, "f*", limit=9) == [1]
        assert await search.find(0xFF, "f*", limit=9) == []
        assert await search.find(2**70, "fox", last_seq=2**70, before=2**70, limit=9) == []


async def test_a_recalled_text_leaves_the_index(store: FakeStore, path: Path):
    """Neither its text nor its words are found in the tables."""
    store.send("keep")
    store.recall(store.send("secret"))
    store.edit(store.send("draft"), "final")
    async with searching(path, store, page_max=2) as search:
        while await search._step():
            pass
    assert inspect(path, "SELECT text FROM doc ORDER BY n") == [(" keep ",), ("",), (" final ",)]
    words = inspect(path, "CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, term, row)", "SELECT term FROM words")
    assert {word for (word,) in words} == {"1xkeep", "1xfinal", "1y1", "1y2", "1y4"}


async def test_an_edit_of_what_the_log_lacks_is_left_out(store: FakeStore, path: Path):
    """In the index as in the tail."""
    store.edit(7, "ghost")
    async with searching(path, store) as search:
        assert await search.find(1, "ghost", limit=9) == []
        await search._step()
        assert await search.find(1, "ghost", limit=9) == []


async def test_whatever_is_acknowledged_is_found_while_the_index_follows(store: FakeStore, path: Path):
    """The follower's thread feeds while searches read; each change is seen by the next search."""
    async with searching(path, store, page_max=3, idle_ms=1) as search, following(search):
        for i in range(60):
            seq = store.send(f"word {i}")
            assert (await search.find(1, "word", limit=1)) == [seq]
            if i % 3 == 1:
                store.edit(seq, "other")
            elif i % 3 == 2:
                store.recall(seq)
            assert await search.find(1, "word", limit=99) == store.scan(1, "word")
        await until(lambda: search._through == store.entries[-1].n)
        assert await search.find(1, "other", limit=99) == store.scan(1, "other")


# ---------------------------------------------------------------- files


async def test_an_index_goes_on_where_it_was(store: FakeStore, path: Path):
    """Nothing is read twice after a restart."""
    for i in range(5):
        store.send(f"word {i}")
    async with searching(path, store) as search:
        await search._step()
    store.send("word again")
    async with searching(path, store) as search:
        assert search.lag == 0
        assert await search.find(1, "word", limit=2) == [6, 5]
        assert search.lag == 2
        store.calls.clear()
        await search._step()
        assert (store.calls, search.lag) == ([(9, 250)], 0)


def spoil_nothing(_path: Path, store: FakeStore) -> None:
    store.epoch = "e2"


def spoil_file(path: Path, _store: FakeStore) -> None:
    path.write_bytes(b"no database" * 1_000)


def spoil_schema(path: Path, _store: FakeStore) -> None:
    inspect(path, "DROP TABLE meta")


def spoil_version(path: Path, _store: FakeStore) -> None:
    inspect(path, "UPDATE meta SET value = '0 1.1 e1' WHERE name = 'made_of'")


def spoil_end_of_log(_path: Path, store: FakeStore) -> None:
    del store.entries[-1]


def spoil_log(_path: Path, store: FakeStore) -> None:
    store.entries[-1] = msgspec.structs.replace(store.entries[-1], mid=77)


def delete(path: Path, _store: FakeStore) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "spoil", [spoil_nothing, spoil_file, spoil_schema, spoil_version, spoil_end_of_log, spoil_log, delete]
)
async def test_an_index_of_anything_else_is_made_anew(
    store: FakeStore, path: Path, spoil: Callable[[Path, FakeStore], None]
):
    """Another store's, another release's, that of a log that was put back, or no index at all."""
    for i in range(3):
        store.send(f"word {i}")
    async with searching(path, store) as search:
        await search._step()
    spoil(path, store)
    async with searching(path, store) as search:
        assert search._through == 0
        await search._step()
        assert await search.find(1, "word", limit=9) == store.scan(1, "word")


async def test_a_page_is_taken_in_whole_or_not_at_all(store: FakeStore, path: Path):
    """A failure in its middle leaves the index as it was; then the page comes again."""
    store.send("one")
    index = SearchIndex.open(path, store.epoch)
    index.feed(store.entries)
    inspect(path, "CREATE TRIGGER full BEFORE INSERT ON doc WHEN NEW.seq = 3 BEGIN SELECT RAISE(ABORT, 'full'); END")
    for i in range(3):
        store.send(f"more {i}")
    store.edit(1, "first")
    with pytest.raises(sqlite3.Error, match="full"):
        index.feed(store.entries)
    assert index.position == Position(1, "1")
    assert index.search(1, parse("one"), first_seq=1, end_seq=SEQ_END, limit=9).seqs == [1]
    inspect(path, "DROP TRIGGER full")
    index.feed(store.entries)
    index.feed(store.entries)
    assert index.position == Position(9, "9")
    assert index.search(1, parse("more"), first_seq=1, end_seq=SEQ_END, limit=9).seqs == [4, 3, 2]
    index.close()


async def test_a_folder_that_is_not_there_is_an_error_of_the_store(store: FakeStore, tmp_path: Path):
    """And no thread is left."""
    with pytest.raises(StoreUnavailable, match="unable to open"):
        await Search.open(tmp_path / "none" / "search.db", store, SystemClock())


# ---------------------------------------------------------------- failures and bounds


async def test_an_index_that_is_far_behind_is_not_asked(store: FakeStore, path: Path):
    """It is being built; the answer says when to come back."""
    for i in range(20):
        store.send(f"word {i}")
    async with searching(path, store, page_max=4, tail_max=12) as search:
        with pytest.raises(NotReady) as caught:
            await search.find(1, "word", limit=1)
        assert caught.value.detail["retry_after_ms"] > 0
        for _ in range(3):
            await search._step()
        assert await search.find(1, "word", limit=1) == [20]


async def test_searches_are_bounded_in_number_and_time(store: FakeStore, path: Path):
    """One more than may wait is refused; one that waits too long ends."""
    async with searching(path, store, waiting_max=1, deadline_ms=50) as search:
        store.gate.clear()

        async def is_late() -> bool:
            with pytest.raises(DeadlineExceeded):
                await search.find(1, "word", limit=1)
            return True

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(is_late())
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await search.find(1, "word", limit=1)
        assert waiting.result()
        with pytest.raises(DeadlineExceeded):
            await search.find(1, "word", limit=1)  # who ended waits no more
    store.gate.set()
    async with searching(path, store, waiting_max=1) as search:
        assert await search.find(1, "word", limit=1) == []


class HastyClock(SystemClock):
    """Every look is ten seconds after the one before."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> Instant:
        self.now += 10_000
        return Instant(self.now)


async def test_a_search_that_takes_too_long_gives_its_thread_back(store: FakeStore, path: Path):
    """SQLite itself stops, and the next search is not harmed."""
    index = SearchIndex.open(path, store.epoch)
    store.entries = [
        Message(2 * i + 1, 1, i + 1, 0, 0, "", "", "", "", 0, "text", 0, b'{"text":"b a"}', b"", Timestamp(1))
        for i in range(3_000)
    ]
    index.feed(store.entries)
    index.close()
    search = await Search.open(path, store, HastyClock())
    with pytest.raises(DeadlineExceeded):
        await search.find(1, '"a b"', limit=1)
    assert await search.find(1, '"b a"', limit=1) == [3_000]
    await search.close()


async def test_a_broken_index_is_an_error_of_the_store(store: FakeStore, path: Path):
    """With SQLite's reason; and so is a closed one."""
    async with searching(path, store) as search:
        inspect(path, "DROP TABLE doc")
        with pytest.raises(StoreUnavailable, match="no such table"):
            await search.find(1, "word", limit=1)
    await search.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await search.find(1, "word", limit=1)
    with pytest.raises(StoreUnavailable, match="closed"):
        await search._step()


# ---------------------------------------------------------------- the follower


async def test_the_follower_reads_the_log_in_pages_and_goes_on_after_failures(store: FakeStore, path: Path):
    """Never more than a page at once; a failure is tried again later."""
    for i in range(10):
        store.send(f"word {i}")
    async with searching(path, store, page_max=4, idle_ms=1, retry_ms=1) as search, following(search):
        await until(lambda: search._through == store.entries[-1].n)
        assert {limit for _, limit in store.calls} == {4}
        store.failure = StoreUnavailable("gone")
        calls = len(store.calls)
        await until(lambda: len(store.calls) > calls + 2)
        store.failure = None
        store.send("word again")
        await until(lambda: search._through == store.entries[-1].n)
        assert search.lag == 0


async def test_the_follower_waits_while_the_machine_is_busy_unless_it_falls_far_behind(store: FakeStore, path: Path):
    """It only looks how far behind it is; half of what searches may read is too far."""
    clock = SimClock()
    busy = SearchSettings(page_max=4, tail_max=16, retry_ms=1_000, idle_ms=100)
    search = await Search.open(path, store, clock, busy)
    store.send("word")
    async with following(search, lambda: True):
        await until(lambda: search.lag == 1)
        assert search._through == 0
        for i in range(3):
            store.send(f"word {i}")
        clock.advance(1_000)
        await until(lambda: search.lag == 7)
        assert search._through == 0
        store.send("too much")
        calls = len(store.calls)
        await until(lambda: clock._sleepers != [])
        clock.advance(1_000)
        await until(lambda: len(store.calls) > calls)
        await until(lambda: clock._sleepers != [])
        clock.advance(1_000)
        await until(lambda: search._through == store.entries[3].n)
    await search.close()
