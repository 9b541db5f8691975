"""Search in conversations, as it is asked for: the index together with what the index has not read yet.

The index follows the store's log in a thread of its own, some hundred milliseconds behind, so no send waits for it.
A search reads the rest of the log itself, and what that says replaces what the index says: a message is found, and a
recalled one is not found any more, as soon as that is acknowledged.

Invariants:
    I1  `find` returns what a scan of the whole conversation would, as of some moment after it was called.
    I2  The index is only ever fed with this store's log: one that read another, or further than this one goes, is
        made anew.
    I3  After `close` no thread and no file is left open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from base.clock import Clock, Instant
from base.errors import DeadlineExceeded, NotReady, Overloaded, RoadsteadError, StoreUnavailable
from base.log import logger
from im.core.model import Form, Message
from im.core.searchable import TEXT_KIND, Query, matches, parse, searchable
from im.search.index import SEQ_END, Found, Position, SearchIndex, remove
from im.store.lanes import SqliteThread

__all__ = ["Log", "Search", "SearchSettings"]

TAIL_PAGE = 1_000
"""Entries that a search reads at once."""


class Log(Protocol):
    """What search needs of a message store."""

    @property
    def epoch(self) -> str:
        """Name of the store's life."""
        ...

    async def log(self, *, after: int, limit: int) -> Sequence[Message]:
        """Return the next committed entries with `n > after`, ascending; fewer than `limit` only at the end."""
        ...


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times and bounds."""

    page_max: int = 250
    """Entries that are indexed at once: the event loop waits for no more. Larger pages are hardly cheaper."""
    idle_ms: int = 200
    """Between two looks at the log. A shorter one finds nothing sooner: searches read the rest, which is less then."""
    retry_ms: int = 1_000
    """After a failure, and while the machine is busy."""
    tail_max: int = 10_000
    """Entries that a search reads itself. An index that is further behind is not asked: it is being built."""
    deadline_ms: int = 2_000
    waiting_max: int = 100
    """Searches that may run or wait; one more is refused."""


class _Tail:
    """What the log says of one conversation after the index's position."""

    def __init__(self, cid: int) -> None:
        self._cid = cid
        self._bodies: dict[int, tuple[str | None, bytes]] = {}
        """By the message's seq: its kind, if the message is in the tail itself, and its newest body."""

    @property
    def seqs(self) -> list[int]:
        """The messages whose texts are to be had here."""
        return list(self._bodies)

    @property
    def kinds_wanted(self) -> list[int]:
        """The messages that only the index knows the kind of."""
        return [seq for seq, (kind, _) in self._bodies.items() if kind is None]

    def take(self, messages: Sequence[Message]) -> None:
        """Take the next entries of the log."""
        for message in messages:
            if message.cid != self._cid:
                continue
            if message.form == Form.MESSAGE:
                self._bodies[message.seq] = (message.kind, message.body)
            elif message.form in {Form.EDIT, Form.RECALL}:
                kind, _ = self._bodies.get(message.ref, (None, b""))
                self._bodies[message.ref] = (kind, message.body)

    def search(self, query: Query, kinds: dict[int, bool], *, first_seq: int, end_seq: int) -> list[int]:
        """Return the messages that match. `kinds`: whether those wanted are text, where they exist."""
        found: list[int] = []
        for seq, (kind, body) in self._bodies.items():
            if not first_seq <= seq < end_seq or (kind is None and seq not in kinds):
                continue
            text = searchable((TEXT_KIND if kinds[seq] else "") if kind is None else kind, body)
            if matches(text, query):
                found.append(seq)
        return found


class Search:
    """The index of a store, its follower, and searches in both. Made by `open`."""

    def __init__(self, log: Log, clock: Clock, settings: SearchSettings, *, path: Path) -> None:
        """Use `open`."""
        self._log = log
        self._clock = clock
        self._settings = settings
        self._path = path
        self._feeding = SqliteThread("search-feed", what="the search index")
        self._reading = SqliteThread("search-read", what="the search")
        self._feeder: SearchIndex | None = None
        self._reader: SearchIndex | None = None
        self._through = 0
        self._seen = 0
        self._searches = 0
        self._logger = logger()

    @classmethod
    async def open(cls, path: Path, log: Log, clock: Clock, settings: SearchSettings | None = None) -> Search:
        """Open the index file, or make it; its folder must exist. The file can be deleted while it is not open.

        Raises:
            StoreUnavailable: the file cannot be opened or written, or the log cannot be read.
        """
        search = cls(log, clock, settings or SearchSettings(), path=path)
        try:
            await search._open()
        except BaseException:
            await search.close()
            raise
        return search

    @property
    def lag(self) -> int:
        """How far the index is behind the newest entry that was seen, in steps of `n`."""
        return self._seen - self._through

    async def find(
        self, cid: int, query: str, *, first_seq: int = 1, last_seq: int = 0, before: int = 0, limit: int
    ) -> list[int]:
        """Return the seqs of the newest messages of the conversation that match, newest first.

        Args:
            cid: the conversation; an unknown one has nothing.
            query: words, see `im.core.searchable`.
            first_seq: the first entry that the user may see.
            last_seq: the last one; 0: no end.
            before: only messages before this one; 0: no bound.
            limit: how many at most.

        Raises:
            BadRequest: the query asks for nothing that can be searched for.
            NotReady: the index is being built, and too far behind.
            Overloaded: too many searches wait.
            DeadlineExceeded: the search took too long.
            StoreUnavailable: the index or the log cannot be read.
        """
        assert limit > 0
        parsed = parse(query)
        end_seq = min(last_seq + 1 if last_seq else SEQ_END, before or SEQ_END, SEQ_END)  # may be beyond 64 bits
        if first_seq >= end_seq:
            return []
        if self._searches >= self._settings.waiting_max:
            raise Overloaded("too many searches wait", what="searches", retry_after_ms=self._settings.retry_ms)
        self._searches += 1
        try:
            async with asyncio.timeout(self._settings.deadline_ms / 1000):
                return await self._find(cid, parsed, first_seq, end_seq, limit)
        except TimeoutError as error:
            raise DeadlineExceeded("the search took too long") from error
        finally:
            self._searches -= 1

    async def run(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Feed the index until cancelled.

        It takes at most half of a thread's time, and next to none while `is_busy`, unless searches would have to
        read too much then.
        """
        settings = self._settings
        while True:
            began = self._clock.monotonic()
            if is_busy() and self.lag < settings.tail_max // 2:
                # Only looks how far behind it is.
                settled_ms = settings.retry_ms
                work = self._look()
            else:
                settled_ms = settings.idle_ms
                work = self._step()
            try:
                is_more = await work
            except RoadsteadError as error:
                self._logger.warning("search_index_failed", error=str(error))
                settled_ms = settings.retry_ms
                is_more = False
            now = self._clock.monotonic()
            pause_ms = min(now - began, settled_ms) if is_more else settled_ms
            await self._clock.sleep_until(Instant(now + max(pause_ms, 1)))

    async def close(self) -> None:
        """Wait for what was begun, then close files and threads. Idempotent."""
        feeder, self._feeder = self._feeder, None
        reader, self._reader = self._reader, None
        try:
            await self._reading.end(reader)
        finally:
            await self._feeding.end(feeder)  # the last one to leave copies the log into the file

    async def _open(self) -> None:
        epoch = self._log.epoch
        self._feeder = await self._feeding.call(lambda: SearchIndex.open(self._path, epoch))
        if not await self._is_of_this_log(self._feeder.position):
            # The store was put back to an earlier state: what came after it must not be found.
            await self._feeding.call(self._feeder.close)
            self._feeder = None
            await self._feeding.call(lambda: remove(self._path))
            self._feeder = await self._feeding.call(lambda: SearchIndex.open(self._path, epoch))
        self._reader = await self._reading.call(lambda: SearchIndex.open(self._path, epoch))
        self._through = self._seen = self._feeder.position.n

    async def _is_of_this_log(self, position: Position) -> bool:
        if not position.n:
            return True
        page = await self._log.log(after=position.n - 1, limit=1)
        return bool(page) and (page[0].n, str(page[0].mid)) == (position.n, position.mid)

    async def _step(self) -> bool:
        """Feed the index with the log's next page; return whether there is more."""
        feeder = self._feeder
        if feeder is None:
            raise StoreUnavailable("the search index is closed")
        page = await self._log.log(after=self._through, limit=self._settings.page_max)
        if page:
            self._seen = max(self._seen, page[-1].n)
            await self._feeding.call(lambda: feeder.feed(page))
            self._through = page[-1].n
        return len(page) == self._settings.page_max

    async def _look(self) -> bool:
        """See how far the log goes, up to a page beyond what was seen; return that nothing is to be hurried for."""
        page = await self._log.log(after=self._seen, limit=self._settings.page_max)
        if page:
            self._seen = page[-1].n
        return False

    async def _find(self, cid: int, query: Query, first_seq: int, end_seq: int, limit: int) -> list[int]:
        deadline = self._clock.monotonic() + self._settings.deadline_ms
        # The tail comes first: what is fed in between is in the tail or in the index, or in both.
        tail = await self._read_tail(cid)
        reader = self._reader
        if reader is None:
            raise StoreUnavailable("the search index is closed")

        def search() -> Found:
            return reader.search(
                cid,
                query,
                first_seq=first_seq,
                end_seq=end_seq,
                limit=limit + len(tail.seqs),
                kinds_of=tail.kinds_wanted,
                is_late=lambda: self._clock.monotonic() > deadline,
            )

        found = await self._reading.call(search)
        covered = set(tail.seqs)
        seqs = [seq for seq in found.seqs if seq not in covered]
        seqs += tail.search(query, found.kinds, first_seq=first_seq, end_seq=end_seq)
        return sorted(seqs, reverse=True)[:limit]

    async def _read_tail(self, cid: int) -> _Tail:
        tail = _Tail(cid)
        after = self._through
        left = self._settings.tail_max
        while left > 0:
            limit = min(left, TAIL_PAGE)
            page = await self._log.log(after=after, limit=limit)
            tail.take(page)
            if page:
                after = page[-1].n
                self._seen = max(self._seen, after)
            if len(page) < limit:
                return tail
            left -= limit
        raise NotReady("the search index is being built", retry_after_ms=self._settings.retry_ms)
