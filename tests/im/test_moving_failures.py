"""What fails in the middle of a move: disks, tables, openings, answers. A shard is never at two places, nor lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from base.errors import (
    ConfigError,
    Conflict,
    PeerUnavailable,
    RoadsteadError,
    StoreError,
    StoreUnavailable,
    Unavailable,
)
from im import moving, service, tables
from im.core.shards import ShardTable, shard_of_user
from im.moving import Moving
from im.moving_api import MOVE_BEGIN, MOVE_DONE, MOVE_END, MoveBegin
from im.tables import TABLE_KEY, TableFile, read_table, replace_table
from tests.im.cluster import TIMEOUT_S, AccessEnd
from tests.im.test_moving import SHARDS, USERS, Movable, movable, sent_again

USER = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
"""Whose shard is moved."""
Failing = Callable[[Moving, str, Any], Awaitable[None]]


def calls_fail(monkeypatch: pytest.MonkeyPatch, failing: Failing) -> None:
    """Have the failure asked before each call of a move from process to process: (who calls, whom, what)."""
    real = Moving._call

    async def call(self: Moving, to: str, called: Any, request: Any, **more: Any) -> None:
        await failing(self, to, called)
        await real(self, to, called, request, **more)

    monkeypatch.setattr(Moving, "_call", call)


def saves_fail(monkeypatch: pytest.MonkeyPatch, folder: Path, *failing: bool) -> None:
    """Have the process' next tables not be kept for want of room, or be kept, in this order."""
    real, left = TableFile.save, list(failing)

    def save(self: TableFile, table: ShardTable) -> None:
        if self._path.parent == folder and left and left.pop(0):
            raise StoreError("table.json cannot be written: No space left on device")
        real(self, table)

    monkeypatch.setattr(TableFile, "save", save)


async def keys(end: AccessEnd) -> list[str]:
    """Return what the user has, wherever it is."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                page = await end.call(USER, "sync", since=0, limit=10)
            except RoadsteadError:
                await asyncio.sleep(0.02)
            else:
                return [entry["data"]["client_msg_id"] for entry in page["entries"]]


async def opened(cluster: Movable, shard: int, name: str) -> None:
    """Return once the process serves the shard, and waits for no more calls from elsewhere."""
    await cluster.owned(shard, name)
    async with asyncio.timeout(TIMEOUT_S):
        while shard in cluster.services[name]._absence:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- the commit


async def test_a_disk_that_is_full_undoes_a_move_that_nobody_has_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The shard serves where it was, and does so after the next start."""
    async with movable(tmp_path) as (cluster, end):
        saves_fail(monkeypatch, tmp_path / "im-1", True)
        with pytest.raises(StoreError, match="No space left"):
            await cluster.order("im-1", 0, "im-3")
        await end.send(USER, USER, "after")
        await cluster.end("im-1")
        await cluster.start("im-1")
        assert cluster.here("im-1") == ["0", "2"]
        assert await keys(end) == ["after"]


async def test_a_disk_that_is_full_does_not_undo_a_move_that_may_have_been_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The registry does not answer; then there is a newer table, and no room for the one after it, for a while."""
    async with movable(tmp_path) as (cluster, end):
        await end.send(USER, USER, "before")
        real, is_first = replace_table, True

        async def replace(registry: Any, table: ShardTable, *, expect: int) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                known = cluster.services["im-1"]._tables.known
                await real(registry, ShardTable(known.epoch + 1, known.owners), expect=expect)
                raise StoreUnavailable("no answer")
            await real(registry, table, expect=expect)

        monkeypatch.setattr(moving, "replace_table", replace)
        monkeypatch.setattr(moving, "RETRY_MS", 10)
        # What is kept: the move, the newer table (in vain), the move after it (twice in vain).
        saves_fail(monkeypatch, tmp_path / "im-1", False, True, True, True)
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        assert TableFile(tmp_path / "im-1").load() == (await read_table(cluster.registry))[0]
        await sent_again(end, USER, "after")
        await cluster.end("im-1")
        await cluster.start("im-1")
        assert (cluster.here("im-1"), cluster.here("im-3")) == (["2"], ["0"])
        assert await keys(end) == ["before", "after"]


async def test_a_table_that_may_have_been_kept_is_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file was replaced, and only the folder's sync failed: the next start might find either."""
    real, left = tables._sync_folder, [True]

    def sync(folder: Path) -> None:
        if folder == tmp_path / "im-1" and left:
            left.pop()
            raise OSError(5, "Input/output error")
        real(folder)

    async with movable(tmp_path) as (cluster, _):
        monkeypatch.setattr(tables, "_sync_folder", sync)
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        assert not left
        assert TableFile(tmp_path / "im-1").load() == (await read_table(cluster.registry))[0]


async def test_a_move_is_not_written_over_an_older_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The registry was put back to an earlier state, and has not got the newest table yet."""
    async with movable(tmp_path) as (cluster, end):
        old, index = await read_table(cluster.registry)
        await cluster.order("im-1", 2, "im-2")
        kept = TableFile(tmp_path / "im-1").load()

        async def read(_registry: Any) -> tuple[ShardTable | None, int]:
            return old, index

        monkeypatch.setattr(moving, "read_table", read)
        with pytest.raises(StoreUnavailable, match="gets it back"):
            await cluster.order("im-1", 0, "im-3")
        assert TableFile(tmp_path / "im-1").load() == kept
        await end.send(USER, USER, "after")


async def test_a_shard_that_a_newer_table_gives_to_another_process_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nobody but its process gives a shard away; if it happens all the same there are no two that serve it."""
    async with movable(tmp_path) as (cluster, _):
        real = Moving._commit

        async def commit(self: Moving, shard: int, to: str) -> None:
            table, index = await read_table(cluster.registry)
            assert table is not None
            await replace_table(cluster.registry, table.moved(shard, "im-9"), expect=index)
            await real(self, shard, to)

        monkeypatch.setattr(Moving, "_commit", commit)
        with pytest.raises(Conflict, match="was given to im-9"):
            await cluster.order("im-1", 0, "im-3")
        assert cluster.here("im-1") == ["2"]
        assert 0 not in cluster.services["im-1"]._absence


async def test_processes_that_start_with_an_older_registry_have_the_shards_of_their_newest_table(tmp_path: Path):
    """It was put back to before a move: whoever gave the shard away has no files of it, and makes none."""
    async with movable(tmp_path) as (cluster, end):
        first = await cluster.registry.get(TABLE_KEY)
        assert first is not None
        await cluster.order("im-1", 0, "im-3")
        await sent_again(end, USER, "after")
        for name in ("im-1", "im-2", "im-3"):
            await cluster.end(name)
        await cluster.registry.put(TABLE_KEY, first.value)
        for name in ("im-1", "im-3", "im-2"):
            await cluster.start(name)
        assert [cluster.here(name) for name in ("im-1", "im-2", "im-3")] == [["2"], ["1", "3"], ["0"]]
        assert await keys(end) == ["after"]


# ---------------------------------------------------------------- opening


async def test_a_shard_that_could_not_be_opened_again_is_opened_later_and_not_moved_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A second order meanwhile is refused; all other shards of the process serve on."""
    monkeypatch.setattr(service, "OPEN_AGAIN_S", 0.05)
    async with movable(tmp_path) as (cluster, end):
        await end.send(USER, USER, "before")
        one = cluster.services["im-1"]
        real, is_full = one._open_shard, True

        async def open_shard(*args: Any, **more: Any) -> Any:
            if is_full:
                raise ConfigError(["the data folder cannot be used: disk full"])
            return await real(*args, **more)

        async def fail(_from: Moving, _to: str, called: Any) -> None:
            if called is MOVE_END:
                raise StoreUnavailable("the target failed")

        monkeypatch.setattr(one, "_open_shard", open_shard)
        with monkeypatch.context() as patch:
            calls_fail(patch, fail)
            with pytest.raises(StoreUnavailable, match="the target failed"):
                await cluster.order("im-1", 0, "im-3")
        with pytest.raises(Unavailable, match="shard 0 is not open yet"):
            await cluster.order("im-1", 0, "im-3")
        assert cluster.here("im-1") == ["2"]
        is_full = False
        await opened(cluster, 0, "im-1")
        await sent_again(end, USER, "after")
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        assert await keys(end) == ["before", "after"]


async def test_a_shard_moves_on_only_when_it_has_wholly_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The old process does not say that it is done. Else the end of the wait for it would open the shard once more."""
    monkeypatch.setattr(moving, "HAND_OVER_MS", 200)

    async def fail(_from: Moving, to: str, called: Any) -> None:
        if called is MOVE_DONE and to == "im-3":
            raise PeerUnavailable("the source died here")

    async with movable(tmp_path) as (cluster, end):
        await end.send(USER, USER, "before")
        calls_fail(monkeypatch, fail)
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        with pytest.raises(Unavailable, match="shard 0 is not open yet"):
            await cluster.order("im-3", 0, "im-2")
        await opened(cluster, 0, "im-3")
        await cluster.order("im-3", 0, "im-2")
        await cluster.owned(0, "im-2")
        assert cluster.here("im-3") == []
        assert await keys(end) == ["before"]


async def test_a_shard_comes_back_only_when_it_has_wholly_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its old files are cleared last, and so would the new ones be in their place."""
    real = Moving._call
    refused: list[str] = []

    async def come_back(source: Moving, to: str, called: Any) -> None:
        if called is MOVE_DONE and to == "im-3":
            target = cluster.services["im-3"]._moving
            assert target is not None
            with pytest.raises(RoadsteadError) as caught:
                await real(target, source._site.name, MOVE_BEGIN, MoveBegin(0, SHARDS))
            refused.append(str(caught.value))

    async with movable(tmp_path) as (cluster, _):
        calls_fail(monkeypatch, come_back)
        await cluster.order("im-1", 0, "im-3")
        assert refused == ["shard 0 has not left yet"]
        await opened(cluster, 0, "im-3")
        await cluster.order("im-3", 0, "im-1")
        await cluster.owned(0, "im-1")
