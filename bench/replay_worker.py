"""A part of the people of `bench.replay`, in a process of its own: it gets its order by standard input, as JSON.

It prints a line when it knows what to do, and begins at a line; prints one when all of its people have done what they
had to do, and has them come once more at a line; then it writes what they saw into a file.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

import msgspec

from base import log, loop
from base.clock import SystemClock
from roadstead.replay.core.day import Choice, chosen
from roadstead.replay.core.figures import Happened
from roadstead.replay.core.plan import Pace, Plan, planned
from roadstead.replay.core.proof import Seen
from roadstead.replay.crowd import Crowd
from roadstead.replay.dataset import read
from roadstead.replay.doors import Doors

__all__ = ["Order", "Saw", "plan_of"]


TELL_S = 20.0


class Order(msgspec.Struct, frozen=True):
    """What to replay, where, and which part of the people."""

    choice: Choice
    pace: Pace
    doors: Doors
    in_flight: int
    part: int
    parts: int
    file: str


class Saw(msgspec.Struct, frozen=True):
    """What came of it, and what it took."""

    seen: Seen
    happened: Happened
    cpu_s: float


def plan_of(order: Order) -> Plan:
    """Return the script of all, the same in every process."""
    return planned(chosen(read(), order.choice), order.pace)


async def _run(order: Order) -> Saw:
    clock = SystemClock()
    crowd = Crowd(
        plan_of(order),
        order.doors,
        clock=clock,
        in_flight=order.in_flight,
        part=order.part,
        parts=order.parts,
    )

    async def everybody_is_done() -> None:
        await asyncio.to_thread(_said, "done")

    _said("ready")
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_tell(crowd))
        await crowd.run(began_ms=clock.monotonic(), everybody_is_done=everybody_is_done)
        telling.cancel()
    use = resource.getrusage(resource.RUSAGE_SELF)
    return Saw(crowd.notes.seen, crowd.notes.happened, use.ru_utime + use.ru_stime)


def _said(what: str) -> None:
    """Say it, and return when there is an answer."""
    print(what, flush=True)
    sys.stdin.readline()


async def _tell(crowd: Crowd) -> None:
    """Say from time to time how far it is."""
    while True:
        await asyncio.sleep(TELL_S)
        print(f"{crowd.notes.left} messages left", file=sys.stderr, flush=True)


def main() -> None:
    """Do as ordered."""
    log.configure(level="error")
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    saw = loop.run(_run(order))
    Path(order.file).write_bytes(msgspec.msgpack.encode(saw))


if __name__ == "__main__":
    main()
