"""Calls for a shard that is on its way wait for it, and are carried out wherever it comes to be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from base.errors import StoreUnavailable, Unavailable
from im import absence, moving
from im.absence import Absence
from im.core.shards import shard_of_user
from im.methods import Caller
from tests.im.cluster import TIMEOUT_S
from tests.im.test_moving import SHARDS, USERS, Movable, movable

USER = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
"""Whose shard is moved."""
PAGE = {"since": 0, "limit": 10}


# ---------------------------------------------------------------- who waits, and for how long


async def test_calls_go_on_in_their_order_when_the_shard_is_somewhere() -> None:
    """Those for other shards wait for nothing."""
    absent, went = Absence(), list[int]()

    async def call(number: int) -> None:
        await absent.wait(1)
        went.append(number)

    absent.begin(1)
    absent.begin(1)
    calls = [asyncio.ensure_future(call(number)) for number in range(5)]
    await absent.wait(2)
    await asyncio.sleep(0)
    assert (went, 1 in absent, 2 in absent) == ([], True, False)
    absent.end(1)
    absent.end(1)
    await asyncio.gather(*calls)
    assert (went, 1 in absent) == ([0, 1, 2, 3, 4], False)


async def test_a_call_that_waits_for_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that asks the wrong process: it comes again. Its place is free then."""
    monkeypatch.setattr(absence, "WAIT_MS", 10)
    monkeypatch.setattr(absence, "WAITING_MAX", 1)
    absent = Absence()
    absent.begin(1)
    for _ in range(2):
        with pytest.raises(Unavailable, match="shard 1 is not here"):
            await absent.wait(1)


async def test_one_call_too_many_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all shards together."""
    monkeypatch.setattr(absence, "WAITING_MAX", 2)
    absent = Absence()
    absent.begin(1)
    absent.begin(2)
    waiting = [asyncio.ensure_future(absent.wait(shard)) for shard in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shard 2 is not here"):
        await absent.wait(2)
    for shard in (1, 2):
        absent.end(shard)
    await asyncio.gather(*waiting)


# ---------------------------------------------------------------- a shard moves


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Have moves stop before their commit: the first event says that one is there, the second lets it go on."""
    there, go_on = asyncio.Event(), asyncio.Event()
    real = moving.Moving._commit

    async def commit(self: Any, shard: int, to: str) -> None:
        there.set()
        await go_on.wait()
        if fails:
            raise StoreUnavailable("the registry is away")
        await real(self, shard, to)

    with monkeypatch.context() as patch:
        patch.setattr(moving.Moving, "_commit", commit)
        yield there, go_on


@pytest.mark.parametrize("fails", [False, True])
async def test_nobody_is_refused_while_a_shard_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool):
    """Sends, reads, and calls by way of the one that gets the shard: they are carried out once it is somewhere."""
    async with movable(tmp_path) as (cluster, end), asyncio.TaskGroup() as tasks:
        await end.send(USER, USER, "before")
        caller = Caller(USER, "phone", is_backend=False)
        with held_up(monkeypatch, fails=fails) as (there, go_on):
            move = tasks.create_task(_moved(cluster))
            await asyncio.wait_for(there.wait(), TIMEOUT_S)
            calls = [
                tasks.create_task(end.send(USER, USER, "meanwhile")),
                tasks.create_task(end.call(USER, "sync", since=0, limit=10)),
                tasks.create_task(_called(cluster, "im-1", caller, "sync", PAGE)),
                tasks.create_task(_called(cluster, "im-3", caller, "sync", PAGE)),
            ]
            await asyncio.sleep(0.05)
            assert not any(call.done() for call in calls)
            go_on.set()
            await move
            for call in calls:
                await asyncio.wait_for(call, TIMEOUT_S)
        page = await _page(end)
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["before", "meanwhile"]
        assert cluster.here("im-1") == (["0", "2"] if fails else ["2"])


async def test_a_shard_that_rests_is_not_opened_because_another_one_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The table still names the old process, and its files are about to be given away."""
    async with movable(tmp_path) as (cluster, _), asyncio.TaskGroup() as tasks:
        with held_up(monkeypatch) as (there, go_on):
            move = tasks.create_task(_moved(cluster))
            await asyncio.wait_for(there.wait(), TIMEOUT_S)
            tables = cluster.services["im-1"]._tables
            tables.learn(tables.known.moved(3, "im-3"))
            await asyncio.sleep(0.1)
            assert cluster.here("im-1") == ["2"]
            go_on.set()
            await move


@pytest.mark.parametrize("is_told", [True, False])
async def test_who_asks_the_new_process_early_overtakes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
):
    """Its call waits there for those that waited elsewhere; not for ever if nobody says that there are no more."""
    monkeypatch.setattr(moving, "HAND_OVER_MS", 10_000 if is_told else 1_000)
    async with movable(tmp_path) as (cluster, end), asyncio.TaskGroup() as tasks:
        real = moving.Moving._call
        early: list[asyncio.Task[bytes]] = []

        async def call(self: Any, to: str, called: Any, request: Any, **more: Any) -> None:
            if called is moving.MOVE_DONE:
                assert cluster.here("im-3") == ["0"]
                caller, sent = (
                    Caller(USER, "other", is_backend=False),
                    {"to": USER, "body": "x", "client_msg_id": "late"},
                )
                early.append(tasks.create_task(_called(cluster, "im-3", caller, "send", sent)))
                await asyncio.sleep(0.05)
                assert not early[0].done()
                if not is_told:
                    raise StoreUnavailable("it broke")
            await real(self, to, called, request, **more)

        with held_up(monkeypatch) as (there, go_on):
            monkeypatch.setattr(moving.Moving, "_call", call)
            move = tasks.create_task(_moved(cluster))
            await asyncio.wait_for(there.wait(), TIMEOUT_S)
            first = tasks.create_task(end.send(USER, USER, "first"))
            await asyncio.sleep(0.05)
            go_on.set()
            await move
            await asyncio.wait_for(first, TIMEOUT_S)
            await asyncio.wait_for(early[0], TIMEOUT_S)
        page = await _page(end)
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["first", "late"]


async def test_a_target_that_cannot_be_told_finds_the_table_in_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It opens the shard all the same, a little later."""
    async with movable(tmp_path) as (cluster, _):
        real = moving.Moving._call

        async def call(self: Any, to: str, called: Any, request: Any, **more: Any) -> None:
            if called is moving.MOVE_OPEN:
                raise StoreUnavailable("it broke")
            await real(self, to, called, request, **more)

        monkeypatch.setattr(moving.Moving, "_call", call)
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        assert 0 not in cluster.services["im-1"]._absence


async def _moved(cluster: Movable) -> None:
    with suppress(StoreUnavailable):  # the shard is back
        await cluster.order("im-1", 0, "im-3")


async def _called(cluster: Movable, name: str, caller: Caller, method: str, arguments: dict[str, Any]) -> bytes:
    return await cluster.services[name].call(caller, method, msgspec.json.encode(arguments))


async def _page(end: Any) -> Any:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            page = await end.call(USER, "sync", since=0, limit=10)
            if page["head"] >= 2:
                return page
            await asyncio.sleep(0.02)
