"""A registry that started over: what was ordered stays in force, and comes back; what was deleted does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from base.clock import SystemClock
from base.core.registry import Entry
from base.errors import StoreUnavailable
from base.ids import Incarnation, NodeId
from base.registry import View, leadership
from base.registry.leadership import Leadership
from base.registry.memory import MemoryRegistry
from scheduler import orders as orders_module
from scheduler.core.moving import MoveRequest
from scheduler.core.node import AccessNode
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_machine import RolloutState, start
from scheduler.core.rollout_record import Change, RolloutRecord, changed, created
from scheduler.movers import LOCK_KEY
from scheduler.orders import CORDONS, LISTS, LOST, MOVES, POLICY, PREFIX, REBALANCE, ROLLOUTS, Orders
from scheduler.rollouts import Rollouts
from tests.scheduler.admin_site import ROLLOUT
from tests.scheduler.moving_nodes import FakeFleet

FAST = ROLLOUTS + "fast"
SETTLE_S = 5.0


class Restartable(MemoryRegistry):
    """A registry whose process may end, seen from another one: its followers are told of it as a remote one tells."""

    def __init__(self, clock: SystemClock) -> None:
        super().__init__(clock, index=10_000)
        self._made = clock
        self._is_anew = False
        self.is_away = False

    def start_over(self, *kept: Entry, index: int = 0) -> None:
        """Begin another life with these entries."""
        self.__dict__.update(MemoryRegistry(self._made, entries=list(kept), index=index).__dict__)
        self._is_anew = True

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        while not self._is_anew:
            view = await super().scan(prefix, after=after, wait_ms=min(wait_ms, 5))
            if view.index != after:
                return view
        self._is_anew = False
        view = await super().scan(prefix)
        return View(min(view.index, after - 1), view.items, view.index)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().put(key, value, expect=expect)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - it follows the registry
            await asyncio.sleep(0.002)


def new_record() -> RolloutRecord:
    rollout = parse_rollout(ROLLOUT)
    assert isinstance(rollout, Rollout)
    return created("fast", ROLLOUT, start(rollout, 1_000), who="ann", now=1_000)


def failed(record: RolloutRecord) -> RolloutRecord:
    state = msgspec.structs.replace(record.state, phase="failed", percent=0)
    return changed(record, state, who="analysis", action="failed", now=2_000)


NODE = AccessNode(id=NodeId("access-1"), url="", version="2.0.0", capacity=10, incarnation=Incarnation(1))


class Ordered:
    """A registry with orders, and who follows it."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.registry = Restartable(clock)
        self.orders = Orders(self.registry, clock, node="scheduler-1")
        self.rollouts = Rollouts(self.registry, clock, self.orders, node="scheduler-1", nodes=lambda: [NODE])

    async def put(self, key: str, value: bytes) -> None:
        await self.registry.put(key, value)

    async def value(self, key: str) -> bytes | None:
        entry = await self.registry.get(key)
        return entry.value if entry is not None else None

    def state(self) -> RolloutState:
        return self.orders.rollouts["fast"].record.state


@asynccontextmanager
async def ordered() -> AsyncIterator[Ordered]:
    made = Ordered()
    await made.put(CORDONS + "access-1", b'{"at":1,"who":"ann"}')
    await made.put(LISTS + "staff", b"ann\nbob")
    await made.put(POLICY, b'{"revision":3,"document":""}')
    await made.put(REBALANCE, b'{"request":{"id":"b1","kind":"rebalance"},"at":1,"who":"ann"}')
    await made.put(PREFIX + "judge", b"scheduler-1")
    await made.put(FAST, msgspec.json.encode(failed(new_record())))
    following = asyncio.create_task(made.orders.run())
    await made.orders.is_known.wait()
    yield made
    assert not following.done()
    following.cancel()
    await asyncio.wait([following])


async def test_a_registry_that_lost_all_orders_gets_them_back() -> None:
    """A canary that failed stays one meanwhile: without its rollout its nodes would be anybody's."""
    async with ordered() as made:
        before = {entry.key: entry.value for entry in (await made.registry.scan(PREFIX)).items}
        phases = []
        made.orders.on_change(lambda: phases.append(made.state().phase))
        made.registry.start_over(Entry(PREFIX + "judge", b"scheduler-2", 3), Entry(MOVES, b"{}", 4))
        await until(lambda: bool(phases))
        await until(lambda: not made.orders.bad.keys() - {MOVES})
        assert set(phases) == {"failed"}
        after = {entry.key: entry.value for entry in (await made.registry.scan(PREFIX)).items}
        assert after == before | {PREFIX + "judge": b"scheduler-2", MOVES: b"{}"}
        assert made.orders.lists == {"staff": {"ann", "bob"}}
        assert made.orders.cordons.keys() == {"access-1"}
        assert made.orders.policy_record.revision == 3
        assert made.orders.rebalance is not None
        entry = await made.registry.get(FAST)
        assert entry is not None
        assert made.orders.rollouts["fast"].index == entry.index


async def test_what_was_deleted_is_not_brought_back() -> None:
    """A registry that kept its data started over without what was deleted just before."""
    async with ordered() as made:
        await made.put(LISTS + "staff", b"ann")
        await until(lambda: made.orders.lists == {"staff": {"ann"}})
        kept = await made.registry.get(LISTS + "staff")
        assert kept is not None
        made.registry.start_over(kept)
        await until(lambda: not made.orders.rollouts)
        await asyncio.sleep(0.02)
        assert await made.value(FAST) is None
        assert await made.value(CORDONS + "access-1") is None
        assert not made.orders.bad


async def test_the_only_order_that_was_deleted_is_not_brought_back() -> None:
    """A registry may look as if it had started over where only an answer was lost: a lock that is held shows it."""
    lock = Entry(PREFIX + "judge", b"scheduler-1", 10_001, "a session")
    cordon = Entry(CORDONS + "access-1", b'{"at":1,"who":"ann"}', 10_002)
    for held, index, is_deleted in (
        (lock, 10_003, True),  # the registry went on
        (lock, 10_002, True),
        (lock, 10_001, False),  # the registry was put back
        (replace(lock, session="another"), 10_003, False),
    ):
        orders = Orders(MemoryRegistry(SystemClock()), SystemClock(), node="scheduler-1")
        orders.read((lock, cordon))
        orders.read((held,), anew_at=index)
        assert bool(orders.cordons) is not is_deleted
        assert bool(orders.bad) is not is_deleted


async def test_what_was_ordered_since_the_snapshot_stays_in_force() -> None:
    """A snapshot that is restored has the rest as it was, and a lock; twice in a row."""
    async with ordered() as made:
        view = await made.registry.scan(PREFIX)
        snapshot = [entry for entry in view.items if entry.key != FAST]
        await made.put(CORDONS + "access-1", b'{"at":2,"who":"bob"}')
        await made.put(CORDONS + "access-2", b'{"at":2,"who":"bob"}')
        await made.put(LISTS + "staff", b"bob")
        await made.put(POLICY, b'{"revision":4,"document":""}')
        await made.put(LISTS + "new", b"eve")
        await until(lambda: "new" in made.orders.lists)
        before = {entry.key: entry.value for entry in (await made.registry.scan(PREFIX)).items}
        for _ in range(2):
            seen: list[tuple[object, ...]] = []
            made.orders.on_change(
                lambda seen=seen: seen.append(
                    (
                        made.state().phase,
                        made.orders.cordons["access-1"].who,
                        made.orders.cordons.keys() == {"access-1", "access-2"},
                        made.orders.lists == {"staff": {"bob"}, "new": {"eve"}},
                        made.orders.policy_record.revision,
                    )
                )
            )
            made.registry.start_over(*snapshot)
            await until(lambda seen=seen: bool(seen))
            await until(lambda: not made.orders.bad)
            assert set(seen) == {("failed", "bob", True, True, 4)}
            assert {entry.key: entry.value for entry in (await made.registry.scan(PREFIX)).items} == before


@pytest.mark.parametrize("anew_at", [None, 10_009])
async def test_what_is_written_to_a_restored_snapshot_does_not_hide_what_is_gone(anew_at: int | None) -> None:
    """An entry that is there as it was before its last change shows that the registry was put back."""
    lock = Entry(PREFIX + "judge", b"scheduler-1", 10_001, "a session")
    was = Entry(FAST, msgspec.json.encode(new_record()), 10_002)
    became = Entry(FAST, msgspec.json.encode(failed(new_record())), 10_003)
    cordon = Entry(CORDONS + "access-1", b'{"at":1,"who":"ann"}', 10_004)
    orders = Orders(MemoryRegistry(SystemClock()), SystemClock(), node="scheduler-1")
    orders.read((cordon, lock, became))
    orders.read((lock, Entry(MOVES, b"{}", 10_009), was), anew_at=anew_at)
    assert orders.rollouts["fast"].record.state.phase == "failed"
    assert orders.cordons.keys() == {"access-1"}
    assert orders.bad.keys() == {FAST, cordon.key, MOVES}


@pytest.mark.parametrize("is_made_since", [False, True])
async def test_what_was_written_back_is_known_until_a_view_shows_it(*, is_made_since: bool) -> None:
    """The registry may be put back once more at once; also where another scheduler was faster."""
    lock = Entry(PREFIX + "judge", b"scheduler-1", 10_001, "a session")
    list_before, list_now = Entry(LISTS + "staff", b"ann", 10_000), Entry(LISTS + "staff", b"bob", 10_002)
    registry = MemoryRegistry(SystemClock(), entries=[lock, list_before], index=20_000)
    orders = Orders(registry, SystemClock(), node="scheduler-1")
    orders.read((list_now, lock))
    for _ in range(2):
        orders.read((lock,) if is_made_since else (list_before, lock), anew_at=10_001)
        assert orders.lists == {"staff": {"bob"}}
        await orders._restore()


@pytest.mark.parametrize(("who", "is_old"), [("ann", True), ("eve", False)])
async def test_policies_of_a_backup_give_way_to_what_they_became(*, who: str, is_old: bool) -> None:
    """Policies that somebody made in an empty registry count, with whatever revision."""
    first, second = (msgspec.json.encode(Change(at, "ann", "policy")).decode() for at in (1, 2))
    other = msgspec.json.encode(Change(1, who, "policy")).decode()
    orders = Orders(MemoryRegistry(SystemClock()), SystemClock(), node="scheduler-1")
    orders.read((Entry(POLICY, f'{{"revision":2,"document":"","history":[{first},{second}]}}'.encode(), 10_000),))
    there = Entry(POLICY, f'{{"revision":1,"document":"","history":[{other}]}}'.encode(), 7)
    orders.read((there,), anew_at=7)
    assert orders.policy_record.revision == (2 if is_old else 1)
    assert bool(orders.bad) is is_old


async def test_an_order_is_obeyed_after_the_registry_began_to_count_anew() -> None:
    """What this scheduler knew had a far higher index than what is written now."""
    async with ordered() as made:
        await made.put(FAST, msgspec.json.encode(new_record()))
        await until(lambda: made.state().phase == "running")
        entry = await made.registry.get(FAST)
        assert entry is not None
        made.registry.start_over(Entry(FAST, entry.value, 1))
        await until(lambda: made.orders.rollouts["fast"].index == 1)
        assert made.state().phase == "running"
        await made.put(FAST, msgspec.json.encode(failed(new_record())))
        await until(lambda: made.state().phase == "failed")
        await made.put(FAST, msgspec.json.encode(new_record()))  # by whom it was created anew
        await until(lambda: made.state().phase == "running")
        await made.rollouts.order("fast", "abort", who="ann")
        assert made.state().phase == "aborted"


@pytest.mark.parametrize("is_other", [False, True])
async def test_an_older_revision_from_a_backup_gives_way(*, is_other: bool) -> None:
    """It was running then, and failed since. One that was created since then is another rollout, and counts."""
    async with ordered() as made:
        old = new_record()
        if is_other:
            old = msgspec.structs.replace(old, created_at=5_000)
        phases = []
        made.orders.on_change(lambda: phases.append(made.state().phase))
        made.registry.start_over(Entry(FAST, msgspec.json.encode(old), 7))
        await until(lambda: bool(phases))
        await until(lambda: not made.orders.bad)
        assert set(phases) == ({"running"} if is_other else {"failed"})
        value = await made.value(FAST)
        assert value is not None
        assert msgspec.json.decode(value, type=RolloutRecord).state.phase == phases[0]


async def test_what_is_unreadable_in_a_backup_is_left_alone() -> None:
    """Nobody can say whether it is older."""
    async with ordered() as made:
        made.registry.start_over(Entry(FAST, b"[]", 7))
        await until(lambda: FAST in made.orders.bad)
        assert made.state().phase == "failed"
        await asyncio.sleep(0.02)
        assert await made.value(FAST) == b"[]"


async def test_an_order_while_orders_are_lost_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written where nothing is, and what was in force before is not written over it."""
    monkeypatch.setattr(orders_module, "RESTORE_MS", 50)
    async with ordered() as made:
        await made.put(FAST, msgspec.json.encode(new_record()))
        await until(lambda: made.state().phase == "running")
        made.registry.is_away = True
        made.registry.start_over()
        await until(lambda: made.orders.bad.get(FAST) == LOST)
        assert made.state().phase == "running"
        with pytest.raises(StoreUnavailable):
            await made.rollouts.order("fast", "abort", who="ann")
        made.registry.is_away = False
        await made.rollouts.order("fast", "abort", who="ann")
        await until(lambda: not made.orders.bad)
        assert made.state().phase == "aborted"
        assert made.orders.lists == {"staff": {"ann", "bob"}}
        value = await made.value(FAST)
        assert value is not None
        assert msgspec.json.decode(value, type=RolloutRecord).state.phase == "aborted"


async def test_two_who_bring_it_back_do_no_harm() -> None:
    """The first one writes, and what somebody wrote meanwhile stays."""
    async with ordered() as made:
        other = Orders(made.registry, SystemClock(), node="scheduler-2")
        other.read((await made.registry.scan(PREFIX)).items)
        made.registry.start_over()
        await made.put(LISTS + "new", b"eve")
        view = await made.registry.scan(PREFIX)
        other.read(view.items, anew_at=view.index)
        await until(lambda: not made.orders.bad and made.orders.lists.keys() == {"staff", "new"})
        other.read((await made.registry.scan(PREFIX)).items)
        assert not other.bad
        assert other.lists == made.orders.lists
        assert other.rollouts == made.orders.rollouts


async def test_who_leads_leads_again_though_tokens_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would judge a rollout otherwise, until the new registry has counted as far as the old one."""
    monkeypatch.setattr(leadership, "RENEW_MS", 1)
    clock = SystemClock()
    registry = Restartable(clock)
    elected = []
    leader = Leadership(registry, clock, key="lock", node="scheduler-1", on_elected=lambda: elected.append(1))
    running = asyncio.create_task(leader.run())
    await until(lambda: leader.is_leading)
    registry.start_over()
    await until(lambda: len(elected) == 2)
    assert leader.is_leading
    running.cancel()
    await asyncio.wait([running])
    entry = await registry.get("lock")
    assert entry is not None
    assert entry.session is None


async def test_who_moves_goes_on_moving_though_tokens_begin_anew() -> None:
    """A rollback would stand still otherwise, as long as it took the new registry to count as far as the old one."""
    fleet = FakeFleet()
    fleet.add("access-1", 100)
    fleet.add("access-2")
    fleet.registry.__dict__.update(MemoryRegistry(fleet.clock, index=10_000).__dict__)
    movers = fleet.movers()
    movers.want(MoveRequest(id="m1", kind="rebalance", rate_per_s=4, grace_ms=1_000))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(movers.run())
        await fleet.pass_time(4)
        moved = fleet.loads()["access-2"]
        fleet.registry.__dict__.update(MemoryRegistry(fleet.clock).__dict__)
        await fleet.pass_time(30)
        assert 0 < moved < 40
        assert fleet.loads()["access-2"] > 45
        running.cancel()


@pytest.mark.parametrize("value", [b"9" * 5_000, b"99999999999999", b"x", "٣".encode()])
async def test_no_value_of_the_movers_lock_stops_moves_for_good(value: bytes) -> None:
    """It says how long the one before had clients on their way: an hour at most."""
    fleet = FakeFleet()
    fleet.add("access-1", 100)
    fleet.add("access-2")
    await fleet.registry.put(LOCK_KEY, value)
    movers = fleet.movers()
    movers.want(MoveRequest(id="m1", kind="rebalance", rate_per_s=40, grace_ms=1_000))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(movers.run())
        await fleet.pass_time(10)
        assert fleet.loads()["access-2"] > 45
        running.cancel()
