"""The newest partition table that a process has seen, wherever it came from: the registry, or a peer that was ahead.

Under `status/` the registry keeps what all status nodes agree on: the table, who leads, and what operators want. All of
it is followed in one read that waits for changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache

import msgspec

from base.errors import StoreError
from base.ids import Epoch, NodeId
from base.log import logger
from base.registry import Entry, View, follow
from base.site import Site
from status.core.partitions import PartitionTable, TableDiff, diff, patched

__all__ = ["LAST_KEY", "LEADER_KEY", "PREFIX", "TABLE_KEY", "WISH_KEY", "TableFollower", "Wish", "decode_table"]
__all__ += ["encode_table"]

PREFIX = "status/"
TABLE_KEY = "status/table"
LEADER_KEY = "status/leader"
LAST_KEY = "status/last_leader"
"""Who led last, or leads."""
WISH_KEY = "status/wish"
TABLES_KEPT = 32
"""Older tables to tell differences from. Who is further behind reads the registry."""


class Wish(msgspec.Struct, frozen=True):
    """What operators want, for whichever node leads. `weights` None: as the table has it.

    The table has all of it that a leader took up: a registry that lost it gets back what the leader remembers.

    Moves that began at the epoch `abort` or before are rolled back where they can be.
    """

    weights: dict[NodeId, int] | None = None
    is_paused: bool = False
    abort: Epoch = Epoch(0)


class _Head(msgspec.Struct):
    """As much of a table as tells whether it is newer."""

    epoch: Epoch


_head_decoder = msgspec.msgpack.Decoder(_Head)


def encode_table(table: PartitionTable) -> bytes:
    """Return the table as the registry keeps it."""
    return msgspec.msgpack.encode(table)


@lru_cache(maxsize=8)
def decode_table(value: bytes) -> PartitionTable:
    """Return the table that the registry has. All nodes of one process decode it once."""
    table = msgspec.msgpack.decode(value, type=PartitionTable)
    table.check_structure()
    return table


class TableFollower:
    """See the module. `run` follows the registry; `offer` takes what came another way."""

    def __init__(self, site: Site) -> None:
        self.table: PartitionTable | None = None
        self.leader: NodeId | None = None
        self.is_vacant = False
        """Whether nobody leads: neither `leader`, which led last, nor anybody else."""
        self.wish = Wish()
        self.wish_index = 0
        """The registry's index of the wish, to change it by compare-and-set."""
        self.is_registry_reachable = True
        """Whether the registry answered when it was last read; a read that waits for changes counts when it ends."""
        self._site = site
        self._recent: dict[Epoch, PartitionTable] = {}
        self._diffs: dict[Epoch, TableDiff] = {}
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[PartitionTable], None]] = []
        self._wish_listeners: list[Callable[[], None]] = []
        self._vacancy_listeners: list[Callable[[], None]] = []
        self._older_listeners: list[Callable[[], None]] = []
        self._log = logger(node=site.name)

    def on_wish(self, listener: Callable[[], None]) -> None:
        """Call the listener each time the operators' wish was read anew."""
        self._wish_listeners.append(listener)

    def on_vacancy(self, listener: Callable[[], None]) -> None:
        """Call the listener each time it was read that nobody leads any more."""
        self._vacancy_listeners.append(listener)

    def on_older(self, listener: Callable[[], None]) -> None:
        """Call the listener each time the registry was read without the newest table: lost, or not yet seen."""
        self._older_listeners.append(listener)

    def on_change(self, listener: Callable[[PartitionTable], None]) -> None:
        """Call the listener with each newer table, at once."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async for view in follow(self._scan, PREFIX, self._site.clock, on_outage=self._outage):
            self._take(view)

    async def read(self) -> None:
        """Read the registry now. Raises StoreUnavailable."""
        self._take(await self._site.registry.scan(PREFIX))

    async def wait_newer(self, epoch: int) -> PartitionTable:
        """Return a table newer than the epoch, waiting for one."""
        while self.table is None or self.table.epoch <= epoch:
            await self._changed.wait()
        return self.table

    def offer(self, table: PartitionTable) -> bool:
        """Take a table if it is newer; return whether it was."""
        if self.table is not None and table.epoch <= self.table.epoch:
            return False
        self.table = table
        self._recent[table.epoch] = table
        while len(self._recent) > TABLES_KEPT:
            del self._recent[next(iter(self._recent))]
        self._diffs.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(table)
        return True

    def offer_diff(self, change: TableDiff | None) -> None:
        """Take the table that a difference to the present one leads to, if it does."""
        newer = patched(self.table, change) if change is not None and self.table is not None else None
        if newer is not None:
            self.offer(newer)

    def diff_from(self, epoch: Epoch) -> TableDiff | None:
        """Return what leads from the table of an epoch to the present one, None where that is not known."""
        old = self._recent.get(epoch)
        if self.table is None or old is None or old is self.table:
            return None
        known = self._diffs.get(epoch)
        if known is None:
            known = self._diffs[epoch] = diff(old, self.table)
        return known

    async def _scan(self, prefix: str, /, *, after: int, wait_ms: int) -> View[Entry]:
        """Read the registry; after an outage without waiting for a change, as its end is news too."""
        view = await self._site.registry.scan(prefix, after=after, wait_ms=wait_ms if self.is_registry_reachable else 0)
        self.is_registry_reachable = True
        return view

    def _outage(self, error: StoreError) -> None:
        if self.is_registry_reachable:
            self._log.warning("table_not_followed", error=str(error))
        self.is_registry_reachable = False

    def _take(self, view: View[Entry]) -> None:
        if all(entry.key != WISH_KEY for entry in view.items):
            self.wish_index = 0  # if the registry lost it, it is good until the leader has put it back
        epoch = Epoch(0)
        for entry in view.items:
            if entry.key == TABLE_KEY:
                epoch = _head_decoder.decode(entry.value).epoch
                if self.table is not None and epoch <= self.table.epoch:
                    continue  # it came another way, and to unpack it costs ten times as much as to see that
                table = decode_table(entry.value)
                if self.offer(table):
                    self._log.debug("table_adopted", epoch=table.epoch, moves=len(table.moves))
            elif entry.key == LEADER_KEY:
                self.leader = NodeId(entry.value.decode())
                self.is_vacant = entry.session is None
                for listener in self._vacancy_listeners if self.is_vacant else ():
                    listener()
            elif entry.key == WISH_KEY:
                self._take_wish(entry)
        for listener in self._older_listeners if self.table is not None and epoch < self.table.epoch else ():
            listener()

    def _take_wish(self, entry: Entry) -> None:
        if entry.index != self.wish_index:
            self.wish, self.wish_index = msgspec.msgpack.decode(entry.value, type=Wish), entry.index
            for listener in self._wish_listeners:
                listener()
