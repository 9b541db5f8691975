"""Commits in groups: what stands between many callers and the one `execute` that may run at a time.

Making one message durable costs a wait for the disk; making two hundred durable costs the same wait. While a group
is being committed the next one gathers, so that nothing ever waits on purpose: an idle writer commits a lone command
at once, a busy one commits as many as came meanwhile. What waits, waits in lanes (`core/lanes`): a group takes from
all of them in turn, so that whoever sends much delays nobody else.

A store that has work of its own, such as a fan-out that goes on, is called with no commands when none wait.

Invariants:
    I1  Commands of a lane reach the store in the order of `enqueue`, one group at a time, each exactly once.
    I2  A caller that stops waiting changes nothing for the others: its command is still carried out, in its turn.
    I3  `on_committed` gets the groups in order of commit, before any caller of the group is told.
    I4  Every caller gets an answer: the outcome, or an error after which the outcome is unknown and the same key may be
        sent again.
    I5  At most `waiting_max` commands wait; whatever comes then is refused at once.

It does not retry: a caller that may act on a `StoreUnavailable` knows better when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from base.clock import Clock, Instant
from base.errors import Draining, Overloaded, RoadsteadError, StoreUnavailable
from im.core.commands import Command, Executed, Outcome
from im.core.lanes import LaneKey, Lanes
from im.ports import MessageStore

__all__ = ["GROUP_MAX", "Commit", "GroupCommit"]

GROUP_MAX = 256
"""Commands in one `execute`. More make the callers of a busy group wait longer for little gain."""

WORK_RETRY_MS = 500
"""From a failure until the store's own work is tried again."""


Ticket = Callable[[Outcome | RoadsteadError], None]


class Commit:
    """A group that was committed: what the store did, for how many commands, in how many ms."""

    __slots__ = ("_group", "commands", "executed", "took_ms")

    def __init__(self, group: list[tuple[Command, Ticket]], executed: Executed, took_ms: int) -> None:
        self._group = group
        self.executed = executed
        self.commands = len(group)
        self.took_ms = took_ms

    def tell(self) -> None:
        """Tell the group's callers their outcomes; nothing when they have been told."""
        group, self._group = self._group, []
        for (_, told), outcome in zip(group, self.executed.outcomes, strict=False):
            told(outcome)


class GroupCommit:
    """The queue in front of a store. `run` belongs into the service's TaskGroup."""

    def __init__(
        self,
        store: MessageStore,
        clock: Clock,
        *,
        on_committed: Callable[[Commit], bool | None],
        on_unsure: Callable[[], None] = lambda: None,
        lane_key: LaneKey = "sender",
        group_max: int = GROUP_MAX,
        waiting_max: int = 10_000,
        lane_max: int | None = None,
        retry_after_ms: int = 500,
    ) -> None:
        """Take a store that nobody else changes.

        Args:
            store: is not closed here.
            clock: to time commits by.
            on_committed: gets each group; it must not block, and what it raises ends `run`. If it returns true, it has
                the callers told a little later, by `Commit.tell`: what they are told then leaves with other things.
            on_unsure: called when it is not known whether a group was committed, before the next one is begun.
            lane_key: what has commands keep their order, see `core/lanes`.
            group_max: commands in one `execute`.
            waiting_max: commands that may wait, beside those in the running one.
            lane_max: commands of one lane that may wait; None: as many as of all.
            retry_after_ms: when a refused caller may come again.
        """
        assert group_max > 0
        assert waiting_max > 0
        self._store = store
        self._clock = clock
        self._on_committed = on_committed
        self._on_unsure = on_unsure
        self._group_max = group_max
        self._waiting_max = waiting_max
        self._retry_after_ms = retry_after_ms
        self._lanes: Lanes[Ticket] = Lanes(lane_key, waiting_max=waiting_max, lane_max=lane_max)
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._is_running = False
        self._is_closing = False
        self._began_at: Instant | None = None
        """When the running commit began."""
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def waiting(self) -> int:
        """How many commands wait for their group."""
        return len(self._lanes)

    def running_ms(self, now: Instant) -> int:
        """Return how long the running commit has taken until now, 0 if none runs."""
        return now - self._began_at if self._began_at is not None else 0

    async def settle(self) -> None:
        """Return when the running commit has been told, if there is one: what can be read now has been told then."""
        await self._settled.wait()

    async def submit(self, command: Command) -> Outcome:
        """Return the command's outcome once it is durable.

        Raises:
            Overloaded: too many wait; nothing was written.
            Draining: the writer is closing; nothing was written.
            StoreUnavailable: the outcome is unknown.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def told(answer: Outcome | RoadsteadError) -> None:
            if outcome.done():
                return  # its caller was cancelled
            if isinstance(answer, RoadsteadError):
                outcome.set_exception(answer)
            else:
                outcome.set_result(answer)

        self.enqueue(command, told)
        return await outcome

    def enqueue(self, command: Command, told: Ticket) -> None:
        """Take the command's place in its lane now; `told` gets its outcome, once, and must not raise.

        Raises as `submit` does when there is no place: `told` is not called then.
        """
        if self._is_closing:
            raise Draining("this node takes no new messages", retry_after_ms=self._retry_after_ms)
        if not self._lanes.put(command, told):
            raise Overloaded(
                "too many messages wait to be stored", what="append_queue", retry_after_ms=self._retry_after_ms
            )
        self._wake.set()

    async def run(self) -> None:
        """Commit group after group until `close`. Runs once."""
        self._is_running = True
        group: list[tuple[Command, Ticket]] = []
        try:
            while self._lanes or not self._is_closing:
                group = self._lanes.take(self._group_max)
                if group or self._store.has_work:
                    if not await self._commit(group) and not group:
                        await self._rest()
                    group = []
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            # Nobody waits for ever when this is cancelled or ends with a defect (I4).
            self._is_closing = True
            self._is_running = False
            _fail(group, StoreUnavailable("the writer stopped; the outcome is unknown"))
            self._fail_waiting("the writer stopped; nothing was written")
            self._stopped.set()

    async def close(self) -> None:
        """Refuse new commands and return when those that wait are carried out. Idempotent.

        Without a `run` nobody would do it: then they fail.
        """
        self._is_closing = True
        self._wake.set()
        if self._is_running:
            await self._stopped.wait()
        else:
            self._fail_waiting("the writer does not run; nothing was written")

    async def _commit(self, group: list[tuple[Command, Ticket]]) -> bool:
        """Return whether it succeeded; who waits for it has been told then, in either case."""
        self._began_at = began_at = self._clock.monotonic()
        self._settled.clear()
        try:
            executed = await self._store.execute([command for command, _ in group])
            commit = Commit(group, executed, self._clock.monotonic() - began_at)
            is_told_later = self._on_committed(commit)
        except StoreUnavailable as error:
            self._on_unsure()
            _fail(group, error)
            return False
        finally:
            self._began_at = None
            self._settled.set()
        if not is_told_later:
            commit.tell()
        return True

    async def _rest(self) -> None:
        """Wait a while, but hold up neither a command that comes nor `close`."""
        self._wake.clear()
        if self._lanes or self._is_closing:
            return
        try:
            async with asyncio.timeout(WORK_RETRY_MS / 1000):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _fail_waiting(self, message: str) -> None:
        while group := self._lanes.take(self._group_max):
            _fail(group, StoreUnavailable(message))


def _fail(group: list[tuple[Command, Ticket]], error: StoreUnavailable) -> None:
    for _, told in group:
        told(error)
