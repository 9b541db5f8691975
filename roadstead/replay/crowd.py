"""All users of a replay, or a part of them: they follow their scripts at once, and then everything is asked for.

Several processes may have a part each: whoever waits for a message waits until its own device has it, so that the parts
need nothing of each other, but that nobody asks before all are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import xxhash

from base.clock import Clock, Instant
from roadstead.replay.core.figures import Happened
from roadstead.replay.core.plan import Message, Plan
from roadstead.replay.core.proof import Entry, Place, Seen
from roadstead.replay.person import Actor

__all__ = ["Crowd", "part_of"]

IN_FLIGHT = 8
"""Most steps of one user that are under way: of several conversations. In one of them each waits for the one before."""

STALL_S = 60.0
"""After so long without any acknowledgement, when all is due, nobody waits any longer."""
LOOK_S = 0.2
CLOSING_AT_ONCE = 48
"""Users who come in the end, at a time."""
CLOSE_S = 180.0
"""How long all of them together may take, to be given everything and to ask."""


def part_of(user: str, parts: int) -> int:
    """Return in which part of several a user is."""
    return xxhash.xxh3_64_intdigest(user.encode()) % parts


class Crowd:
    """See the module. `seen` and `happened` are what came of it."""

    tasks: asyncio.TaskGroup
    """Of whatever runs beside the scripts; there while `run` runs."""

    def __init__(
        self,
        plan: Plan,
        *,
        schedulers: Sequence[str],
        credential: str,
        clock: Clock,
        in_flight: int = IN_FLIGHT,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Nobody comes before `run`.

        Args:
            plan: the script of all.
            schedulers: their base URLs; a user asks always the same one.
            credential: an API key, which may act for users.
            clock: the time of what is noted.
            in_flight: how many steps of one user may be under way; they begin in order.
            part: which users these are, of so many `parts`.
            parts: see `part`.
        """
        self.seen = Seen()
        self.happened = Happened()
        self.credential = credential
        self.in_flight = in_flight
        self._plan = plan
        self._schedulers = schedulers
        self._clock = clock
        self._began_ms = clock.monotonic()
        self._progress_ms = 0
        self._begun: dict[str, int] = {}
        self._read: set[int] = set()
        mine = [one for one in plan.people if part_of(one.user, parts) == part]
        self._actors = [Actor(self, one) for one in mine]
        self.left = sum(step.message is not None for one in mine for it in one.stretches for step in it.steps)
        """Messages that are not acknowledged yet."""

    async def run(self, *, began_ms: Instant, everybody_is_done: Callable[[], Awaitable[None]]) -> None:
        """Have everybody follow its script, and ask everybody in the end.

        Args:
            began_ms: when the replay begins, by the clock.
            everybody_is_done: returns when nobody of the other parts follows its script any more.
        """
        self._began_ms = began_ms
        async with asyncio.TaskGroup() as self.tasks:
            await self._follow_scripts()
            await everybody_is_done()
            await self._close()
        for actor in self._actors:
            for device in actor.devices:
                self.seen.devices[actor.person.user, device.name] = device.entries

    async def _follow_scripts(self) -> None:
        """Return when all are done, or nothing goes on any more: what is missing then is found by the proof."""
        scripts = {self.tasks.create_task(actor.run()) for actor in self._actors}
        while scripts:
            done, scripts = await asyncio.wait(scripts, timeout=LOOK_S)
            for one in done:
                if not one.cancelled():
                    one.result()
            if self.now_ms() - max(self._progress_ms, self._plan.end_ms) > STALL_S * 1_000:
                for one in scripts:
                    one.cancel()

    async def _close(self) -> None:
        room = asyncio.Semaphore(CLOSING_AT_ONCE)
        give_up = asyncio.get_running_loop().time() + CLOSE_S
        expected = self._plan.expected()

        async def close(actor: Actor) -> None:
            async with room:
                await actor.close(expected=expected[actor.person.user], give_up=give_up)

        async with asyncio.TaskGroup() as tasks:
            for actor in self._actors:
                tasks.create_task(close(actor))

    # ---------------------------------------------------------------- for actors

    def now_ms(self) -> int:
        """Return the time since the replay began."""
        return self._clock.monotonic() - self._began_ms

    async def until(self, at_ms: int) -> None:
        """Return when it is that time, at once if it was."""
        left_ms = at_ms - self.now_ms()
        if left_ms > 0:
            await asyncio.sleep(left_ms / 1_000)

    def scheduler_of(self, user: str) -> str:
        """Return the scheduler that a user asks."""
        return self._schedulers[part_of(user, len(self._schedulers))]

    def begun(self, message: Message) -> int:
        """Note that a message is about to be sent, and return when."""
        now_ms = self._begun[message.key] = self.now_ms()
        return now_ms

    def acknowledged(self, message: Message, place: Place, began_ms: int) -> None:
        """Note that a message is stored."""
        self.seen.acknowledged[message.key] = place
        self.happened.sends.append((self.now_ms(), self.now_ms() - began_ms))
        self._progress_ms = self.now_ms()
        self.left -= 1

    def given(self, entry: Entry, *, to: str, since_ms: int | None) -> None:
        """Note that a device was given a message: how late, if it was connected before that was begun."""
        began_ms = self._begun.get(entry.key)
        if began_ms is not None and since_ms is not None and since_ms <= began_ms and entry.sender != to:
            now_ms = self.now_ms()
            self.happened.deliveries.append((now_ms, now_ms - began_ms))

    def is_to_read(self, cid: int) -> bool:
        """Return whether nobody has read the history of a conversation: the first who asks does."""
        is_new = cid not in self._read
        self._read.add(cid)
        return is_new
