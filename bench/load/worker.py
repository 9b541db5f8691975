"""A process of the load generator: `python -m bench.load.worker`, orders on standard input, answers on standard output.

It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from access.core.websocket import Opcode, encode_frame
from base import loop
from base.ids import new_uuid
from bench.load.client import Client, Stage, target_of
from bench.load.histogram import Histogram
from bench.load.opener import Opener
from bench.load.sender import Sender
from bench.load.wire import (
    Answer,
    Clear,
    Close,
    Deafen,
    Kind,
    Look,
    Open,
    Order,
    Probe,
    Report,
    Send,
    Setup,
    Subscribe,
    decode_order,
    encode,
    user_name,
)
from scheduler.api import Ticket
from scheduler.tokens import mint_ticket

__all__ = ["Worker"]

LINE_BYTES_MAX = 1 << 24
POLL_S = 0.02


class Worker:
    """All connections of this process. Implements `client.Owner`."""

    def __init__(self, setup: Setup) -> None:
        self.kind = Kind.SESSION
        self.pings = 0
        self.pong = encode_frame(Opcode.TEXT, b"{}", mask=os.urandom(4))
        self.opener = Opener(setup.sources, count=self.count)
        self._setup = setup
        self._clients: dict[int, Client] = {}
        """The connection in charge of each number: the last one that was open, or the one that shall be."""
        self._open = 0
        self._counts: Counter[str] = Counter()
        self._latencies: dict[str, Histogram] = {}
        self._sender = Sender(self)
        self._random = random.Random()

    # ---------------------------------------------------------------- for the clients

    def ticket(self, number: int) -> str:
        """See `Owner`."""
        now_s = time.time_ns() // 1_000_000_000
        ticket = Ticket(
            sub=user_name(number),
            jti=new_uuid(),
            iat=now_s,
            exp=now_s + self._setup.ticket_ttl_s,
            device="load",
            platform="bench",
        )
        return mint_ticket(ticket, kid=self._setup.ticket_kid, key=self._setup.ticket_key)

    def now_ns(self) -> int:
        """See `Owner`."""
        return time.monotonic_ns()

    def mask(self) -> bytes:
        """See `Owner`."""
        return self._random.getrandbits(32).to_bytes(4, "big")

    def count(self, what: str, by: int = 1) -> None:
        """See `Owner`."""
        self._counts[what] += by

    def measured(self, what: str, since_ns: int) -> None:
        """See `Owner`."""
        histogram = self._latencies.get(what)
        if histogram is None:
            histogram = self._latencies[what] = Histogram()
        histogram.record((time.monotonic_ns() - since_ns) // 1000)

    def opened(self, client: Client) -> None:
        """See `Owner`."""
        self.opener.done(client)
        before = self._clients.get(client.number)
        if before is None or before is client or before.stage is not Stage.OPEN:
            self._open += 1
        self._clients[client.number] = client

    def failed(self, client: Client, *, retry_after_ms: int = 0) -> None:
        """See `Owner`."""
        self.opener.done(client)
        # Along the addresses, so that a client does not insist on a node that does not take it.
        urls = self.opener.plan.fallbacks or self.opener.plan.urls
        client.target = target_of(urls[(client.number + client.attempts + 1) % len(urls)])
        self.opener.add_again(client, retry_after_ms=retry_after_ms)

    def lost(self, client: Client) -> None:
        """See `Owner`."""
        self._open -= 1
        if client.other is None and self.opener.plan.reconnects:
            self.opener.add_again(client)

    def moves(self, client: Client) -> None:
        """See `Owner`."""
        self.opener.add_first(client)

    def replied(self, command_id: int, error: int) -> None:
        """See `Owner`."""
        self._sender.replied(command_id, error)

    # ---------------------------------------------------------------- orders

    async def carry_out(self, order: Order) -> None:
        """Carry out an order, as far as its time allows."""
        match order:
            case Open():
                await self._open_all(order)
            case Subscribe():
                request = f'"subscribe":{{"channel":"{order.channel}"}}'.encode()
                began = self.now_ns()
                for number, client in enumerate(self._active()):
                    if order.rate and (early_s := number / order.rate - (self.now_ns() - began) / 1e9) > 0:
                        await asyncio.sleep(early_s)
                    self._sender.call(client, "subscribe", request)
                self.count("subscribe unanswered", await self._sender.settled("subscribe", order.deadline_s))
            case Deafen():
                for client in self._active():
                    client.deafen()
            case Send():
                await self._sender.send(self._active(), order, name=new_uuid())
            case Probe():
                await self._sender.probe(self._active(), order)
            case Close():
                self._close_all()
            case Clear():
                self.pings = 0
                self._counts.clear()
                self._latencies.clear()
            case Setup() | Look():
                pass

    def report(self) -> Report:
        """How it is now."""
        return Report(
            open=self._open,
            flying=self.opener.flying,
            resident=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            cpu_s=time.process_time(),
            counts={**self._counts, "pings": self.pings},
            latencies={what: histogram.pairs() for what, histogram in self._latencies.items()},
        )

    def _active(self) -> list[Client]:
        return [client for client in self._clients.values() if client.stage is Stage.OPEN]

    async def _open_all(self, order: Open) -> None:
        self.kind = order.kind
        self.opener.plan = order
        targets = [target_of(url) for url in order.urls]
        for number in range(order.first, order.first + order.count):
            self.opener.add(Client(self, number, targets[number % len(targets)]))
        deadline = self.now_ns() + int(order.deadline_s * 1e9)
        while (self.opener.waiting or self.opener.flying) and self.now_ns() < deadline:  # noqa: ASYNC110 - no one event
            await asyncio.sleep(POLL_S)

    def _close_all(self) -> None:
        for client in [*self.opener.forget(), *self._clients.values()]:
            client.close()
        self._clients.clear()
        self._sender.forget()
        self._open = 0


async def _main() -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    number, setup = decode_order(await reader.readline())
    assert isinstance(setup, Setup)
    worker = Worker(setup)
    _answer(Answer(number=number, report=worker.report()))

    async def carry_out(number: int, order: Order) -> None:
        await worker.carry_out(order)
        _answer(Answer(number=number, report=worker.report()))

    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(worker.opener.run())
        orders = set()
        while line := await reader.readline():
            task = tasks.create_task(carry_out(*decode_order(line)))
            orders.add(task)
            task.add_done_callback(orders.discard)
        for task in (opening, *orders):
            task.cancel()


def _answer(answer: Answer) -> None:
    sys.stdout.buffer.write(encode(answer))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    loop.run(_main())
