"""Sends by a schedule that waits for nobody: what is late was meant to leave in time, and carries that time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from bench.load.client import Client, Stage
from bench.load.wire import Probe, Send, user_name

__all__ = ["Sender"]

STEP_S = 0.002
POLL_S = 0.01
PENDING_MAX = 20_000


class Counting(Protocol):
    """What a sender needs of its process."""

    def now_ns(self) -> int:
        """The clock."""
        ...

    def count(self, what: str, by: int = 1) -> None:
        """Count something for the report."""
        ...

    def measured(self, what: str, since_ns: int) -> None:
        """Record the time since then."""
        ...


class Sender:
    """Commands of this process' clients, and which of them were answered."""

    def __init__(self, owner: Counting) -> None:
        self._owner = owner
        self._ids = itertools.count(2)
        self._pending: dict[int, tuple[str, int]] = {}
        """Commands without a reply: what they are, and when they were meant to leave."""
        self._unanswered: Counter[str] = Counter()

    async def send(self, clients: list[Client], order: Send, *, name: str) -> None:
        """Carry out an order; `name` is unique to it."""
        pad = "x" * order.pad

        def request(number: int, at_ns: int) -> bytes:
            to = user_name(order.first + number % order.count)
            body = f'{{"at_ns":{at_ns},"pad":"{pad}"}}'
            message = f'{{"to":"{to}","client_msg_id":"{name}-{number}","body":{body}}}'
            return f'"rpc":{{"method":"im.send","data":{message}}}'.encode()

        await self._run(clients, order.rate, order.seconds, "send", request)
        self._owner.count("send unanswered", await self.settled("send", order.deadline_s))

    async def probe(self, clients: list[Client], order: Probe) -> None:
        """Carry out an order."""
        await self._run(clients, order.rate, order.seconds, "probe", lambda _number, _at_ns: b'"ping":{}')

    def call(self, client: Client, what: str, request: bytes) -> None:
        """Send a command now."""
        self._call(client, what, request, self._owner.now_ns())

    async def settled(self, what: str, deadline_s: float) -> int:
        """Wait for the replies to all commands of this kind, and return how many have none after so long."""
        deadline = self._owner.now_ns() + int(deadline_s * 1e9)
        while self._unanswered[what] and self._owner.now_ns() < deadline:  # noqa: ASYNC110 - replies come one by one
            await asyncio.sleep(POLL_S)
        return self._unanswered[what]

    def replied(self, command_id: int, error: int) -> None:
        """A command was answered."""
        what, at_ns = self._pending.pop(command_id, ("", 0))
        if not what:
            return
        self._unanswered[what] -= 1
        self._owner.measured(what, at_ns)
        self._owner.count(f"{what} error {error}" if error else f"{what} done")

    def forget(self) -> None:
        """No reply will come any more."""
        self._pending.clear()
        self._unanswered.clear()

    def _call(self, client: Client, what: str, request: bytes, at_ns: int) -> None:
        command_id = next(self._ids)
        self._pending[command_id] = (what, at_ns)
        self._unanswered[what] += 1
        client.call(command_id, request)

    async def _run(
        self, clients: list[Client], rate: float, seconds: float, what: str, request: Callable[[int, int], bytes]
    ) -> None:
        began = self._owner.now_ns()
        total, number = int(rate * seconds), 0
        turns = itertools.cycle(clients)
        while number < total:
            while number < total and (at_ns := began + int(number * 1e9 / rate)) <= self._owner.now_ns():
                client = next((one for one in itertools.islice(turns, len(clients)) if one.stage is Stage.OPEN), None)
                if client is None or len(self._pending) >= PENDING_MAX:
                    self._owner.count(f"{what} skipped")
                else:
                    self._call(client, what, request(number, at_ns), at_ns)
                number += 1
            await asyncio.sleep(STEP_S)
