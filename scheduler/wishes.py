"""Which live connections should be moved now, of all that rollouts and operators want: one thing at a time.

Bringing users back from a canary that failed comes first, then bringing users to one, then evening out. All schedulers
come to the same wish by the same orders; the one that moves tells the others how it is getting on.
"""

from __future__ import annotations

import asyncio

import msgspec

from base.errors import StoreError
from base.log import logger
from base.site import Site
from scheduler.core.moving import MoveRequest
from scheduler.core.rollout_machine import MovesWanted, wanted_moves
from scheduler.core.rollout_record import move_id
from scheduler.movers import Movers
from scheduler.orders import MOVES, REBALANCE, UNREADABLE, MovesRecord, Orders, RunningRollout, rebalance_record
from scheduler.rollouts import Rollouts

__all__ = ["Wishes"]

LOOK_S = 1.0
DIGITS_MAX = 6


class Wishes:
    """See the module."""

    def __init__(self, site: Site, orders: Orders, rollouts: Rollouts, movers: Movers) -> None:
        self._registry = site.registry
        self._clock = site.clock
        self._node = site.name
        self._orders = orders
        self._rollouts = rollouts
        self._movers = movers
        self._told: MovesRecord | None = None
        self._told_last = ""
        """The plan whose end was told: others may have begun another one since."""
        self._log = logger(node=site.name)

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._movers.want(self.wanted())
            try:
                await self._tell()
            except StoreError as error:
                self._log.debug("moves_untold", error=str(error))

    def wanted(self) -> MoveRequest | None:
        """Return what should be moved now."""
        wishes = [
            (running, moves)
            for running in self._orders.rollouts.values()
            if (moves := wanted_moves(running.rollout, running.record.state, self._rollouts.live(running.rollout)))
        ]
        for to in ("stable", "canary"):
            for running, moves in wishes:
                if moves.to == to:
                    return self._request(running, moves)
        record = self._orders.rebalance
        return None if record is None or record.is_aborted or record.is_complete else record.request

    async def _tell(self) -> None:
        status = self._movers.status()
        if status.progress is None or status.plan == self._told_last:
            return
        is_over = status.progress.phase in {"complete", "aborted"}
        record = MovesRecord(
            at=self._clock.realtime(),
            mover=self._node,
            # A plan's id is that of its request, and of who makes it.
            request=status.plan.partition("-")[0],
            plan=status.plan,
            is_complete=status.progress.phase == "complete",
            progress=msgspec.to_builtins(status.progress),
        )
        told = self._told
        if told is not None and msgspec.structs.replace(told, at=record.at) == record:
            return
        seen = self._orders.moves
        is_known = seen is not None and seen.request == record.request and seen.is_complete
        if record.is_complete or not is_known:  # who began it once more by mistake does not say that it is not
            await self._registry.put(MOVES, msgspec.json.encode(record))
        if record.is_complete:
            await self._complete(record.request)
        self._told = record
        if is_over:
            self._told_last = status.plan

    async def _complete(self, request: str) -> None:
        """If it was the order to rebalance, write that it is carried out: or the next mover would begin it again."""
        entry = await self._registry.get(REBALANCE)
        if entry is None:
            return
        try:
            order = rebalance_record(entry.value)
        except UNREADABLE:  # nobody carries out what nobody can read
            return
        if order.request.id == request and not order.is_complete:
            done = msgspec.structs.replace(order, is_complete=True)
            await self._registry.put(REBALANCE, msgspec.json.encode(done), expect=entry.index)

    def _id(self, running: RunningRollout, moves: MovesWanted) -> str:
        """Return the request's id: another one when somebody came to the canary after all were brought back."""
        name = move_id(running.record)
        told = self._orders.moves
        if moves.to == "canary" or told is None:
            return name
        request, _, round_ = told.request.partition(".")
        if request != name:
            return name
        number = (int(round_) if round_.isdecimal() and len(round_) < DIGITS_MAX else 0) + told.is_complete
        return f"{name}.{number}" if number else name

    def _request(self, running: RunningRollout, moves: MovesWanted) -> MoveRequest:
        deadline_ms = 0 if moves.deadline is None else max(1, moves.deadline - self._clock.realtime())
        return MoveRequest(
            id=self._id(running, moves),
            kind="to_stable" if moves.to == "stable" else "to_canary",
            rate_per_s=moves.per_s,
            # The document says how fast; what targets say they take still stands above it.
            accept_per_s=moves.per_s,
            deadline_ms=deadline_ms,
            arm=running.record.name,
            share=moves.share,
        )
