"""A SQLite message store whose process is killed: at a thousand points of its transactions, and by the system."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import im
from base.clock import Timestamp
from im.core import timelines
from im.core.commands import Appended, Command, CreateGroup, Draft, Executed, GroupChanged, Mark
from im.core.ledger import LedgerSettings
from im.core.model import Message
from im.store.log import MessageLog
from im.store.reading import read_conversation, read_timeline
from im.store.schema import prepare_database
from im.store.sqlite import SqliteMessageStore

NOW = Timestamp(1_000)


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


async def keys(store: SqliteMessageStore, user: str) -> list[str]:
    """Read a whole timeline; its offsets must be without a hole."""
    page = await store.timeline(user, since=0, limit=100_000)
    assert [entry.offset for entry in page.entries] == list(range(1, page.head + 1))
    return [entry.message.client_msg_id for entry in page.entries]


class Killed(BaseException):
    """The process is gone: not even a rollback is carried out any more."""


class Mortal(sqlite3.Connection):
    """A connection whose process is killed before or after one of its statements."""

    left = -1
    """Statements until then; negative for ever."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self._until_killed(super().execute, arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self._until_killed(super().executemany, arguments)

    def _until_killed(self, execute: Callable[..., sqlite3.Cursor], arguments: Sequence[object]) -> sqlite3.Cursor:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return execute(*arguments)


class Life:
    """A writer from its start to its end."""

    def __init__(self, path: Path, settings: LedgerSettings) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, factory=Mortal)
        for pragma in ("synchronous = OFF", "temp_store = MEMORY"):  # processes die here, machines do not
            self.connection.execute(f"PRAGMA {pragma}")
        prepare_database(self.connection)
        self.log = MessageLog(self.connection, settings, lag_max=7)

    def execute(self, commands: Sequence[Command], *, dies_after: int = -1) -> Executed | None:
        self.connection.left = dies_after
        try:
            return self.log.execute(commands)
        except Killed:
            return None
        finally:
            self.connection.left = -1

    def timeline(self, user: str) -> list[Message]:
        newest = self.log.generations.newest
        tail = newest.tail(user, since=0, limit=100_000)
        before, newer = (2**62, []) if tail is None else (tail.first, tail.entries)
        older, _ = read_timeline(self.connection, user, since=0, before=before, limit=100_000)
        assert [offset for offset, _ in older + newer] == list(range(1, len(older + newer) + 1)), "a hole"
        return [message for _, message in older + newer]

    def conversation(self, cid: int) -> list[Message]:
        tail = self.log.generations.newest.conversation_tail(cid, since=0, limit=100_000)
        before, newer = (2**62, []) if tail is None else (tail.first, tail.messages)
        older, _ = read_conversation(self.connection, cid, since=0, before=before, limit=100_000)
        found = older + newer
        assert [message.seq for message in found] == list(range(1, len(found) + 1)), "a hole"
        return found


@pytest.mark.spec("FO-05", "FO-06", "MI-06", "OR-04")
@pytest.mark.usefixtures("small_steps")
def test_a_killed_writer_goes_on_as_if_nothing_had_been(path: Path):
    """At a thousand points, in transactions of all kinds: all of a batch is there or nothing, logs and timelines have
    no hole, queued drafts and fan-outs come to their end, and everybody gets everything once.
    """
    chance = random.Random(5)
    settings = LedgerSettings(remembered_max=3)
    members = ("ann", "bob", "cleo", "dan")
    life = Life(path, settings)
    for key in ("g1", "g2"):
        made = life.execute([group_of(*members, key=key)])
        assert made is not None
        assert isinstance(made.outcomes[0], GroupChanged)
    sent: dict[int, list[str]] = {1: ["g1"], 2: ["g2"]}
    kills = n = quiet = 0
    while kills < 1_000:
        batch: list[Command] = []
        for _ in range(chance.randrange(4)):
            n += 1
            cid = chance.choice((1, 2))
            one = draft(n, sender=chance.choice(members), cid=cid)
            batch.append(Draft(*(getattr(one, name) for name in one.__struct_fields__[:-1]), chance.random() < 0.3))
            sent[cid].append(one.client_msg_id)
        if chance.random() < 0.2:
            batch.append(Mark(chance.choice(members), "phone", 1, NOW, read_seq=chance.randrange(1, 50)))
        quiet -= 1
        while life.execute(batch, dies_after=-1 if quiet > 0 else chance.randrange(40)) is None:
            kills += 1
            quiet = chance.choice((0, 0, 0, 0, 0, 0, 0, 2, 4, 6, 40))  # long enough for a merge, now and then
            life.connection.close()
            life = Life(path, settings)
            life.log.generations.check_invariants()
    while life.log.has_work:
        life.execute([])
    logs = {cid: life.conversation(cid) for cid in (1, 2)}
    for cid, log in logs.items():
        assert sorted(message.client_msg_id for message in log) == sorted(sent[cid])
        assert log[-1].cseq == len(log) - 1
    for user in members:
        timeline = life.timeline(user)
        for cid, log in logs.items():
            assert [message for message in timeline if message.cid == cid and message.seq] == log
    life.connection.close()


GROUP = 20

CHILD = f"""
import asyncio, itertools, sys
from pathlib import Path
from base.clock import Timestamp
from im.core.commands import Draft
from im.store.sqlite import SqliteMessageStore

async def main():
    store = await SqliteMessageStore.open(Path(sys.argv[1]), lag_max=100)
    for first in itertools.count(1, {GROUP}):
        group = [Draft(n, "ann", "phone", "bob", 0, f"k{{n}}", "text", b"x" * 200, Timestamp(n))
                 for n in range(first, first + {GROUP})]
        await store.execute(group)
        print("acknowledged", first + {GROUP} - 1, flush=True)

asyncio.run(main())
"""


@pytest.mark.spec("FO-05")
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
    repeats = (await store.execute(drafts(1, len(found)))).outcomes
    assert not any(isinstance(outcome, Appended) and outcome.is_new for outcome in repeats)
    await store.close()
