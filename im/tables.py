"""The shard table of a system, as its registry has it: made once, followed by whoever asks the message services.

A registry that does not answer changes nothing: the last table stays good (`im.core.shards` says why it may). One that
started over, empty or from a backup, gets the newest table back from the processes of the message services, of which
each keeps it in a file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from access.api import SERVICE as ACCESS_SERVICE
from base.clock import Instant
from base.errors import CasConflict, StoreError, StoreUnavailable, Unavailable
from base.log import logger
from base.node import began_to_count
from base.registry import Entry, Registry, View, follow
from base.site import Site
from im.api import SERVICE
from im.core.shards import ShardTable, first_table

__all__ = ["TABLE_KEY", "ShardTables", "TableFile", "make_table", "read_table", "replace_table"]

TABLE_KEY = "im/table"
LOOK_S = 0.1
PUT_BACK_S = 1.0
"""How long after a failure it is tried again to put the table back."""
_decode = msgspec.json.Decoder(ShardTable).decode


async def read_table(registry: Registry) -> tuple[ShardTable | None, int]:
    """Return the table and the index to replace it by, (None, 0) if there is none.

    Raises:
        StoreError: the registry does not answer, or has something else there.
    """
    entry = await registry.get(TABLE_KEY)
    return (None, 0) if entry is None else (_table_of(entry.value), entry.index)


class TableFile:
    """The newest table that a process knew, in its folder, so that it outlives a registry.

    A process writes it there before the table that gives one of its shards away is written to the registry. So it
    never names a shard as the process' own that has been given away, and a registry that has an older one, or none,
    gets it. One that has another of the same epoch took another process' move instead: ours never came to be.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "table.json"

    def load(self) -> ShardTable | None:
        """Return the table, None if there was none. Raises StoreError when it cannot be read."""
        try:
            return _table_of(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path} cannot be read: {error.strerror}") from error

    def save(self, table: ShardTable) -> None:
        """Replace it, durably. Takes milliseconds, and happens with a move only.

        Raises:
            StoreError: that failed, and the file is as it was.
            StoreUnavailable: it was replaced, but a crash may undo that.
        """
        temporary = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(table))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            _sync_folder(self._path.parent)
        except OSError as error:
            raise StoreUnavailable(f"{self._path} was replaced, and may come back: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def make_table(
    registry: Registry, nodes: tuple[str, ...], shards: int, *, kept: ShardTable | None = None, look_ms: int = 0
) -> ShardTable:
    """Return the system's table; make it, of these processes, if the system starts for the first time.

    A process that knew a table never makes one: it puts its own back if the registry has none, or an older one; one of
    the same epoch counts more than its own. Nor does any make one while other processes are there that start after the
    first table only: they know that there is one, and one of them puts it back.

    Args:
        registry: the system's.
        nodes: who shares the shards of a new system.
        shards: how many a new system has.
        kept: the newest one that this process knows.
        look_ms: how long to look for such processes before a table is made: as long as it takes them to register
            again in a registry that started over.

    Raises:
        StoreError: as `read_table`.
    """
    began = asyncio.get_running_loop().time()
    while True:
        table, index = await read_table(registry)
        if kept is not None and (table is None or table.epoch < kept.epoch):
            made: ShardTable = kept
        elif table is not None:
            return table
        elif asyncio.get_running_loop().time() < began + look_ms / 1000 or await _is_running(registry):
            await asyncio.sleep(LOOK_S)
            continue
        else:
            made = first_table(nodes, shards)
        try:
            await registry.put(TABLE_KEY, msgspec.json.encode(made), expect=index)
        except CasConflict:
            continue  # another process was quicker, and may have named others
        return made


async def _is_running(registry: Registry) -> bool:
    """Return whether nodes are there that do not start before there are message services."""
    for service in (SERVICE, ACCESS_SERVICE):
        if (await registry.services(service)).items:
            return True
    return False


async def replace_table(registry: Registry, table: ShardTable, *, expect: int) -> None:
    """Replace the table. Raises CasConflict when somebody else did since it was read, StoreError as `read_table`."""
    await registry.put(TABLE_KEY, msgspec.json.encode(table), expect=expect)


class ShardTables:
    """Follows the table. `run` keeps it; `table` is the newest one, None until there was one.

    Invariants:
        I1  `table` and what is in the file never become older, whatever the registry shows. Of two of one epoch the
            registry's counts: what differs from it was in the file, and was never written to the registry.
    """

    def __init__(
        self, site: Site, *, folder: Path | None = None, on_change: Callable[[ShardTable], None] | None = None
    ) -> None:
        """With a `folder` the table is kept there, and put back into a registry that lost it.

        Raises:
            StoreError: what was kept there cannot be read.
        """
        self._site = site
        self._file = TableFile(folder) if folder is not None else None
        # It counts from the first moment on: what the registry shows may be older.
        self._kept = self.table = self._file.load() if self._file is not None else None
        self._has_run = self._kept is not None
        self._is_in_doubt = False
        self._on_change = on_change
        self._looked = asyncio.Event()
        self._log = logger(node=site.name)

    @property
    def known(self) -> ShardTable:
        """The table. Raises Unavailable while there is none: the message services have not started yet."""
        if self.table is None:
            raise Unavailable("the message services have not started yet", retry_after_ms=500)
        return self.table

    async def make(self, nodes: tuple[str, ...], shards: int, *, look_ms: int) -> ShardTable:
        """Learn the system's table, or make it: see `make_table`.

        Raises:
            StoreError: as `read_table`, or it cannot be kept.
        """
        site = self._site
        is_in_doubt = self._has_run and began_to_count(site.incarnation, site.clock.realtime())
        self.learn(await make_table(site.registry, nodes, shards, kept=self.table, look_ms=look_ms))
        self.keep(self.known)
        self._is_in_doubt = is_in_doubt  # not before: processes that all start at once wait for nobody's numbers
        return self.known

    def others_in_doubt(self) -> set[str]:
        """Return the other processes with shards, if the registry seems to have started over since this one ran last.

        They may number messages under numbers that it does not know.
        """
        return {*self.table.owners} - {self._site.name} if self._is_in_doubt and self.table is not None else set()

    def learn(self, table: ShardTable) -> None:
        """Take a table that the registry has, if it is not older (I1)."""
        if self.table is None or (table.epoch >= self.table.epoch and table != self.table):
            self.table = table
            try:
                self.keep(table)
            except StoreError as error:  # what gives away a shard of ours was kept before it was written
                self._log.error("shard_table_not_kept", epoch=table.epoch, error=str(error))
            if self._on_change is not None:
                self._on_change(table)

    def keep(self, table: ShardTable) -> None:
        """Have a table in the file, before it gives one of our shards away. Raises as `TableFile.save`."""
        if self._file is not None and table != self._kept:
            self._file.save(table)
            self._kept = table

    async def wait_looked(self) -> None:
        """Return once the registry was read."""
        await self._looked.wait()

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async for view in follow(self._site.registry.scan, TABLE_KEY, self._site.clock):
            shown, index = self._take(view)
            self._looked.set()
            if self._file is not None:
                await self._put_back(shown, index)

    def _take(self, view: View[Entry]) -> tuple[ShardTable | None, int]:
        """Learn what a view shows; return it and its index, (None, 0) for no table."""
        for entry in view.items:
            if entry.key == TABLE_KEY:
                try:
                    table = _table_of(entry.value)
                except StoreError as error:
                    self._log.error("shard_table_unreadable", error=str(error))
                    return self.table, entry.index  # nobody knows what it is: it is left alone
                self.learn(table)
                return table, entry.index
        return None, 0

    async def _put_back(self, shown: ShardTable | None, index: int) -> None:
        """See to it that the registry has our table, if that is newer than what it shows."""
        while self.table is not None and (shown is None or shown.epoch < self.table.epoch):
            try:
                await replace_table(self._site.registry, self.table, expect=index)
                self._log.error("shard_table_put_back", epoch=self.table.epoch)
            except CasConflict:
                pass  # the next view shows what somebody else wrote
            except StoreError as error:
                self._log.warning("shard_table_not_put_back", error=str(error))
                await self._site.clock.sleep_until(Instant(self._site.clock.monotonic() + int(PUT_BACK_S * 1000)))
                continue
            return


def _table_of(value: bytes, where: str = TABLE_KEY) -> ShardTable:
    try:
        return _decode(value)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{where} is no table of shards: {error}") from error
