"""The shard table: made once, kept in a file, and put back into a registry that lost it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from base.clock import SystemClock
from base.core.registry import Entry
from base.errors import StoreError, StoreUnavailable
from base.ids import Incarnation
from base.registry import ServiceInstance
from bench.status_cluster import bench_site
from im import tables as tables_module
from im.core.shards import ShardTable
from im.tables import TABLE_KEY, ShardTables, TableFile, make_table, read_table
from tests.support.wiped_registry import WipedRegistry

NODES = ("im-1", "im-2")
NEWER = ShardTable(7, ("im-1", "im-2", "im-2", "im-3"))


@pytest.fixture
def registry() -> WipedRegistry:
    return WipedRegistry(SystemClock())


async def shown(registry: WipedRegistry) -> ShardTable | None:
    return (await read_table(registry))[0]


async def until(registry: WipedRegistry, table: ShardTable) -> None:
    async with asyncio.timeout(5):
        while await shown(registry) != table:  # noqa: ASYNC110 - others write it
            await asyncio.sleep(0.005)


def of_process(
    registry: WipedRegistry, folder: Path | None, on_change: Callable[[ShardTable], None] | None = None
) -> ShardTables:
    return ShardTables(bench_site(registry, "im-1", Incarnation(1)), folder=folder, on_change=on_change)


@asynccontextmanager
async def following(
    registry: WipedRegistry, folder: Path | None, on_change: Callable[[ShardTable], None] | None = None
) -> AsyncIterator[ShardTables]:
    tables = of_process(registry, folder, on_change)
    task = asyncio.create_task(tables.run())
    try:
        await tables.wait_looked()
        yield tables
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_new_system_gets_a_table_and_all_keep_it(registry: WipedRegistry, tmp_path: Path) -> None:
    """Whoever is first makes it."""
    folders = [tmp_path / name for name in NODES]
    tables = await asyncio.gather(*(of_process(registry, folder).make(NODES, 4, look_ms=0) for folder in folders))
    assert tables == [ShardTable(1, ("im-1", "im-2", "im-1", "im-2"))] * 2
    assert [TableFile(folder).load() for folder in folders] == tables


async def test_a_process_that_cannot_keep_the_table_does_not_start(registry: WipedRegistry, tmp_path: Path) -> None:
    """Else it would not know whose the shards are when the registry has lost it."""
    tables = of_process(registry, tmp_path)
    (tmp_path / "table.new").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        await tables.make(NODES, 4, look_ms=0)


@pytest.mark.parametrize("there", [None, ShardTable(1, ("im-9",) * 4)])
async def test_who_knows_a_newer_table_puts_it_back_and_makes_none(
    registry: WipedRegistry, tmp_path: Path, there: ShardTable | None
) -> None:
    """Into an empty registry, or over what somebody made or a backup has."""
    TableFile(tmp_path).save(NEWER)
    if there is not None:
        await registry.put(TABLE_KEY, msgspec.json.encode(there))
    assert await of_process(registry, tmp_path).make(NODES, 4, look_ms=0) == NEWER
    assert await shown(registry) == NEWER


async def test_who_reads_an_older_table_before_it_has_started_keeps_its_own(
    registry: WipedRegistry, tmp_path: Path
) -> None:
    """The registry was put back to before a move, and is followed while the process still starts."""
    TableFile(tmp_path).save(NEWER)
    await registry.put(TABLE_KEY, msgspec.json.encode(ShardTable(1, ("im-1",) * 4)))
    async with following(registry, tmp_path) as tables:
        assert tables.known == NEWER
        assert await tables.make(NODES, 4, look_ms=0) == NEWER
        await until(registry, NEWER)
    assert TableFile(tmp_path).load() == NEWER


async def test_an_older_file_gives_way_to_the_registry(registry: WipedRegistry, tmp_path: Path) -> None:
    """Shards moved while this process was not there."""
    file = TableFile(tmp_path)
    file.save(ShardTable(3, ("im-1",) * 4))
    await registry.put(TABLE_KEY, msgspec.json.encode(NEWER))
    assert await of_process(registry, tmp_path).make(NODES, 4, look_ms=0) == NEWER
    assert file.load() == NEWER


OURS, THEIRS = NEWER.moved(0, "im-2"), NEWER.moved(1, "im-3")
"""Two moves after the same table: what the file has of ours, since the registry did not take it, and what it took."""


async def test_a_move_that_another_one_forestalled_is_no_move(registry: WipedRegistry, tmp_path: Path) -> None:
    """The process was restarted while the registry did not answer: its shard is its own, or it would be nobody's."""
    TableFile(tmp_path).save(OURS)
    await registry.put(TABLE_KEY, msgspec.json.encode(THEIRS))
    assert await of_process(registry, tmp_path).make(NODES, 4, look_ms=0) == THEIRS
    assert TableFile(tmp_path).load() == await shown(registry) == THEIRS


async def test_who_reads_another_table_of_the_same_epoch_before_it_has_started_takes_it(
    registry: WipedRegistry, tmp_path: Path
) -> None:
    """It is followed while the process still starts; whoever listens hears of it."""
    TableFile(tmp_path).save(OURS)
    await registry.put(TABLE_KEY, msgspec.json.encode(THEIRS))
    heard: list[ShardTable] = []
    async with following(registry, tmp_path, heard.append) as tables:
        assert tables.known == THEIRS
        assert await tables.make(NODES, 4, look_ms=0) == THEIRS
    assert heard == [THEIRS]
    assert TableFile(tmp_path).load() == await shown(registry) == THEIRS


@pytest.mark.parametrize("service", ["im", "access"])
async def test_a_process_that_never_ran_makes_no_table_for_a_system_that_runs(
    registry: WipedRegistry, service: str
) -> None:
    """It would have all shards, and none of their messages."""
    making = asyncio.create_task(make_table(registry, ("im-9",), 4, look_ms=50))
    await asyncio.sleep(0.01)
    await registry.register(ServiceInstance(id="x", service=service, url="http://x", incarnation=1), ttl_ms=9_000)
    await asyncio.sleep(0.3)
    assert not making.done()
    await registry.put(TABLE_KEY, msgspec.json.encode(NEWER), expect=0)
    assert await making == NEWER


async def test_a_registry_that_lost_the_table_gets_it_back(registry: WipedRegistry, tmp_path: Path) -> None:
    """From whoever knows the newest one; a client only follows."""
    await registry.put(TABLE_KEY, msgspec.json.encode(NEWER))
    async with following(registry, tmp_path / "a") as one, following(registry, None) as client:
        assert one.known == client.known == NEWER
        await registry.start_over()
        await until(registry, NEWER)
        old = ShardTable(2, ("im-1",) * 4)
        registry.go_away()
        registry.come_back(is_empty=True, entries=[Entry(TABLE_KEY, msgspec.json.encode(old), 9)])
        await until(registry, NEWER)
        assert one.known == client.known == NEWER
        newest = NEWER.moved(0, "im-2")
        await registry.put(TABLE_KEY, msgspec.json.encode(newest))
        async with asyncio.timeout(5):
            while client.known != newest or one.known != newest:  # noqa: ASYNC110 - they follow the registry
                await asyncio.sleep(0.005)
        assert await shown(registry) == newest
    assert TableFile(tmp_path / "a").load() == newest


async def test_what_is_no_table_is_left_alone(registry: WipedRegistry, tmp_path: Path) -> None:
    """A newer version may have written it; what is known stays good."""
    await registry.put(TABLE_KEY, msgspec.json.encode(NEWER))
    async with following(registry, tmp_path) as tables:
        index = await registry.put(TABLE_KEY, b"[]")
        await asyncio.sleep(0.05)
        entry = await registry.get(TABLE_KEY)
        assert entry is not None
        assert (entry.value, entry.index, tables.known) == (b"[]", index, NEWER)
        with pytest.raises(StoreError, match=TABLE_KEY):
            await read_table(registry)


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """To go on without it would be to forget whose the shards are."""
    file = TableFile(tmp_path)
    assert file.load() is None
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(StoreError, match="no table"):
        file.load()
    with pytest.raises(StoreError, match="no table"):
        of_process(WipedRegistry(SystemClock()), tmp_path)
    (tmp_path / "table.json").unlink()
    (tmp_path / "table.json").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        file.load()
    with pytest.raises(StoreError, match="cannot be written"):
        file.save(NEWER)


def test_a_file_that_was_replaced_and_not_made_durable_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for it must not go on as if nothing had been written."""

    def fail(_folder: Path) -> None:
        raise OSError(5, "Input/output error")

    file = TableFile(tmp_path)
    monkeypatch.setattr(tables_module, "_sync_folder", fail)
    with pytest.raises(StoreUnavailable, match="may come back"):
        file.save(NEWER)
    assert file.load() == NEWER
