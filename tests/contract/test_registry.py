"""One suite for the registry port, run on every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from base.clock import Clock, SimClock, SystemClock
from base.errors import CasConflict, LimitExceeded, SessionLost
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import PeerServer
from base.peer.server import PEER_PATH
from base.registry import Registry, ServiceInstance, follow
from base.registry.memory import VALUE_BYTES_MAX, MemoryRegistry
from base.registry.remote import RegistryServer, RemoteRegistry
from base.registry.sqlite import SqliteRegistry
from base.trust import Trust
from roadstead.consul import ConsulAgent
from tests.contract.consul_agent import consul, registry_at

__all__ = ["consul"]

QUICKER = 3
"""Where time is real, TTLs are shorter by this; what still must be there has a third of a second for it."""

SOON_S = 10.0
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Time:
    """How an adapter's time passes: by our word, or by itself."""

    clock: Clock

    def ms(self, ms: int) -> int:
        """A TTL."""
        return ms if isinstance(self.clock, SimClock) else ms // QUICKER

    async def passes(self, ms: int) -> None:
        if isinstance(self.clock, SimClock):
            self.clock.advance(ms)
        else:
            await asyncio.sleep(self.ms(ms) / 1000)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Return when it holds: at once where time passes by our word, else as soon as a busy machine gets to it."""
        if isinstance(self.clock, SimClock):
            assert await holds()
            return
        async with asyncio.timeout(SOON_S):
            while not await holds():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(LOOK_S)


@pytest.fixture(params=["memory", "sqlite", "remote", pytest.param("consul", marks=pytest.mark.process)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> Clock:
    return SystemClock() if kind == "consul" else SimClock()


@pytest.fixture
def time(clock: Clock) -> Time:
    return Time(clock)


@asynccontextmanager
async def shared(local: Registry) -> AsyncIterator[RemoteRegistry]:
    """A registry as another process uses it: over a peer stream on loopback."""
    peers = PeerServer(trust=Trust.of_key("key"))
    RegistryServer(local).serve(peers)
    http = HttpServer("registry-1", Metrics("registry-1"), statistics=dict)
    http.app.router.add_get(PEER_PATH, peers.handle)
    remote = RemoteRegistry(await http.listen("127.0.0.1", 0), node="tester", trust=Trust.of_key("key"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(remote.run())
        try:
            yield remote
        finally:
            running.cancel()
            await remote.close()
    await peers.close()
    await http.close()


@pytest.fixture
async def registry(kind: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    if kind == "consul":
        agent: ConsulAgent = request.getfixturevalue("consul")
        async with registry_at(agent) as in_consul:
            yield in_consul
        return
    made = SqliteRegistry(clock, tmp_path / "registry.db") if kind == "sqlite" else MemoryRegistry(clock)
    if kind == "remote":
        async with shared(made) as remote:
            yield remote
    else:
        yield made
    await made.close()


def instance(node: str, *, incarnation: int = 1, service: str = "access") -> ServiceInstance:
    return ServiceInstance(id=node, service=service, url=f"http://{node}", incarnation=incarnation)


async def test_a_key_reads_as_it_was_written(registry: Registry) -> None:
    """Get returns the value and the index that put returned."""
    index = await registry.put("a/b", b"one")
    entry = await registry.get("a/b")
    assert entry is not None
    assert (entry.value, entry.index, entry.session) == (b"one", index, None)
    assert await registry.get("a/c") is None


async def test_compare_and_set_lets_exactly_one_writer_win(registry: Registry) -> None:
    """expect=0 creates, expect=index replaces, anything else conflicts and tells the current index."""
    first = await registry.put("k", b"1", expect=0)
    with pytest.raises(CasConflict) as caught:
        await registry.put("k", b"2", expect=0)
    assert caught.value.detail["index"] == first
    second = await registry.put("k", b"2", expect=first)
    assert second > first
    with pytest.raises(CasConflict):
        await registry.delete("k", expect=first)
    assert await registry.delete("k", expect=second) is True
    assert await registry.delete("k") is False


async def test_concurrent_creations_give_one_winner(registry: Registry) -> None:
    """Twenty writers with expect=0: one wins, nineteen conflict."""

    async def create(value: int) -> bool:
        try:
            await registry.put("k", str(value).encode(), expect=0)
        except CasConflict:
            return False
        return True

    async with asyncio.TaskGroup() as tasks:
        tries = [tasks.create_task(create(value)) for value in range(20)]
    assert sum(task.result() for task in tries) == 1


async def test_a_scan_sees_the_prefix_in_order_and_its_deletions(registry: Registry) -> None:
    """The index of a prefix moves on a deletion under it, and not on a change elsewhere."""
    await registry.put("a/2", b"")
    await registry.put("a/1", b"")
    view = await registry.scan("a/")
    assert [entry.key for entry in view.items] == ["a/1", "a/2"]
    await registry.put("b/1", b"")
    assert (await registry.scan("a/")).index == view.index
    await registry.delete("a/1")
    assert (await registry.scan("a/")).index > view.index


async def test_a_blocking_scan_returns_when_something_changes(registry: Registry) -> None:
    """A waiting reader is woken by the write, long before its wait is over."""
    view = await registry.scan("a/")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(registry.scan("a/", after=view.index, wait_ms=60_000))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await registry.put("a/1", b"x")
    assert [entry.value for entry in waiting.result().items] == [b"x"]


async def test_follow_yields_each_state_once(registry: Registry, clock: Clock) -> None:
    """The first view comes at once, the next after a change."""
    views = follow(registry.scan, "a/", clock)
    assert (await anext(views)).items == ()
    await registry.put("a/1", b"x")
    assert [entry.key for entry in (await anext(views)).items] == ["a/1"]
    await views.aclose()


async def test_a_service_lives_as_long_as_its_heartbeats(registry: Registry, time: Time) -> None:
    """Without a heartbeat for its TTL an instance is gone, and its next heartbeat is told so."""
    await registry.register(instance("access-1"), ttl_ms=time.ms(3_000))
    await time.passes(2_000)
    await registry.heartbeat("access-1", 1, b"note")
    await time.passes(2_000)
    (found,) = (await registry.services("access")).items
    assert (found.id, found.note) == ("access-1", b"note")
    await time.passes(2_000)

    async def gone() -> bool:
        return (await registry.services("access")).items == ()

    await time.until(gone)
    with pytest.raises(SessionLost):
        await registry.heartbeat("access-1", 1)


async def test_services_are_told_apart_and_leave(registry: Registry) -> None:
    """services() shows one service's instances by id; deregistering twice is no error."""
    for node in ("access-2", "access-1"):
        await registry.register(instance(node), ttl_ms=3_000)
    await registry.register(instance("im-1", service="im"), ttl_ms=3_000)
    assert [found.id for found in (await registry.services("access")).items] == ["access-1", "access-2"]
    await registry.deregister("access-1", 1)
    await registry.deregister("access-1", 1)
    assert [found.id for found in (await registry.services("access")).items] == ["access-2"]


async def test_a_newer_life_replaces_an_older_one_never_the_reverse(registry: Registry) -> None:
    """An older incarnation that registers late is told to stop."""
    await registry.register(instance("access-1", incarnation=1), ttl_ms=3_000)
    await registry.register(instance("access-1", incarnation=2), ttl_ms=3_000)
    with pytest.raises(SessionLost):
        await registry.register(instance("access-1", incarnation=1), ttl_ms=3_000)
    with pytest.raises(SessionLost):
        await registry.heartbeat("access-1", 1, b"from the past")
    await registry.deregister("access-1", 1)
    (found,) = (await registry.services("access")).items
    assert (found.incarnation, found.note) == (2, b"")


async def test_a_lock_has_one_holder_and_growing_tokens(registry: Registry) -> None:
    """Another session gets None until release; each acquisition has a greater fencing token."""
    one = await registry.open_session("one", ttl_ms=10_000)
    two = await registry.open_session("two", ttl_ms=10_000)
    first = await registry.acquire("lock", one, b"one")
    assert first is not None
    assert await registry.acquire("lock", two, b"two") is None
    assert await registry.release("lock", two) is False
    assert await registry.release("lock", one) is True
    second = await registry.acquire("lock", two, b"two")
    assert second is not None
    assert second > first


async def test_a_session_that_is_not_renewed_frees_its_locks(registry: Registry, time: Time) -> None:
    """After the TTL its old holder is told so, and at the latest after two TTLs somebody else can take the lock."""
    ttl_ms = time.ms(10_000)
    one = await registry.open_session("one", ttl_ms=ttl_ms)
    await registry.acquire("lock", one, b"one")
    await time.passes(6_000)
    await registry.renew_session(one)
    await time.passes(6_000)
    two = await registry.open_session("two", ttl_ms=ttl_ms)
    assert await registry.acquire("lock", two, b"two") is None
    await time.passes(6_000)

    async def freed() -> bool:
        await registry.renew_session(two)
        entry = await registry.get("lock")
        assert entry is not None
        assert entry.value == b"one"
        return entry.session is None

    await time.until(freed)
    with pytest.raises(SessionLost):
        await registry.acquire("lock", one, b"")
    with pytest.raises(SessionLost):
        await registry.renew_session(one)
    await registry.renew_session(two)
    await time.passes(8_000)
    await registry.renew_session(two)
    assert await registry.acquire("lock", two, b"two") is not None


async def test_the_holder_of_a_lock_may_take_it_again(registry: Registry) -> None:
    """Each time with a new value and a greater token, even if the value is the old one; an end frees it with it."""
    one = await registry.open_session("one", ttl_ms=10_000)
    tokens = [await registry.acquire("lock", one, value) for value in (b"1", b"2", b"2")]
    assert all(token is not None for token in tokens)
    assert tokens == sorted(set(tokens), key=lambda token: token or 0)
    entry = await registry.get("lock")
    assert entry is not None
    assert (entry.value, entry.session, entry.index) == (b"2", one, tokens[-1])
    assert await registry.release("lock", one) is True
    assert await registry.release("lock", one) is False
    entry = await registry.get("lock")
    assert entry is not None
    assert (entry.value, entry.session) == (b"2", None)


async def test_a_value_may_be_as_long_as_the_port_says(registry: Registry) -> None:
    """512 kB are created, replaced and refused like any others."""
    value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
    index = await registry.put("k", value, expect=0)
    entry = await registry.get("k")
    assert entry is not None
    assert (entry.value == value, entry.index) == (True, index)
    with pytest.raises(CasConflict) as caught:
        await registry.put("k", value, expect=0)
    assert caught.value.detail["index"] == index
    assert await registry.put("k", value, expect=index) > index


async def test_closing_a_session_frees_its_locks_at_once(registry: Registry) -> None:
    """close_session needs no waiting and may be called twice."""
    one = await registry.open_session("one", ttl_ms=10_000)
    await registry.acquire("lock", one, b"")
    await registry.close_session(one)
    await registry.close_session(one)
    entry = await registry.get("lock")
    assert entry is not None
    assert entry.session is None


async def test_oversized_values_and_notes_are_refused(registry: Registry) -> None:
    """The bounds are Consul's, so that what works in one process works in a cluster."""
    with pytest.raises(LimitExceeded):
        await registry.put("k", bytes(512 * 1024 + 1))
    await registry.register(instance("access-1"), ttl_ms=3_000)
    with pytest.raises(LimitExceeded):
        await registry.heartbeat("access-1", 1, bytes(4 * 1024 + 1))


async def test_sqlite_keeps_keys_and_tokens_over_a_restart(tmp_path: Path) -> None:
    """Values stay, locks are free, and the next fencing token is greater than any before."""
    clock = SimClock()
    path = tmp_path / "registry.db"
    before = SqliteRegistry(clock, path)
    await before.put("k", b"kept")
    token = await before.acquire("lock", await before.open_session("one", ttl_ms=10_000), b"one")
    await before.put("gone", b"")
    newest = (await before.scan("")).index
    await before.delete("lock")
    await before.delete("gone")
    await before.close()
    after = SqliteRegistry(clock, path)
    entry = await after.get("k")
    assert entry is not None
    assert entry.value == b"kept"
    assert await after.get("gone") is None
    again = await after.acquire("lock", await after.open_session("two", ttl_ms=10_000), b"two")
    assert token is not None
    assert again is not None
    assert again > newest > token
    await after.close()
