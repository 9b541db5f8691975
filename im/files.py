"""Opens the files of shards in a process' folder."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from base.clock import Clock
from base.errors import ConfigError, StoreError, StoreUnavailable
from im.core.book import LedgerSettings
from im.folders import MESSAGES, SEARCH, incoming_folder, shard_folder
from im.search.search import Search
from im.service import Opened, OpenShard
from im.store.sqlite import SqliteMessageStore

__all__ = ["opener"]


def opener(folder: Path, clock: Clock) -> OpenShard:
    """Return what opens shards in the folder; one that was moved here is put into its place first."""

    async def open_shard(shard: int, shards: int, settings: LedgerSettings, *, may_make: bool) -> Opened:
        place, arrived = shard_folder(folder, shard, shards), incoming_folder(folder, shard)
        try:
            if shards > 1 and arrived.exists():
                # Whoever dies between giving a shard away and clearing it has an old one here when it comes back.
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
                arrived.rename(place)
            if not may_make and not (place / MESSAGES).exists():
                raise StoreError(f"shard {shard} is this process' by the table, but its files are not in {folder}")
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            store = await SqliteMessageStore.open(place / MESSAGES, settings=settings)
        except (OSError, StoreUnavailable) as error:
            raise ConfigError([f"the data folder {place} cannot be used: {error}"]) from error
        try:
            search = await Search.open(place / SEARCH, store, clock)
        except BaseException:
            await store.close()
            raise
        return Opened(store, search)

    return open_shard
