"""A whole replay: the system, the crowd, what is done meanwhile, and the judgement."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from base.clock import SystemClock
from roadstead.replay.core.figures import Happened, Mark, Sample
from roadstead.replay.core.plan import Plan
from roadstead.replay.core.proof import Proof, prove
from roadstead.replay.crowd import Crowd
from roadstead.replay.operations import Operation, carried_out
from roadstead.replay.stage import Stage

__all__ = ["Outcome", "most_active", "replayed"]

SAMPLE_S = 1.0
TESTERS = 5


class Outcome(msgspec.Struct, frozen=True):
    """What came of it. Times are ms since it began; `took_ms`: until the last acknowledgement."""

    proof: Proof
    happened: Happened
    samples: list[Sample]
    marks: list[Mark]
    took_ms: int

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong, and everything was done that was to be done."""
        return not self.proof.violations and all(mark.is_done for mark in self.marks)


async def replayed(plan: Plan, stage: Stage, script: Sequence[Operation], *, tell: Callable[[Mark], None]) -> Outcome:
    """Replay a plan on a system that was started, and do to it what the script says. `tell` is told of each step."""
    clock = SystemClock()
    began_ms = clock.monotonic()
    crowd = Crowd(plan, stage.doors, clock=clock)
    notes = crowd.notes
    samples: list[Sample] = []
    marks: list[Mark] = []

    async def look_on() -> None:
        while True:
            sample = await stage.sample(notes.now_ms())
            if sample is not None:
                samples.append(sample)
            await asyncio.sleep(SAMPLE_S)

    async def operate() -> None:
        marks.extend(await carried_out(script, due_ms=plan.due_ms, now_ms=notes.now_ms, tell=tell))

    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(look_on())
        operating = tasks.create_task(operate())

        async def everybody_is_done() -> None:
            await asyncio.wait([operating])

        await crowd.run(began_ms=began_ms, everybody_is_done=everybody_is_done)
        looking.cancel()
    took_ms = max((at_ms for at_ms, _ in notes.happened.sends), default=0)
    proof = await asyncio.to_thread(prove, plan, notes.seen)
    return Outcome(proof, notes.happened, samples, marks, took_ms)


def most_active(plan: Plan) -> list[str]:
    """Return those who write most: they are there most of the time."""
    counts = Counter(message.sender for message in plan.messages.values())
    return [user for user, _ in counts.most_common(TESTERS)]
