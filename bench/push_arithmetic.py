"""What it takes to tell all members of a large group one by one, as a pool of workers that each push to one member.

The article's arithmetic: one worker that needs 2 ms for a push is done with 10,000 members after 20 s, and whatever
waits behind them waits as long. To be done after 10 ms it takes 10,000 / (10 / 2) = 2,000 workers. Here are the
formula, the same by virtual time, which knows of no machine, and with real waits. What makes the arithmetic go away is
told by `pushes`: one call for an access node instead of one for a member.
"""

from __future__ import annotations

import asyncio
import heapq
import time

__all__ = ["needed", "pushes", "slept_ms", "virtual_ms", "waited_ms"]

SPEC = ("RT-02",)  # rows of docs/spec-coverage.md


def needed(n: int, t_total_ms: float, t_one_ms: float) -> int:
    """Return how many workers push to `n` members within `t_total_ms`, if one push takes `t_one_ms`.

    A worker does no part of a push: with 10 ms and 3 ms each it does three, not three and a third.

    Raises:
        ValueError: not even one push fits into the time.
    """
    each = int(t_total_ms / t_one_ms + 1e-9)  # 0.3 / 0.1 are three, whatever binary fractions say
    if each < 1:
        raise ValueError(f"one push takes {t_one_ms} ms, which is more than {t_total_ms} ms")
    return -(-n // each)


def pushes(n: int, nodes: int, *, batch_max: int) -> int:
    """Return how many calls tell `n` members who are spread evenly over access nodes, `batch_max` of them in a call."""
    share, rest = divmod(n, nodes)
    return rest * -(-(share + 1) // batch_max) + (nodes - rest) * -(-share // batch_max)


def virtual_ms(n: int, workers: int, t_one_ms: float) -> float:
    """Return when the last of `n` pushes is done, by virtual time: each goes to the worker that is free first."""
    free_at = [0.0] * workers
    for _ in range(n):
        heapq.heapreplace(free_at, free_at[0] + t_one_ms)
    return max(free_at)


def slept_ms(n: int, t_one_ms: float) -> float:
    """Return how long one worker really takes for `n` pushes that are nothing but a sleep."""
    began = time.perf_counter()
    for _ in range(n):
        time.sleep(t_one_ms / 1000)
    return (time.perf_counter() - began) * 1000


async def waited_ms(n: int, workers: int, t_one_ms: float) -> float:
    """Return how long so many workers on one event loop really take for `n` pushes that are nothing but a wait."""
    left = iter(range(n))

    async def work() -> None:
        for _ in left:
            await asyncio.sleep(t_one_ms / 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(workers):
            tasks.create_task(work())
    return (time.perf_counter() - began) * 1000
