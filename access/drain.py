"""Emptying a node without cutting anybody: clients are told, at an even pace, where to go and with which ticket.

What they are told is in `redirect`. Whoever is still here after the grace is closed with 3001, which makes an SDK come
back by itself: to the scheduler, or to a pool address.

When, whom and where to is decided by `core/drain`. While a node drains it is not ready and lets nobody in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from access.admission import Admission
from access.client import Client
from access.clients import Clients
from access.config import AccessConfig
from access.core.drain import DrainPlan, Move, Progress, Targets
from access.metrics import AccessMetrics
from access.redirect import Redirects
from base.errors import NotFound
from base.log import logger
from base.site import Site

__all__ = ["Drain", "DrainStatus"]

STEP_S = 0.1


class DrainStatus(msgspec.Struct, frozen=True):
    """How far a drain is. `state` is "none", "draining", "paused" or "done"; counts are of clients."""

    state: str
    total: int = 0
    pending: int = 0
    waiting: int = 0
    arrived: int = 0
    closed: int = 0
    departed: int = 0
    eta_ms: int | None = None


class Drain:
    """The drain of one node, if there is one."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        clients: Clients,
        admission: Admission,
        redirects: Redirects,
        announce: Callable[[bool], Awaitable[None]],
        on_start: Callable[[], None] = lambda: None,
        metrics: AccessMetrics,
    ) -> None:
        """Build it.

        Args:
            config: the node's settings.
            site: its place.
            clients: whom to move.
            admission: whom to let in no more.
            redirects: tells clients where to go.
            announce: tells everybody whether this node is draining.
            on_start: called when the clients are the drain's, before the first one is told.
            metrics: the node's metrics.
        """
        self._config = config
        self._clock = site.clock
        self._clients = clients
        self._admission = admission
        self._redirects = redirects
        self._announce = announce
        self._on_start = on_start
        self._metrics = metrics
        self._plan: DrainPlan | None = None
        self._targets = Targets(())
        self._offered: set[str] = set()
        """Who is among the targets."""
        self._begun = asyncio.Event()
        self._moving: dict[str, Client] = {}
        """Who is here that was here when the drain began."""
        self._told: set[str] = set()
        """Of them those who were told to go, and still may."""
        self._is_paused = False
        self._log = logger(node=site.name)
        clients.on_gone(self._gone)
        redirects.on_change(self._look_at_targets)

    async def run(self) -> None:
        """Drain if that was asked for, until cancelled."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            while self._plan is not None:
                self._step(self._plan)
                await asyncio.sleep(STEP_S)

    async def start(self, *, over_ms: int, grace_ms: int | None = None) -> None:
        """Begin to drain. One that is under way goes on as it is."""
        if self._plan is not None:
            return
        self._admission.is_draining = True
        self._on_start()
        others = self._redirects.of_kind()
        self._targets, self._offered = Targets(others), self._taking()
        self._moving = {client.id: client for client in self._clients}
        self._told = set()
        self._is_paused = False
        self._plan = DrainPlan(
            self._moving,
            self._clock.monotonic(),
            over_ms=max(1, over_ms),
            grace_ms=self._config.drain_grace_ms if grace_ms is None else grace_ms,
            targets=self._targets,
        )
        self._begun.set()
        self._log.info("drain_started", clients=len(self._moving), over_ms=over_ms)
        await self._announce(True)

    def pause(self) -> None:
        """Tell nobody more to go until `resume`. Raises NotFound when nothing drains."""
        self._known().pause(self._clock.monotonic())
        self._is_paused = True

    def resume(self) -> None:
        """Go on. Raises NotFound when nothing drains."""
        self._known().resume(self._clock.monotonic())
        self._is_paused = False

    async def abort(self) -> None:
        """Stop draining and take clients again. Raises NotFound when nothing drains."""
        self._known().abort()
        self._plan = None
        # Who was told to go will go; but nobody is closed for still being here.
        self._moving, self._told = {}, set()
        self._admission.is_draining = False
        await self._announce(False)
        self._log.info("drain_aborted")

    async def wait_over(self) -> None:
        """Return once a drain that was started is over."""
        while self._plan is not None and not self._plan.is_over:  # noqa: ASYNC110 - clients go one by one
            await asyncio.sleep(STEP_S)

    def has_targets(self) -> bool:
        """Return whether there is another node to which clients could go, of whichever kind."""
        return any(room > 0 for _, room in self._redirects.rooms())

    def status(self) -> DrainStatus:
        """Return how far it is."""
        if self._plan is None:
            return DrainStatus("none")
        progress: Progress = self._plan.progress(self._clock.monotonic())
        state = "done" if self._plan.is_over else "paused" if self._is_paused else "draining"
        return DrainStatus(
            state,
            progress.total,
            progress.pending,
            progress.waiting,
            progress.arrived,
            progress.closed,
            progress.departed,
            progress.eta_ms,
        )

    # ---------------------------------------------------------------- inside

    def _known(self) -> DrainPlan:
        if self._plan is None:
            raise NotFound("this node is not draining")
        return self._plan

    def _step(self, plan: DrainPlan) -> None:
        now = self._clock.monotonic()
        step = plan.step(now)
        for move in step.move:
            client = self._moving.get(move.client)
            if client is not None:
                self._tell(client, move, move.deadline - now)
        for client_id in step.close:
            self._told.discard(client_id)
            client = self._moving.get(client_id)
            if client is not None:
                self._metrics.moved.inc("closed")
                self._clients.send_on(client)

    def _tell(self, client: Client, move: Move, after_ms: int) -> None:
        # Who is not let in yet is not told, and is closed like all others.
        if self._redirects.tell(client, move.target, after_ms):
            self._told.add(client.id)

    def _look_at_targets(self) -> None:
        # Nobody more is sent to who is gone, drains too, or has filled up by others.
        for node in self._offered - self._taking():
            self._offered.remove(node)
            self._targets.drop(node)

    def _taking(self) -> set[str]:
        return {node for node, taken, capacity in self._redirects.of_kind() if taken < capacity}

    def _gone(self, client: Client) -> None:
        if self._plan is not None and self._moving.pop(client.id, None) is not None:
            self._plan.gone(client.id)
            if client.id in self._told:
                self._told.remove(client.id)
                self._metrics.moved.inc("arrived")
