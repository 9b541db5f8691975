"""Commits in groups: what stands between many callers and the one `append` that may run at a time.

Making one message durable costs a wait for the disk; making two hundred durable costs the same wait. While a group
is being committed the next one gathers, so that nothing ever waits on purpose: an idle writer commits a lone message
at once, a busy one commits as many as came meanwhile.

Invariants:
    I1  Drafts reach the store in the order of `enqueue`, one group at a time, each exactly once.
    I2  A caller that stops waiting changes nothing for the others: its draft is still stored, in its turn.
    I3  `on_committed` gets the groups in order of commit, before any caller of the group is told.
    I4  Every caller gets an answer: the outcome, or an error after which the outcome is unknown and the same key may be
        sent again.
    I5  At most `waiting_max` drafts wait; whatever comes then is refused at once.

It does not retry: a caller that may act on a `StoreUnavailable` knows better when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from base.errors import Draining, Overloaded, StoreUnavailable
from im.ports import Appended, Draft, KeyConflict, MessageStore

__all__ = ["GroupCommit"]

Outcome = Appended | KeyConflict
Waiting = tuple[Draft, "asyncio.Future[Outcome]"]


class GroupCommit:
    """The queue in front of a store. `run` belongs into the service's TaskGroup."""

    def __init__(
        self,
        store: MessageStore,
        *,
        on_committed: Callable[[list[Appended]], None],
        group_max: int = 256,
        waiting_max: int = 10_000,
        retry_after_ms: int = 500,
    ) -> None:
        """Take a store that nobody else appends to.

        Args:
            store: is not closed here.
            on_committed: gets what became durable, repeats included, once for each group that has any; it must not
                block, and what it raises ends `run`.
            group_max: drafts in one `append`. More make the callers of a busy group wait longer for little gain.
            waiting_max: drafts that may wait, beside those in the running append.
            retry_after_ms: when a refused caller may come again.
        """
        assert group_max > 0
        assert waiting_max > 0
        self._store = store
        self._on_committed = on_committed
        self._group_max = group_max
        self._waiting_max = waiting_max
        self._retry_after_ms = retry_after_ms
        self._waiting: list[Waiting] = []
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._is_running = False
        self._is_closing = False

    @property
    def waiting(self) -> int:
        """How many drafts wait for their group."""
        return len(self._waiting)

    async def submit(self, draft: Draft) -> Outcome:
        """Return once the draft is durable, with its place.

        Raises:
            Overloaded: too many wait; nothing was written.
            Draining: the writer is closing; nothing was written.
            StoreUnavailable: the outcome is unknown.
        """
        return await self.enqueue(draft)

    def enqueue(self, draft: Draft) -> asyncio.Future[Outcome]:
        """Take the draft's place in the order now and return its outcome as a future; raises as `submit` does."""
        if self._is_closing:
            raise Draining("this node takes no new messages", retry_after_ms=self._retry_after_ms)
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded(
                "too many messages wait to be stored", what="append_queue", retry_after_ms=self._retry_after_ms
            )
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((draft, outcome))
        self._wake.set()
        return outcome

    async def run(self) -> None:
        """Commit group after group until `close`. Runs once."""
        self._is_running = True
        group: list[Waiting] = []
        try:
            while self._waiting or not self._is_closing:
                if self._waiting:
                    group = self._waiting[: self._group_max]
                    del self._waiting[: self._group_max]
                    await self._commit(group)
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            # Nobody waits for ever when this is cancelled or ends with a defect (I4).
            self._is_closing = True
            self._is_running = False
            _fail(group + self._waiting, StoreUnavailable("the writer stopped; the outcome is unknown"))
            self._waiting.clear()
            self._stopped.set()

    async def close(self) -> None:
        """Refuse new drafts and return when those that wait are committed. Idempotent.

        Without a `run` nobody would commit them: then they fail.
        """
        self._is_closing = True
        self._wake.set()
        if self._is_running:
            await self._stopped.wait()
        else:
            _fail(self._waiting, StoreUnavailable("the writer does not run; nothing was written"))
            self._waiting.clear()

    async def _commit(self, group: list[Waiting]) -> None:
        try:
            outcomes = await self._store.append([draft for draft, _ in group])
        except StoreUnavailable as error:
            _fail(group, error)
            return
        appended = [outcome for outcome in outcomes if isinstance(outcome, Appended)]
        if appended:
            self._on_committed(appended)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if not future.done():  # its caller was cancelled
                future.set_result(outcome)


def _fail(group: list[Waiting], error: StoreUnavailable) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)
