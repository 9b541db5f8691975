"""Shards move between processes under load, and what fails on the way is undone or gone on with."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from base.core.registry import Entry
from base.errors import Conflict, NotFound, RoadsteadError, StoreUnavailable
from base.registry.memory import MemoryRegistry
from im import moving
from im.core.shards import shard_of_user
from im.files import opener
from im.folders import incoming_folder, shard_folder
from im.service import MessageService
from im.tables import TABLE_KEY
from tests.im.cluster import TIMEOUT_S, AccessEnd, Cluster

SHARDS = 4
USERS = [f"u{number}" for number in range(12)]


class Movable(Cluster):
    """Processes with files of their own, of which any may be started again."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path) -> None:
        super().__init__(tasks, folder, shards=SHARDS, first_nodes=("im-1", "im-2"))
        self.folder = folder
        self.services: dict[str, MessageService] = {}
        self._lives: dict[str, int] = {}

    async def start(self, name: str) -> MessageService:
        self._lives[name] = life = self._lives.get(name, 0) + 1
        site = self.site(name, life)
        folder = self.folder / name
        service = MessageService(
            self.config, site, open_shard=opener(folder, site.clock), statuses=self.statuses, folder=folder
        )
        self.services[name] = service
        self._run(name, service.node, service.run())
        await service.start()
        return service

    async def end(self, name: str) -> None:
        """End a process without goodbye; its files are closed, as a process' are that ends."""
        service = self.services.pop(name)
        await self.stop(name)
        await service.stop()

    def here(self, name: str) -> list[str]:
        return list(self.services[name].statistics()["shards"])

    async def order(self, name: str, shard: int, to: str) -> None:
        """Order a move at a process and return when it is over. Raises what ended it."""
        mover = self.services[name]._moving
        assert mover is not None
        await mover.move(shard, to)

    async def owned(self, shard: int, name: str) -> None:
        """Return once the process serves the shard."""
        async with asyncio.timeout(TIMEOUT_S):
            while str(shard) not in self.here(name):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)


async def sent_again(end: AccessEnd, user: str, key: str) -> None:
    """Send until it is taken: the access node learns where the shard is now."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await end.send(user, user, key)
            except RoadsteadError:
                await asyncio.sleep(0.02)
            else:
                return


@asynccontextmanager
async def movable(folder: Path) -> AsyncIterator[tuple[Movable, AccessEnd]]:
    async with asyncio.TaskGroup() as tasks:
        cluster = Movable(tasks, folder)
        try:
            for name in ("im-1", "im-2", "im-3"):
                await cluster.start(name)
            yield cluster, await cluster.start_access()
        finally:
            for name in list(cluster.services):
                await cluster.end(name)
            await cluster.close()


class Load:
    """Senders that send one message after the other, each until it is acknowledged."""

    def __init__(self, end: AccessEnd) -> None:
        self._end = end
        self._is_over = False
        self.sent: list[str] = []
        self.refused: set[str] = set()

    async def run(self, sender: int) -> None:
        number = 0
        while not self._is_over:
            user, to = USERS[(number + sender) % 12], USERS[(number * 7 + sender + 1) % 12]
            number += 1
            if user != to:
                await self._send(user, to, f"{sender}-{number}")

    def stop(self) -> None:
        self._is_over = True

    async def _send(self, user: str, to: str, key: str) -> None:
        while True:
            try:
                await self._end.send(user, to, key)
            except RoadsteadError as error:
                self.refused.add(error.code.label)
                await asyncio.sleep(0.01)
            else:
                self.sent.append(key)
                return


async def timelines(end: AccessEnd, keys: list[str]) -> dict[str, list[str]]:
    """Return the keys in each user's timeline once each message is in the two that it belongs into."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            seen: dict[str, list[str]] = {}
            for user in USERS:
                since, found = 0, []
                while True:
                    page = await end.call(user, "sync", since=since, limit=500)
                    found += [entry["data"]["client_msg_id"] for entry in page["entries"]]
                    if not page["has_more"]:
                        break
                    since = page["entries"][-1]["offset"]
                seen[user] = found
            if sum(map(len, seen.values())) >= 2 * len(keys):
                return seen
            await asyncio.sleep(0.05)


@pytest.mark.spec("HS-01")
async def test_shards_move_under_load_and_nothing_is_lost_or_twice(tmp_path: Path):
    """To a process that joined later, one after the other; whoever sends only has to try again."""
    async with movable(tmp_path) as (cluster, end), asyncio.TaskGroup() as tasks:
        load = Load(end)
        for sender in range(8):
            tasks.create_task(load.run(sender))
        for shard, source in ((0, "im-1"), (2, "im-1"), (1, "im-2")):
            await asyncio.sleep(0.2)  # some load in between
            await cluster.order(source, shard, "im-3")
            await cluster.owned(shard, "im-3")
        await asyncio.sleep(0.2)
        load.stop()
        seen = await timelines(end, load.sent)
        assert sorted(key for found in seen.values() for key in found) == sorted([*load.sent, *load.sent])
        assert load.refused <= {"unavailable", "draining"}
        assert [cluster.here(name) for name in ("im-1", "im-2", "im-3")] == [[], ["3"], ["0", "1", "2"]]
        assert not shard_folder(tmp_path / "im-1", 0, SHARDS).exists()


async def test_a_shard_that_moved_is_there_after_every_process_was_started_again(tmp_path: Path):
    """The table says where; what was left behind is not opened."""
    async with movable(tmp_path) as (cluster, end):
        user = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
        await end.send(user, user, "before")
        await cluster.order("im-1", 0, "im-2")
        for name in ("im-1", "im-2"):
            await cluster.end(name)
            await cluster.start(name)
        assert cluster.here("im-1") == ["2"]
        assert cluster.here("im-2") == ["0", "1", "3"]
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    page = await end.call(user, "sync", since=0, limit=10)
                except RoadsteadError:
                    await asyncio.sleep(0.02)  # the access node has not connected yet
                else:
                    break
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["before"]


@pytest.mark.parametrize("method", ["MOVE_BEGIN", "MOVE_PARTS", "MOVE_END"])
async def test_a_move_whose_target_fails_leaves_the_shard_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    """At each of its calls: the shard serves on, and a second try succeeds."""
    async with movable(tmp_path) as (cluster, end):
        user = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
        await end.send(user, user, "before")
        failing, real = getattr(moving, method), moving.Moving._call

        async def call(self: Any, to: str, called: Any, request: Any, **more: Any) -> None:
            if called is failing:
                raise StoreUnavailable("the target's disk is full")
            await real(self, to, called, request, **more)

        with monkeypatch.context() as patch:
            patch.setattr(moving.Moving, "_call", call)
            with pytest.raises(StoreUnavailable, match="disk is full"):
                await cluster.order("im-1", 0, "im-3")
        assert cluster.here("im-1") == ["0", "2"]
        await end.send(user, user, "after")
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        async with asyncio.timeout(TIMEOUT_S):
            while (page := await end.call(user, "sync", since=0, limit=10))["head"] < 2:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["before", "after"]


async def test_what_did_not_arrive_whole_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part that was changed on the way is noticed by the digest of all."""
    async with movable(tmp_path) as (cluster, _):
        real = moving.Moving._call

        async def call(self: Any, to: str, called: Any, request: Any, **more: Any) -> None:
            if called is moving.MOVE_PARTS:
                request.parts[-1] = (request.parts[-1][0], b"x" * len(request.parts[-1][1]))
            await real(self, to, called, request, **more)

        monkeypatch.setattr(moving.Moving, "_call", call)
        with pytest.raises(Conflict, match="did not arrive whole"):
            await cluster.order("im-1", 0, "im-3")
        assert cluster.here("im-1") == ["0", "2"]


class Flaky:
    """Makes writes of the table fail: before they are done, or with the answer lost."""

    def __init__(self, registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = registry.put
        self.is_lost_before = False
        self.is_answer_lost = False
        self.is_gone = False
        self._real_get = registry.get
        monkeypatch.setattr(registry, "put", self.put)
        monkeypatch.setattr(registry, "get", self.get)

    async def get(self, key: str) -> Entry | None:
        if self.is_gone:
            raise StoreUnavailable("the registry is away")
        return await self._real_get(key)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        if key != TABLE_KEY:
            return await self._real(key, value, expect=expect)
        if not self.is_lost_before:
            index = await self._real(key, value, expect=expect)
        if self.is_answer_lost or self.is_lost_before:
            self.is_lost_before = self.is_answer_lost = False
            raise StoreUnavailable("no answer")
        return index


@pytest.mark.parametrize("what", ["is_lost_before", "is_answer_lost"])
async def test_a_commit_without_an_answer_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    """Whether it was done or not: in the end the shard is at the target, once."""
    async with movable(tmp_path) as (cluster, _):
        setattr(Flaky(cluster.registry, monkeypatch), what, True)
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        assert cluster.here("im-1") == ["2"]


async def test_a_move_without_a_registry_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing was written, so that the shard can serve where it was."""
    async with movable(tmp_path) as (cluster, end):
        flaky = Flaky(cluster.registry, monkeypatch)
        flaky.is_gone = True
        with pytest.raises(StoreUnavailable, match="away"):
            await cluster.order("im-1", 0, "im-3")
        flaky.is_gone = False
        user = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
        await end.send(user, user, "after")


async def test_what_had_arrived_before_a_crash_is_taken_on_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The target proved that it has the whole, and dies before the table names it."""
    async with movable(tmp_path) as (cluster, end):
        user = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
        await end.send(user, user, "before")
        real = moving.Moving._commit

        async def commit(self: Any, shard: int, to: str) -> None:
            await cluster.end("im-3")
            assert incoming_folder(tmp_path / "im-3", 0).exists()
            await real(self, shard, to)

        monkeypatch.setattr(moving.Moving, "_commit", commit)
        await cluster.order("im-1", 0, "im-3")
        await cluster.start("im-3")
        assert cluster.here("im-3") == ["0"]
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    page = await end.call(user, "sync", since=0, limit=10)
                except RoadsteadError:
                    await asyncio.sleep(0.02)
                else:
                    break
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["before"]


async def test_what_was_left_behind_is_not_opened_when_the_shard_comes_back(tmp_path: Path):
    """A process that dies after it gave a shard away has not cleared it: old files, in the place of the new ones."""
    async with movable(tmp_path) as (cluster, end):
        user = next(user for user in USERS if shard_of_user(user, SHARDS) == 0)
        await end.send(user, user, "before")
        place = shard_folder(tmp_path / "im-1", 0, SHARDS)
        shutil.copytree(place, tmp_path / "left")
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        (tmp_path / "left").rename(place)
        await sent_again(end, user, "meanwhile")
        await cluster.order("im-3", 0, "im-1")
        await cluster.owned(0, "im-1")
        await sent_again(end, user, "after")
        page = await end.call(user, "sync", since=0, limit=10)
        assert [entry["data"]["client_msg_id"] for entry in page["entries"]] == ["before", "meanwhile", "after"]


async def test_orders_that_make_no_sense_are_refused_before_anything_is_done(tmp_path: Path):
    """Each with one clear error."""
    async with movable(tmp_path) as (cluster, _):
        for source, shard, to, kind, words in (
            ("im-1", 1, "im-3", NotFound, "shard 1 is not here"),
            ("im-1", 99, "im-3", NotFound, "shard 99 is not here"),
            ("im-1", 0, "im-9", NotFound, "no process im-9"),
            ("im-1", 0, "im-1", Conflict, "at im-1 already"),
        ):
            with pytest.raises(kind, match=words):
                await cluster.order(source, shard, to)
        assert cluster.here("im-1") == ["0", "2"]


async def test_a_table_that_names_a_process_without_the_files_makes_no_empty_shard(tmp_path: Path):
    """An operator may have restored the wrong folder: the shard stays closed, the others are served."""
    async with movable(tmp_path) as (cluster, _):
        await cluster.order("im-1", 0, "im-3")
        await cluster.owned(0, "im-3")
        await cluster.end("im-3")
        shard_folder(tmp_path / "im-3", 0, SHARDS).rename(tmp_path / "elsewhere")
        with pytest.raises(RoadsteadError, match="its files are not in"):
            await cluster.start("im-3")
        assert not shard_folder(tmp_path / "im-3", 0, SHARDS).exists()
