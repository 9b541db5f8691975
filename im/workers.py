"""This process' worker number: taken from the registry, kept, given back; and the ids that are numbered under it.

The rules are `im.core.workers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import msgspec

from base.clock import Clock, Instant, Timestamp
from base.errors import CasConflict, StoreError, Unavailable
from base.ids import new_uuid
from base.log import logger
from base.registry import Entry, Registry
from base.site import Site
from im.core.ids import MessageIdKind, MessageIds, message_ids
from im.core.snowflake import ClockWentBack, Entropy
from im.core.workers import TERM_MS, Mark, WorkerTerm, free_workers, must_wait

__all__ = ["LeasedIds", "MessageNumbers", "WorkerLease"]

PREFIX = "im/worker/"
RENEW_MS = TERM_MS // 10
RETRY_MS = 1_000
LOOK_MS = 1_000
"""How soon a registry that lost the mark has it again."""
SET_BACK_MS = 2_000
"""A clock that went back further than this is not waited for: it was wrong before, and set right."""


class WorkerLease:
    """A standing claim to a worker number. `run` belongs into the service's TaskGroup."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        node: str,
        on_taken: Callable[[int, Timestamp], None],
        others: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Nothing is taken yet.

        Args:
            registry: has the marks.
            clock: what ids are numbered by.
            node: this process, for people.
            on_taken: gets each number that is taken, and the first time that its ids may have: number anew from then
                on. The number is another one after the first was lost.
            others: who must have marked their numbers before one is taken here, since the registry may have lost marks.
        """
        self._others = others
        self._began = clock.monotonic()
        self._registry = registry
        self._clock = clock
        self._node = node
        self._on_taken = on_taken
        self._holder = new_uuid()
        self._term: WorkerTerm | None = None
        self._taking = asyncio.Lock()
        self._index = 0
        """Of the registry's entry with our mark, as far as we know: what the next mark must replace."""
        self._is_set_back = False
        self._log = logger(node=node)

    @property
    def worker(self) -> int | None:
        """The number, None while there is none."""
        return self._term.worker if self._term is not None else None

    def is_valid(self, now: Timestamp) -> bool:
        """Return whether ids may be given now. Ask before each one, with the very time that it is numbered with."""
        return self._term is not None and self._term.covers(now)

    async def acquire(self) -> None:
        """Take the lowest number that is free, if none is held: of several calls at once the first one takes it.

        Raises:
            StoreError: the registry does not answer, or has something else where marks are.
            Unavailable: all numbers are held.
        """
        async with self._taking:
            if self._term is None:
                await self._take()

    async def _take(self) -> None:
        view = await self._registry.scan(PREFIX)
        entries = {int(entry.key.removeprefix(PREFIX)): entry for entry in view.items}
        marks = {number: _mark_of(entry) for number, entry in entries.items()}
        waited_ms = self._clock.monotonic() - self._began
        if must_wait(marks, self._others(), waited_ms=waited_ms):
            raise Unavailable("the registry lost who has which worker number", retry_after_ms=RETRY_MS)
        now = self._clock.realtime()
        for number in free_workers(marks, now):
            term = WorkerTerm(number, marks.get(number), now)
            try:
                index = await self._mark(
                    term, term.through_ms, expect=entries[number].index if number in entries else 0
                )
            except CasConflict:
                continue  # somebody else was quicker
            self._term, self._index = term, index
            self._log.info("worker_taken", worker=number)
            self._on_taken(number, term.not_before_ms)
            return
        raise Unavailable("every worker number is held", retry_after_ms=RETRY_MS)

    def set_back(self) -> None:
        """The clock was set back by much: take another number, under which no ids of later times were given."""
        self._is_set_back = True

    async def run(self) -> None:
        """Keep the number until cancelled, and take another one if it is lost."""
        renew_at = self._clock.monotonic()
        while True:
            wait_ms = LOOK_MS
            if self._is_set_back and self._term is not None:
                self._log.warning("clock_set_back", worker=self.worker)
                self._term = None  # it rests until its mark is past
            self._is_set_back = False
            try:
                if self._term is not None and (self._clock.monotonic() >= renew_at or await self._is_lost(self._term)):
                    await self._renew(self._term)
                    renew_at = Instant(self._clock.monotonic() + RENEW_MS)
                if self._term is None:
                    await self.acquire()
            except (StoreError, Unavailable) as error:
                self._log.warning("worker_not_renewed", worker=self.worker, error=str(error))
                wait_ms = RETRY_MS
            await self._clock.sleep_until(Instant(self._clock.monotonic() + wait_ms))

    async def release(self) -> None:
        """Give no more ids, and let the next holder number from after the last one on."""
        term, self._term = self._term, None
        if term is not None:
            try:
                await self._mark(term, term.used_through(), expect=self._index)
            except StoreError as error:  # the number rests until its mark is past
                self._log.debug("worker_not_released", worker=term.worker, error=str(error))

    async def _is_lost(self, term: WorkerTerm) -> bool:
        """Return whether the registry has no mark of the number, or another one than ours."""
        entry = await self._registry.get(_key(term.worker))
        return entry is None or entry.index != self._index

    async def _renew(self, term: WorkerTerm) -> None:
        through = term.next_through(self._clock.realtime())
        try:
            self._index = await self._mark(term, through, expect=self._index)
        except CasConflict:
            entry = await self._registry.get(_key(term.worker))
            if entry is None:
                # The registry lost its marks. The number is still ours, and better marked again than given to others.
                self._index = await self._mark(term, through, expect=0)
            elif (mark := _mark_of(entry)).holder == self._holder:
                # An earlier mark of ours, whose answer was lost.
                self._index, through = entry.index, Timestamp(mark.through_ms)
            else:
                self._term = None
                self._log.warning("worker_lost", worker=term.worker)
                return
        term.extend(through)

    async def _mark(self, term: WorkerTerm, through: Timestamp, *, expect: int) -> int:
        mark = Mark(self._holder, self._node, through)
        return await self._registry.put(_key(term.worker), msgspec.json.encode(mark), expect=expect)


class LeasedIds:
    """Snowflakes, for as long as `lease` is valid. Implements `MessageIds`."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        node: str,
        entropy: Entropy,
        others: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`lease` is to be acquired, run and released by the owner; `others` as of `WorkerLease`."""
        self._entropy = entropy
        self._ids: MessageIds | None = None
        self.lease = WorkerLease(registry, clock, node=node, on_taken=self._taken, others=others)

    def next(self, now_ms: Timestamp, /) -> int | str | ClockWentBack:
        """Return the next id.

        Raises:
            Unavailable: there is no worker number, or the registry was away for so long that it may be another's.
        """
        if self._ids is None or not self.lease.is_valid(now_ms):
            raise Unavailable("no worker number is held to give message ids with", retry_after_ms=RETRY_MS)
        made = self._ids.next(now_ms)
        if isinstance(made, ClockWentBack) and made.by_ms > SET_BACK_MS:
            self.lease.set_back()
        return made

    def _taken(self, worker: int, not_before_ms: Timestamp) -> None:
        self._ids = message_ids("snowflake", entropy=self._entropy, worker=worker, not_before_ms=not_before_ms)


class MessageNumbers:
    """Ids of messages, of the kind that is configured; those that need a worker number hold one. A `MessageIds`."""

    def __init__(
        self, kind: MessageIdKind, site: Site, *, entropy: Entropy, others: Callable[[], Collection[str]] = tuple
    ) -> None:
        """`acquire` comes before the first id; `others` as of `WorkerLease`."""
        self._lease: WorkerLease | None = None
        self._ids: MessageIds
        if kind == "snowflake":
            leased = LeasedIds(site.registry, site.clock, node=site.name, entropy=entropy, others=others)
            self._ids, self._lease = leased, leased.lease
        else:
            self._ids = message_ids(kind, entropy=entropy, worker=0)

    def next(self, now_ms: Timestamp, /) -> int | str | ClockWentBack:
        """Return the next id. Raises Unavailable as `LeasedIds` does."""
        return self._ids.next(now_ms)

    async def acquire(self) -> None:
        """Take a worker number, if one is needed. Raises as `WorkerLease.acquire` does."""
        if self._lease is not None:
            await self._lease.acquire()

    async def run(self) -> None:
        """Keep it until cancelled."""
        if self._lease is not None:
            await self._lease.run()

    async def release(self) -> None:
        """Give it back."""
        if self._lease is not None:
            await self._lease.release()


def _key(worker: int) -> str:
    return f"{PREFIX}{worker:04}"


def _mark_of(entry: Entry) -> Mark:
    try:
        return msgspec.json.decode(entry.value, type=Mark)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{entry.key} is no mark of a worker number: {error}") from error
