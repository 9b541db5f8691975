"""A shard moves to another process: its files are copied while it serves, it rests, the rest follows, it serves there.

    COPY    the files go over as they are, while the shard serves
    SEAL    the shard takes nothing new, commits what waits, and closes its files
    REST    what changed since goes over; the target proves that it has the whole, durably
    COMMIT  the table names the target, by compare-and-set
    OPEN    the target is told at once, and opens the shard; the calls that wait here go there, and then those that wait
            there already: who learns early where the shard is must not overtake who did not
    CLEAR   the files here are removed

Whatever fails before COMMIT is undone: the shard opens again where it was. A process that dies on the way finds in the
table whose the shard is: the source opens it again, or leaves what it has there until the shard comes back in its
place; the target opens what it has proven to have once the table names it, and until then does not touch it. Calls for
the shard wait from SEAL until the target has opened it (`im.absence`). If it cannot be told it finds the table in the
registry.

A commit that may have been done, in the registry or in our own file of the table, is looked up and gone on with until
it is known: until then nobody serves the shard. To undo it would leave a table somewhere that names the target, and a
later start would give the shard to the old files there.

Invariants:
    I1  A shard's files are open in one process at most: the source closes them before COMMIT, the target opens them
        after it.
    I2  The table names a process only if that has the whole shard, durably.
    I3  A shard is on one way at most: it leaves once it has wholly come, and comes back once it has wholly left.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from base.errors import (
    BadRequest,
    CasConflict,
    Conflict,
    NotFound,
    RoadsteadError,
    StoreError,
    StoreUnavailable,
    Unavailable,
)
from base.faultpoint import reach
from base.log import logger
from base.peer import PeerPool, PeerServer
from base.site import Site
from im.core.pages import PART_BYTES, Parts
from im.core.shards import ShardTable
from im.folders import SHARD_FILES, incoming_folder, shard_folder
from im.moving_api import (
    MOVE_BEGIN,
    MOVE_DONE,
    MOVE_END,
    MOVE_OPEN,
    MOVE_PARTS,
    MoveBegin,
    Moved,
    MoveDone,
    MoveEnd,
    MoveOpen,
    MoveParts,
)
from im.tables import ShardTables, read_table, replace_table

__all__ = ["MoveStatus", "Moving"]

T = TypeVar("T")

CALL_DEADLINE_MS = 10_000
END_DEADLINE_MS = 120_000
"""The target reads and syncs whole files."""
OPEN_DEADLINE_MS = 2_000
"""The calls that wait at the source wait for so long at most until the target has opened the shard."""
HAND_OVER_MS = 1_000
"""Those that wait at the target wait for so long at most for those of the source, which may have died."""
BATCH_BYTES = 524_288
RETRY_MS = 200


class MoveStatus(msgspec.Struct):
    """The last move of this process: `error` "" while it goes on, and when it is done."""

    shard: int
    to: str
    stage: str
    bytes_sent: int = 0
    error: str = ""


class _Arrival:
    """A shard that comes here."""

    __slots__ = ("is_handed_over", "is_open", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_open = asyncio.Event()
        self.is_handed_over = asyncio.Event()


class Moving:
    """The moves of one process, to and from it, one at a time."""

    def __init__(
        self,
        site: Site,
        *,
        folder: Path,
        pool: PeerPool,
        peers: PeerServer,
        tables: ShardTables,
        is_open: Callable[[int], bool],
        seal: Callable[[int], Awaitable[None]],
        unseal: Callable[[int], Awaitable[None]],
        gone: Callable[[int], None],
    ) -> None:
        """Serve the target's side.

        Args:
            site: this process.
            folder: has the shards' files.
            pool: streams to the other processes.
            peers: take a shard from them.
            tables: told of a commit at once.
            is_open: whether a shard is open here, and not on its way.
            seal: takes a shard out of service and closes its files.
            unseal: opens them again, if the table still says so.
            gone: told that a shard is at its new process now: the calls that wait for it are to be passed on, at once.
        """
        self._site = site
        self._folder = folder
        self._pool = pool
        self._tables = tables
        self._is_open = is_open
        self._seal = seal
        self._unseal = unseal
        self._gone = gone
        self._arrivals: dict[int, _Arrival] = {}
        self._moving = asyncio.Lock()
        self._receiving = asyncio.Lock()
        self.status: MoveStatus | None = None
        self._raw: dict[Path, IO[bytes]] = {}
        """Files of databases that are read as files. To close one would free SQLite's locks on it, which are the
        process' (POSIX): so they stay open for as long as SQLite uses them, which is until the shard rests.
        """
        self._log = logger(node=site.name)
        peers.serve(MOVE_BEGIN, self._begin)
        peers.serve(MOVE_PARTS, self._parts)
        peers.serve(MOVE_END, self._end)
        peers.serve(MOVE_OPEN, self._open)
        peers.serve(MOVE_DONE, self._done)

    # ------------------------------------------------------------ the source

    async def check(self, shard: int, to: str) -> None:
        """See whether a shard can be moved to a process now.

        Raises:
            NotFound: there is no such process, or the shard is not here.
            Conflict: another move goes on here, or the shard is there already.
            Unavailable: the shard is this process', and has not been opened yet.
            StoreError: the registry does not answer: nothing is moved that could not be committed.
        """
        await read_table(self._site.registry)
        table = self._tables.known
        if not 0 <= shard < table.shards or table.owners[shard] != self._site.name:
            raise NotFound(f"shard {shard} is not here")
        if to not in self._pool.nodes():
            raise NotFound(f"there is no process {to} of the message services")
        if to == self._site.name:
            raise Conflict(f"shard {shard} is at {to} already")
        if self._moving.locked():
            raise Conflict("another shard is being moved from here")
        if not self._is_open(shard):
            raise Unavailable(f"shard {shard} is not open yet", retry_after_ms=HAND_OVER_MS)

    async def move(self, shard: int, to: str) -> None:
        """Move a shard of this process to another one; return when it is there, or is back here.

        Raises:
            RoadsteadError: what `check` raises, or what failed; the shard is here as before.
        """
        await self.check(shard, to)
        shards = self._tables.known.shards
        async with self._moving:
            self.status = status = MoveStatus(shard, to, "copy")
            self._log.info("shard_move_began", shard=shard, to=to)
            try:
                await self._move(status, shards)
            except RoadsteadError as error:
                status.error = str(error)
                self._log.warning("shard_move_failed", shard=shard, to=to, stage=status.stage, error=str(error))
                raise
            status.stage = "done"
            self._log.info("shard_moved", shard=shard, to=to, bytes=status.bytes_sent)

    async def _move(self, status: MoveStatus, shards: int) -> None:
        shard = status.shard
        source = shard_folder(self._folder, shard, shards)
        files = {name: Parts() for name in SHARD_FILES}
        await self._call(status.to, MOVE_BEGIN, MoveBegin(shard, shards))
        reach("move_source.copy")
        for name, parts in files.items():
            await self._copy(status, source / name, parts)
        _enter(status, "seal")
        await self._seal(shard)
        try:
            self._close_raw(source)
            _enter(status, "rest")
            await _outside(_require_at_rest, source)
            for name, parts in files.items():
                await self._copy(status, source / name, parts)
            whole = [(name, _length(source / name), parts.digest()) for name, parts in files.items()]
            await self._call(status.to, MOVE_END, MoveEnd(shard, whole), deadline_ms=END_DEADLINE_MS)
            _enter(status, "commit")
            await self._commit(shard, status.to)
        except RoadsteadError:
            self._close_raw(source)
            await self._unseal(shard)
            raise
        _enter(status, "open")
        await self._hand_over(shard, status.to)
        _enter(status, "clear")
        self._close_raw(source)
        await asyncio.to_thread(shutil.rmtree, source, ignore_errors=True)

    async def _copy(self, status: MoveStatus, file: Path, parts: Parts) -> None:
        """Send what differs from what was sent before."""
        batch: list[tuple[int, bytes]] = []
        size = 0
        place = 0
        opened = self._raw.get(file)
        if opened is None:
            opened = self._raw[file] = await _outside(_open_raw, file)
        opened.seek(0)
        while found := await _outside(_read_parts, opened):
            for part in found:
                if parts.differs(place, part):
                    batch.append((place * PART_BYTES, part))
                    size += len(part)
                place += 1
            if size >= BATCH_BYTES:
                await self._send(status, file.name, batch)
                batch, size = [], 0
        parts.cut(place)
        if batch:
            await self._send(status, file.name, batch)

    def _close_raw(self, folder: Path) -> None:
        """Close the files of a shard that rests."""
        for file in [file for file in self._raw if file.parent == folder]:
            self._raw.pop(file).close()

    async def _send(self, status: MoveStatus, file: str, batch: list[tuple[int, bytes]]) -> None:
        await self._call(status.to, MOVE_PARTS, MoveParts(status.shard, file, batch))
        status.bytes_sent += sum(len(part) for _, part in batch)

    async def _call(self, to: str, method: Any, request: Any, *, deadline_ms: int = CALL_DEADLINE_MS) -> None:
        await self._pool.get(to).call(method, request, deadline_ms=deadline_ms)

    async def _commit(self, shard: int, to: str) -> None:
        """Make the target the owner. Returns when the registry says so; raises when it says otherwise."""
        registry, node = self._site.registry, self._site.name
        may_be_done = False
        while True:
            try:
                table, index = await self._read_table()
                self._tables.learn(table)
                if table.shards <= shard:
                    raise Conflict("the registry's table has not so many shards")
                if table.owners[shard] == to:
                    return
                if table.owners[shard] != node:
                    raise Conflict(f"shard {shard} was given to {table.owners[shard]}")
                moved = table.moved(shard, to)
                try:
                    self._tables.keep(moved)  # first, so that ours is never behind the registry's
                except StoreUnavailable:
                    may_be_done = True
                    raise
                may_be_done = True
                await replace_table(registry, moved, expect=index)
            except CasConflict:
                continue  # another shard's move, or our own, whose answer was lost
            except StoreError as error:
                if not may_be_done:
                    raise
                # Until it is known what became of the write nobody may serve the shard.
                self._log.warning("shard_move_unknown", shard=shard, to=to, error=str(error))
                await asyncio.sleep(RETRY_MS / 1000)
                continue
            self._tables.learn(moved)
            return

    async def _hand_over(self, shard: int, to: str) -> None:
        """Have the target open the shard, and the calls that wait for it go there."""
        try:
            await self._call(to, MOVE_OPEN, MoveOpen(shard, self._tables.known), deadline_ms=OPEN_DEADLINE_MS)
            self._gone(shard)
            await asyncio.sleep(0)  # who waited has passed its call on when this goes on, by the same stream
            await self._call(to, MOVE_DONE, MoveDone(shard), deadline_ms=OPEN_DEADLINE_MS)
        except RoadsteadError as error:  # it reads of it in the registry, and waits no longer than it has to
            self._log.info("shard_not_handed_over", shard=shard, to=to, error=str(error))
        finally:
            self._gone(shard)

    async def _read_table(self) -> tuple[ShardTable, int]:
        table, index = await read_table(self._site.registry)
        if table is None or table.epoch < self._tables.known.epoch:
            raise StoreUnavailable("the registry has lost the table of shards, and gets it back")
        return table, index

    # ------------------------------------------------------------ the target

    async def _begin(self, request: MoveBegin, peer: str) -> Moved:
        self._require_not_ours(request.shard)
        if self._moving.locked() and self.status is not None and self.status.shard == request.shard:
            raise Unavailable(f"shard {request.shard} has not left yet", retry_after_ms=RETRY_MS)
        async with self._receiving:
            place = self._incoming(request.shard)
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            await asyncio.to_thread(place.mkdir, parents=True, mode=0o700)
        self._arrivals[request.shard] = _Arrival(peer)
        self._log.info("shard_arrives", shard=request.shard, source=peer)
        reach("move_target.copy")
        return Moved()

    async def _parts(self, request: MoveParts, _peer: str) -> Moved:
        self._require_not_ours(request.shard)
        if request.file not in SHARD_FILES:
            raise BadRequest(f"a shard has no file {request.file}")
        async with self._receiving:
            await _outside(_write_parts, self._incoming(request.shard) / request.file, request.parts)
        return Moved()

    async def _end(self, request: MoveEnd, _peer: str) -> Moved:
        self._require_not_ours(request.shard)
        async with self._receiving:
            await _outside(_prove, self._incoming(request.shard), request.files)
        reach("move_target.commit")
        return Moved()

    async def _open(self, request: MoveOpen, _peer: str) -> Moved:
        arrival = self._arrivals.get(request.shard)
        self._tables.learn(request.table)
        if arrival is not None:
            try:
                async with asyncio.timeout(OPEN_DEADLINE_MS / 1000):
                    await arrival.is_open.wait()
            except TimeoutError:
                raise Unavailable(f"shard {request.shard} is not open yet", retry_after_ms=RETRY_MS) from None
        return Moved()

    async def _done(self, request: MoveDone, _peer: str) -> Moved:
        arrival = self._arrivals.get(request.shard)
        if arrival is not None:
            arrival.is_handed_over.set()
        return Moved()

    def sender(self, shard: int) -> str | None:
        """Return the process whose calls for a shard go before all others': it has just given it to this one."""
        arrival = self._arrivals.get(shard)
        return arrival.source if arrival is not None else None

    async def opened(self, shard: int) -> None:
        """A shard is open here. Return once the calls have come that waited for it elsewhere, or do not come."""
        arrival = self._arrivals.get(shard)
        if arrival is None:
            return
        arrival.is_open.set()
        try:
            async with asyncio.timeout(HAND_OVER_MS / 1000):
                await arrival.is_handed_over.wait()
        except TimeoutError:
            self._log.info("shard_not_handed_over", shard=shard, source=arrival.source)
        finally:
            self._arrivals.pop(shard, None)

    def _incoming(self, shard: int) -> Path:
        return incoming_folder(self._folder, shard)

    def _require_not_ours(self, shard: int) -> None:
        if self._tables.known.owners[shard] == self._site.name:
            raise Conflict(f"shard {shard} is here already")


def _enter(status: MoveStatus, stage: str) -> None:
    status.stage = stage
    reach(f"move_source.{stage}")


async def _outside(work: Callable[..., T], *arguments: Any) -> T:
    """Do file work in a thread. Raises StoreUnavailable when it fails."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise StoreUnavailable(f"the shard's files cannot be used: {error.strerror}") from error


def _open_raw(file: Path) -> IO[bytes]:
    return file.open("rb", buffering=0)


def _read_parts(opened: IO[bytes]) -> list[bytes]:
    """Return the next parts of a file, about as many as go into one message."""
    found = opened.read(BATCH_BYTES)
    return [found[start : start + PART_BYTES] for start in range(0, len(found), PART_BYTES)]


def _require_at_rest(folder: Path) -> None:
    """A log beside a database has what is not in it: SQLite leaves it if it could not close in order."""
    for name in SHARD_FILES:
        log = folder / f"{name}-wal"
        if log.exists() and log.stat().st_size:
            raise OSError(errno.EBUSY, f"{log} has not been emptied")


def _length(file: Path) -> int:
    return file.stat().st_size


def _write_parts(file: Path, parts: list[tuple[int, bytes]]) -> None:
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as opened:
        for offset, part in parts:
            opened.seek(offset)
            opened.write(part)


def _prove(folder: Path, files: list[tuple[str, int, bytes]]) -> None:
    """Cut, compare and sync the files; say durably that the shard is whole."""
    for name, length, digest in files:
        file = folder / name
        parts = Parts()
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as opened:
            opened.truncate(length)
            for place, part in enumerate(_all_parts(opened)):
                parts.differs(place, part)
            os.fsync(opened.fileno())
        if parts.digest() != digest:
            raise Conflict(f"{name} did not arrive whole")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _all_parts(opened: IO[bytes]) -> Iterator[bytes]:
    while part := opened.read(PART_BYTES):
        yield part
