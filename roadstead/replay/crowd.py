"""All users of a replay, or a part of them: they follow their scripts at once, and then everything is asked for.

Several processes may have a part each: whoever waits for a message waits until its own device has it, so that the parts
need nothing of each other, but that nobody asks before all are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from base.clock import Clock, Instant
from roadstead.replay.core.plan import Plan, part_of
from roadstead.replay.core.proof import GONE
from roadstead.replay.doors import Doors
from roadstead.replay.lookups import Lookups
from roadstead.replay.notebook import Notebook
from roadstead.replay.person import Actor

__all__ = ["Crowd"]

IN_FLIGHT = 8
"""Most steps of one user that are under way: of several conversations. In one of them each waits for the one before."""

STALL_S = 60.0
"""After so long without any acknowledgement, when all is due, nobody waits any longer."""
LOOK_S = 0.2
CLOSING_AT_ONCE = 48
"""Users who come in the end, at a time."""
CLOSE_S = 180.0
"""How long all of them together may take, to be given everything and to ask."""
CREDIBLE_S = 10.0
"""How long in the end what is said of users may be behind what they did."""


class Crowd:
    """See the module. `notes` has what came of it."""

    def __init__(
        self,
        plan: Plan,
        doors: Doors,
        *,
        clock: Clock,
        in_flight: int = IN_FLIGHT,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Nobody comes before `run`.

        Args:
            plan: the script of all.
            doors: where they find the system.
            clock: the time of what is noted.
            in_flight: how many steps of one user may be under way; they begin in order.
            part: which users these are, of so many `parts`.
            parts: see `part`.
        """
        mine = [one for one in plan.people if part_of(one.user, parts) == part]
        left = sum(step.message is not None for one in mine for it in one.stretches for step in it.steps)
        self.notes = Notebook(clock, left=left)
        self._plan = plan
        self._lookups = Lookups(doors.status_nodes, credential=doors.credential, credible_s=CREDIBLE_S)
        self._actors = [Actor(one, doors, self.notes, lookups=self._lookups, in_flight=in_flight) for one in mine]

    async def run(self, *, began_ms: Instant, everybody_is_done: Callable[[], Awaitable[None]]) -> None:
        """Have everybody follow its script, and ask everybody in the end.

        Args:
            began_ms: when the replay begins, by the clock.
            everybody_is_done: returns when nobody of the other parts follows its script any more.
        """
        self.notes.begin(began_ms)
        await self._follow_scripts()
        await everybody_is_done()
        await self._close()
        seen = self.notes.seen
        seen.gone = await self._lookups.look_up({actor.person.user: GONE for actor in self._actors})
        for actor in self._actors:
            for device in actor.devices:
                seen.devices[actor.person.user, device.name] = device.entries

    async def _follow_scripts(self) -> None:
        """Return when all are done, or nothing goes on any more: what is missing then is found by the proof."""
        async with asyncio.TaskGroup() as tasks:
            scripts = {tasks.create_task(actor.run()) for actor in self._actors}
            while scripts:
                _, scripts = await asyncio.wait(scripts, timeout=LOOK_S)
                if self.notes.now_ms() - max(self.notes.progress_ms, self._plan.end_ms) > STALL_S * 1_000:
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
