"""Who may ask for what just now: limits for each user, device and conversation, and what is dropped under pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from base.clock import Clock
from base.errors import BadRequest, Overloaded, RateLimited
from im.config import ImConfig
from im.core.arguments import cid_of
from im.core.overload import Overload, OverloadSettings, Work
from im.core.quotas import Quotas
from im.methods import Caller, Cost
from im.metrics import ImMetrics
from im.turns import ReadTurns
from im.writer import GROUP_MAX, GroupCommit

__all__ = ["Admission"]

OBSERVE_MS = 100


class Admission:
    """What stands before the methods. `run` watches how much waits."""

    def __init__(
        self, config: ImConfig, clock: Clock, writer: GroupCommit, metrics: ImMetrics, *, quotas: Quotas
    ) -> None:
        self._clock = clock
        self._writer = writer
        self._metrics = metrics
        self._quotas = quotas
        self._overload = Overload(
            OverloadSettings(
                waiting_max=config.append_queue_max, group_max=GROUP_MAX, wait_ms_max=config.append_wait_max_ms
            )
        )
        self._turns = ReadTurns(metrics)
        self.in_turn = self._turns.carry_out
        """Of a user's reads."""
        self._forget_dropped = metrics.dropped_work.add(lambda: self._overload.dropped or 0)

    def forget(self) -> None:
        """Count here no more."""
        self._forget_dropped()
        self._turns.forget()

    async def run(self) -> None:
        """Observe until cancelled."""
        while True:
            await asyncio.sleep(OBSERVE_MS / 1000)
            now = self._clock.monotonic()
            self._overload.observe(now, waiting=self._writer.waiting, running_ms=self._writer.running_ms(now))

    def committed(self, took_ms: int) -> None:
        """A group was committed and took so long."""
        self._overload.committed(self._clock.monotonic(), took_ms)

    def does(self, work: Work) -> bool:
        """Return whether this kind of work is done now."""
        return self._overload.does(work)

    def admit(self, caller: Caller, cost: Cost, cid: str) -> None:
        """Let a call pass, or not.

        Raises:
            RateLimited: the user, the device or the conversation asks too much.
            Overloaded: new messages are refused for now.
        """
        if cost == "read":
            return
        if cost == "send" and not self._overload.does(Work.MESSAGES):
            self._metrics.overloaded.inc()
            raise Overloaded("too many messages wait", what="messages", retry_after_ms=self._overload.retry_after_ms)
        # A backend sends for many: its users' limits are the backend's own business.
        if caller.is_backend:
            return
        wait_ms = self._quotas.take(self._clock.monotonic(), caller.user, caller.device, _cid(cid))
        if wait_ms:
            self._metrics.rate_limited.inc()
            # Clients are told the message alone.
            raise RateLimited(
                f"too many calls in a short time; try again in {wait_ms} ms", what="calls", retry_after_ms=wait_ms
            )

    def shedding(
        self, tell: Callable[[Iterable[str], bytes], None], work: Work
    ) -> Callable[[Sequence[str], bytes], None]:
        """Return `tell` as it is while this kind of work is done, and nothing else."""

        def told(users: Sequence[str], data: bytes) -> None:
            if self._overload.does(work):
                tell(users, data)

        return told


def _cid(text: str) -> int:
    """Return the conversation, 0 for none or a malformed one: that is told by whoever checks the arguments."""
    try:
        return cid_of(text) if text else 0
    except BadRequest:
        return 0
