"""A registry used over a peer stream, where the two part: servers that die, stall, start over or are asked too much.

What holds while nothing breaks is in the contract suite.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from base.clock import SystemClock
from base.core.registry import Entry, KeyChange
from base.errors import CasConflict, LimitExceeded, SessionLost, StoreError, StoreUnavailable
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import PeerServer
from base.peer.server import PEER_PATH
from base.registry import Registry, ServiceInstance, View, follow
from base.registry.memory import MemoryRegistry
from base.registry.remote import CALL_DEADLINE_MS, WAITING_MAX, RegistryServer, RemoteRegistry
from base.registry.sqlite import SqliteRegistry
from base.trust import Trust

CLOCK = SystemClock()


class Process:
    """A process that serves a registry, which can be ended and started again at the same address."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.port = 0
        self.url = ""
        self.peers = PeerServer(trust=Trust.of_key("key"))
        self._http: HttpServer | None = None

    async def start(self, registry: Registry | None = None) -> None:
        self.registry = registry or self.registry
        self.peers = PeerServer(trust=Trust.of_key("key"))
        RegistryServer(self.registry).serve(self.peers)
        self._http = HttpServer("registry-1", Metrics("registry-1"), statistics=dict)
        self._http.app.router.add_get(PEER_PATH, self.peers.handle)
        self.url = await self._http.listen("127.0.0.1", self.port)
        self.port = int(self.url.rpartition(":")[2])

    async def end(self) -> None:
        if self._http is not None:
            await self.peers.close()
            await self._http.close()
            self._http = None

    async def until_waiting(self, readers: int) -> None:
        """Return when so many requests are being served."""
        await until(lambda: self.statistics().get("inflight", 0) == readers)

    def statistics(self) -> dict[str, int]:
        found = self.peers.statistics().get("tester", {})
        assert isinstance(found, dict)
        return found


class Waits(MemoryRegistry):
    """Counts the reads that wait in it."""

    def __init__(self) -> None:
        super().__init__(CLOCK)
        self.now = self.most = self.looks = 0

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        if wait_ms == 0:
            self.looks += 1
            return await super().scan(prefix, after=after)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().scan(prefix, after=after, wait_ms=wait_ms)
        finally:
            self.now -= 1

    async def until_waiting(self, readers: int) -> None:
        await until(lambda: self.now == readers)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def using(
    process: Process, *, call_deadline_ms: int = CALL_DEADLINE_MS, waiting_max: int = WAITING_MAX, poll_ms: int = 20
) -> AsyncIterator[RemoteRegistry]:
    """Start the process and use its registry from another one."""
    await process.start()
    used = RemoteRegistry(
        process.url,
        node="tester",
        trust=Trust.of_key("key"),
        call_deadline_ms=call_deadline_ms,
        waiting_max=waiting_max,
        poll_ms=poll_ms,
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(used.run())
        try:
            yield used
        finally:
            running.cancel()
            await used.close()
            await process.end()


class Stalled(MemoryRegistry):
    """Does what it is asked and does not say so."""

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        await super().put(key, value, expect=expect)
        await asyncio.Event().wait()
        raise AssertionError

    async def release(self, key: str, session: str) -> bool:
        await super().release(key, session)
        await asyncio.Event().wait()
        raise AssertionError


class SlowDisk(SqliteRegistry):
    """Writes when it is let to."""

    def __init__(self, path: Path) -> None:
        super().__init__(CLOCK, path)
        self.writing = threading.Event()
        self.released = threading.Event()

    def _write(self, change: KeyChange) -> None:
        self.writing.set()
        assert self.released.wait(5)
        super()._write(change)


async def test_errors_arrive_with_their_fields() -> None:
    """A conflict tells the index, a lost session which one, a limit what."""
    async with using(Process(MemoryRegistry(CLOCK))) as used:
        index = await used.put("k", b"")
        with pytest.raises(CasConflict) as conflict:
            await used.put("k", b"", expect=0)
        assert conflict.value.detail == {"index": index}
        with pytest.raises(SessionLost) as lost:
            await used.renew_session("nothing")
        assert lost.value.detail == {"session": "nothing"}
        with pytest.raises(SessionLost) as lapsed:
            await used.heartbeat("access-1", 1)
        assert lapsed.value.detail == {"instance": "access-1"}
        with pytest.raises(LimitExceeded) as over:
            await used.put("k", bytes(9_000_000))
        assert over.value.detail == {"what": "value_bytes"}


async def test_a_registration_arrives_whole() -> None:
    """All fields of an instance and of an entry."""
    instance = ServiceInstance(
        id="a-1", service="a", url="http://a", incarnation=7, meta={"region": "x"}, note=bytes(range(256))
    )
    async with using(Process(MemoryRegistry(CLOCK))) as used:
        await used.register(instance, ttl_ms=3_000)
        assert (await used.services("a")).items == (instance,)
        session = await used.open_session("one", ttl_ms=3_000)
        token = await used.acquire("k", session, bytes(range(256)))
        assert token is not None
        assert await used.get("k") == Entry("k", bytes(range(256)), token, session)


async def until_written(used: RemoteRegistry) -> None:
    """Write, as soon as there is a server again."""
    while True:
        try:
            await used.put("k", b"")
        except StoreUnavailable:
            continue  # each try waits for a stream up to its deadline
        return


async def test_no_server_is_an_outage() -> None:
    """Reads, waits and writes alike, each within its deadline."""
    process = Process(MemoryRegistry(CLOCK))
    async with using(process, call_deadline_ms=500) as used, asyncio.timeout(15):
        await process.end()
        with pytest.raises(StoreUnavailable, match=r"registry\.get: "):
            await used.get("k")
        with pytest.raises(StoreUnavailable):
            await used.put("k", b"")
        with pytest.raises(StoreUnavailable):
            await used.scan("", after=0, wait_ms=30_000)
        await process.start()
        await until_written(used)


async def test_a_server_that_dies_in_the_middle_leaves_the_outcome_open() -> None:
    """The write that was under way was done, and nobody said so; the wait ends at once, not at its deadline."""
    process = Process(Stalled(CLOCK))
    async with using(process) as used, asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(outcome(used.put("k", b"1")))
        waiting = tasks.create_task(outcome(used.services("access", after=0, wait_ms=30_000)))
        await process.until_waiting(2)
        await process.end()
        assert await writing == "StoreUnavailable"
        assert await waiting == "StoreUnavailable"
        await process.start()
        entry = await used.get("k")
        assert entry is not None
        assert entry.value == b"1"


async def outcome(work: object) -> str:
    """Await it; return the name of its failure, or nothing."""
    try:
        await work  # type: ignore[misc]
    except StoreError as error:
        return type(error).__name__
    return ""


async def test_a_server_that_does_not_answer_is_an_outage() -> None:
    """The deadline ends it; other calls go on over the same stream."""
    async with using(Process(Stalled(CLOCK)), call_deadline_ms=500) as used:
        await used.open_session("first", ttl_ms=3_000)
        with pytest.raises(StoreUnavailable, match=r"no reply in time|took over 500 ms"):
            await used.release("k", "nothing")
        assert await used.get("k") is None


async def test_a_wait_that_sees_nothing_new_is_no_failure() -> None:
    """Its deadline is longer than its wait."""
    async with using(Process(MemoryRegistry(CLOCK))) as used:
        index = await used.put("k", b"")
        view = await used.scan("", after=index, wait_ms=60)
        assert (view.index, len(view.items)) == (index, 1)


async def test_followers_ride_out_a_restart() -> None:
    """The same registry behind a new server: nothing is missed, whatever changed meanwhile."""
    process = Process(MemoryRegistry(CLOCK))
    outages: list[StoreError] = []
    async with using(process) as used, asyncio.timeout(10):
        await used.put("a/1", b"")
        views = follow(used.scan, "a/", CLOCK, on_outage=outages.append)
        assert len((await anext(views)).items) == 1
        following = asyncio.ensure_future(anext(views))
        await process.until_waiting(1)
        await process.end()
        await process.registry.put("a/2", b"")
        await process.start()
        view = await following
        while len(view.items) != 2:
            view = await anext(views)
        assert outages
        await views.aclose()


@pytest.mark.parametrize("changes", [1, 3, 5])
async def test_a_registry_that_started_over_is_told_as_older(changes: int) -> None:
    """Also when it has come to the index that the reader knows, or beyond it, before the reader is back."""
    process = Process(MemoryRegistry(CLOCK))
    async with using(process) as used, asyncio.timeout(10):
        for _ in range(3):
            index = await used.put("a/old", b"")
        view = await used.scan("a/")
        assert view.index == index == 3
        await process.end()
        new = MemoryRegistry(CLOCK)
        for _ in range(changes):
            await new.put("a/new", b"")
        await process.start(new)
        again = await used.scan("a/", after=view.index, wait_ms=30_000)
        assert again.index < view.index
        assert again.seen == changes, "it is told as older, and is what it is"
        assert [entry.key for entry in again.items] == ["a/new"]
        now = await used.scan("a/", after=again.index, wait_ms=30)
        assert (now.index, now.items) == (changes, again.items)
        unchanged = await used.scan("a/", after=now.index, wait_ms=30)
        assert unchanged.index == now.index


async def test_many_waiting_readers_leave_room_for_writes() -> None:
    """Some wait at the server, the others look now and then; all see the change, and writes pass meanwhile."""
    registry = Waits()
    async with using(Process(registry), waiting_max=3) as used, asyncio.timeout(10):
        index = await used.put("a/1", b"")
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(until_newer(used, index)) for _ in range(10)]
            await registry.until_waiting(3)
            await until(lambda: registry.looks >= 20)
            newest = await used.put("a/2", b"")
            assert [await task for task in following] == [newest] * 10
        assert registry.most == 3


async def until_newer(used: RemoteRegistry, after: int) -> int:
    while True:
        view = await used.scan("a/", after=after, wait_ms=30_000)
        if view.index != after:
            return view.index


async def test_readers_that_left_count_until_the_server_knows() -> None:
    """Whoever reads, leaves and reads again does not pile up waits at the server."""
    registry = Waits()
    process = Process(registry)
    async with using(process, waiting_max=2) as used, asyncio.timeout(10):
        index = await used.put("a/1", b"")
        for left in range(1, 7):
            reading = asyncio.ensure_future(until_newer(used, index))
            await registry.until_waiting(min(left, 2))
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert (registry.now, registry.most) == (2, 2)
        await process.end()
        await process.start()
        assert (await used.scan("a/", after=-1, wait_ms=100)).index == index


async def test_a_write_is_whole_though_its_caller_dies(tmp_path: Path) -> None:
    """The stream ends while the disk writes: what is stored then is also what is seen, and the next write goes on."""
    disk = SlowDisk(tmp_path / "registry.db")
    process = Process(disk)
    async with using(process) as used, asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(outcome(used.put("k", b"1", expect=0)))
        await asyncio.to_thread(disk.writing.wait, 5)
        stream = process.peers.stream_of("tester")
        assert stream is not None
        closing = tasks.create_task(stream.close())
        assert await writing == "StoreUnavailable"
        disk.released.set()
        await closing
        entry = await used.get("k")
        assert entry is not None
        assert entry.value == b"1"
        assert await used.put("k", b"2", expect=entry.index) > entry.index
    await disk.close()
    after = SqliteRegistry(CLOCK, tmp_path / "registry.db")
    kept = await after.get("k")
    assert kept is not None
    assert kept.value == b"2"
    await after.close()


async def test_a_cancelled_write_ends_as_cancelled(tmp_path: Path) -> None:
    """Not before it is known what became of it."""
    disk = SlowDisk(tmp_path / "registry.db")
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(disk.put("k", b"1"))
        await asyncio.to_thread(disk.writing.wait, 5)
        writing.cancel()
        await asyncio.sleep(0.01)
        assert not writing.done()
        disk.released.set()
    assert writing.cancelled()
    assert await disk.get("k") is not None
    await disk.close()
