"""The benchmark's side of the load generator: worker processes, to which it gives orders that they share."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from bench.load.histogram import Histogram
from bench.load.wire import Answer, Look, Open, Order, Report, Setup, decode_answer, encode

__all__ = ["Fleet", "Total", "fleet"]

WORKER_CONNECTIONS_MAX = 19_000
"""A process may have 20,000 files open."""
SOURCES = 4
"""Own addresses of a worker: so that a free port is found at once."""
SOURCES_FIRST = 0x7F10_0000
"""127.16.0.0: what is below is for servers."""
LINE_BYTES_MAX = 1 << 24
STOP_TIMEOUT_S = 20.0


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The reports of all workers, added up."""

    open: int
    flying: int
    resident: int
    cpu_s: float
    counts: Counter[str]
    latencies: dict[str, Histogram]

    def latency_ms(self, what: str) -> dict[str, float]:
        """Return the percentiles of something that was measured, in ms."""
        return self.latencies.get(what, Histogram()).summary(1000)


class Worker:
    """One process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def call(self, order: Order) -> Report:
        """Have an order carried out, and return the worker's report after it."""
        assert self._process.stdin is not None
        self._number += 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        self._process.stdin.write(encode((self._number, order)))
        await self._process.stdin.drain()
        return (await answer).report

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def run(self) -> None:
        """Take answers until the process ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = decode_answer(line)
            self._waiting.pop(answer.number).set_result(answer)
        for waiting in self._waiting.values():
            waiting.set_exception(RuntimeError("a load process ended"))

    async def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Fleet:
    """All workers. Each method has the parts of an order carried out by all of them at once."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers

    async def open(self, order: Open, *, on_progress: Callable[[Total], None] | None = None) -> Total:
        """Open `order.count` connections at `order.rate`, an equal part of both in each worker.

        `on_progress` is called each second with how it is.
        """
        count, rest = divmod(order.count, len(self.workers))
        parts, first = [], order.first
        for number in range(len(self.workers)):
            mine = count + (number < rest)
            share = mine / order.count
            parts.append(
                msgspec.structs.replace(
                    order,
                    first=first,
                    count=mine,
                    rate=max(1.0, order.rate * share),
                    in_flight=max(1, int(order.in_flight * share)),
                )
            )
            first += mine
        async with asyncio.TaskGroup() as tasks:
            opening = [tasks.create_task(worker.call(part)) for worker, part in zip(self.workers, parts, strict=True)]
            while on_progress is not None and not all(task.done() for task in opening):
                await asyncio.wait(opening, timeout=1)
                on_progress(await self.look())
        return _total([task.result() for task in opening])

    async def all(self, order: Order) -> Total:
        """Give the same order to all of them."""
        async with asyncio.TaskGroup() as tasks:
            reports = [tasks.create_task(worker.call(order)) for worker in self.workers]
        return _total([report.result() for report in reports])

    async def look(self) -> Total:
        """How it is now."""
        return await self.all(Look())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all workers where they are; what is sent to them waits in their sockets."""
        for worker in self.workers:
            worker.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in self.workers:
                worker.signal(signal.SIGCONT)


@asynccontextmanager
async def fleet(
    workers: int, *, ticket_key: tuple[str, str] = ("", ""), ticket_ttl_s: int = 60, first_worker: int = 0
) -> AsyncIterator[Fleet]:
    """Run so many load processes until the block ends.

    Args:
        workers: how many.
        ticket_key: kid and secret of the key that the schedulers sign with.
        ticket_ttl_s: how long their tickets are good.
        first_worker: how many others there are beside them, whose addresses they must not use.
    """
    made: list[Worker] = []
    async with asyncio.TaskGroup() as tasks:
        try:
            for number in range(first_worker, first_worker + workers):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bench.load.worker", stdin=PIPE, stdout=PIPE, limit=LINE_BYTES_MAX
                )
                worker = Worker(process)
                made.append(worker)
                tasks.create_task(worker.run())
                setup = Setup(
                    sources=_sources(number),
                    ticket_kid=ticket_key[0],
                    ticket_key=ticket_key[1],
                    ticket_ttl_s=ticket_ttl_s,
                )
                await worker.call(setup)
            yield Fleet(made)
        finally:
            for worker in made:
                await worker.stop()


def _sources(number: int) -> list[str]:
    """The own addresses of a worker, nobody else's."""
    addresses = range(SOURCES_FIRST + number * SOURCES, SOURCES_FIRST + (number + 1) * SOURCES)
    return [".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0)) for address in addresses]


def _total(reports: list[Report]) -> Total:
    counts: Counter[str] = Counter()
    latencies: dict[str, Histogram] = {}
    for report in reports:
        counts.update(report.counts)
        for what, pairs in report.latencies.items():
            latencies.setdefault(what, Histogram()).add(pairs)
    return Total(
        open=sum(report.open for report in reports),
        flying=sum(report.flying for report in reports),
        resident=sum(report.resident for report in reports),
        cpu_s=sum(report.cpu_s for report in reports),
        counts=counts,
        latencies=latencies,
    )
