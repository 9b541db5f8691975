"""Carries out the plan of moves: of several schedulers one moves, for as long as it holds the lock `scheduler/mover`.

Every half second the plan (`scheduler.core.moving`) looks at the fleet and orders the next clients. For each order this
asks the source for its clients, picks who should go, tells the source, and gives the plan what it answered. Sources
with clients on the way are asked how they are getting on. Every call has a deadline; a source that does not answer is
left alone for a while and counted.

All schedulers are told what is wanted, and any of them can take over. Nothing but the lock is shared, so a successor
does not know which moves were ordered before it: it waits until their grace is over, which the lock's value says, and
begins a plan of its own from what the nodes report then. Its plan has another id, since the fencing token of the lock
is part of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

import msgspec

from access.api import (
    ACCESS_CLIENTS,
    ACCESS_MOVE,
    MOVES_MAX,
    PAGE_MAX,
    ClientEntry,
    ClientsMoved,
    ListClients,
    MoveClients,
    MoveOrder,
)
from base.clock import Instant
from base.core.lease import HeldLease
from base.errors import PeerError, RoadsteadError, SessionLost, StoreError
from base.ids import Epoch, NodeId
from base.log import logger
from base.metrics import Metrics
from base.peer import Method
from base.site import Site
from scheduler.core.move_accounts import Totals
from scheduler.core.moving import Fleet, MovePlan, MoveRequest, Order, Progress
from scheduler.core.node import AccessNode

__all__ = ["LOCK_KEY", "MoverMetrics", "MoverStatus", "Movers"]

LOCK_KEY = "scheduler/mover"
SESSION_TTL_MS = 5_000
RENEW_MS = 1_000
assert RENEW_MS * 3 < SESSION_TTL_MS
STEP_MS = 500
ORDER_MS = 2_000
"""How long one order may take, with all its calls."""
PAGE_MIN = 100
PAGES_MAX = 5
"""How many pages of clients are read for one order: where few should go, the rest is read for the next one."""
ID_MAX = 16
GRACE_MS_MAX = 3_600_000
"""How long a successor waits at most, whatever the lock's value says."""
DIGITS_MAX = 9

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Caller(Protocol):
    """A peer; `base.peer.client.PeerClient` is one."""

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Call the peer. Raises RoadsteadError."""
        ...


class Pool(Protocol):
    """The access nodes' peers; `base.peer.pool.PeerPool` is one."""

    def get(self, node_id: str) -> Caller:
        """Return the node's peer. Raises PeerUnavailable when there is no such node."""
        ...


class MoverMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, waiting: Callable[[], int], left: Callable[[], int]) -> None:
        self.told = metrics.counter("schedule_moves_told", "Clients that were told to move by this scheduler's plans.")
        self.refused = metrics.counter("schedule_moves_refused", "Moves that a source refused, having no way there.")
        self.unanswered = metrics.counter("schedule_moves_unanswered", "Orders to sources that failed.")
        metrics.gauge("schedule_moves_waiting", "Clients that were told to move and did not go yet.", waiting)
        metrics.gauge("schedule_moves_left", "Clients that this scheduler's plan has still to move.", left)


class MoverStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this scheduler knows of the moves; `plan` and `progress` only where they are carried out, or were last."""

    wanted: MoveRequest | None
    is_mover: bool
    plan: str = ""
    progress: Progress | None = None


@dataclass(slots=True)
class _Feed:
    """Clients of one source that should go, found page by page."""

    found: dict[str, ClientEntry] = field(default_factory=dict)
    """Who should go, by id, and was not told: whom the source would not or could not tell comes back to the end."""
    after: str = ""
    is_at_end: bool = False
    told: dict[str, Instant] = field(default_factory=dict)
    """Who was told until when to go: it is still in the list, and not to be told again."""

    def begin(self, now: Instant, *, anew: bool) -> None:
        """Forget who had its time; begin with the first page again if that is wanted, or the last was read."""
        self.told = {client: deadline for client, deadline in self.told.items() if deadline > now}
        if anew or self.is_at_end:
            self.after, self.is_at_end = "", False
        if anew:
            self.found.clear()


@dataclass(slots=True)
class _Run:
    """A plan under way. `id` is the issuer of its clients' tickets."""

    id: str
    plan: MovePlan
    feeds: dict[NodeId, _Feed] = field(default_factory=dict)
    is_paused: bool = False
    resumes: int = 0


class Movers:
    """A scheduler's part in moving clients. `run` stands for the lock whenever something is wanted."""

    def __init__(
        self,
        site: Site,
        pool: Pool,
        metrics: Metrics,
        *,
        fleet: Callable[[str], Fleet],
        node_arm: Callable[[AccessNode], str],
        client_arm: Callable[[ClientEntry, NodeId], str],
        choose: Callable[[ClientEntry, NodeId, str], NodeId | None],
    ) -> None:
        """Nothing is wanted yet.

        Args:
            site: the place.
            pool: the access nodes' peers.
            metrics: of this node.
            fleet: what a step of the plan with that id looks at.
            node_arm: "stable", or the rollout whose canary a node is.
            client_arm: the arm where a client of a node should be.
            choose: the node that a client of a node should go to within the arm, None for any. The plan's budgets
                stand above it.
        """
        self._registry = site.registry
        self._clock = site.clock
        self._node = site.name
        self._pool = pool
        self._fleet = fleet
        self._node_arm = node_arm
        self._client_arm = client_arm
        self._choose = choose
        self._metrics = MoverMetrics(
            metrics,
            waiting=lambda: progress.waiting if (progress := self._progress()) is not None else 0,
            left=lambda: progress.left if (progress := self._progress()) is not None else 0,
        )
        self._wanted: MoveRequest | None = None
        self._finished = ""  # id of the request that was carried out last
        self._held = HeldLease()
        self._session: str | None = None
        self._settled_at = Instant(0)
        self._run: _Run | None = None
        self._last: tuple[str, Progress] | None = None
        self._news = asyncio.Event()
        self._log = logger(node=site.name)

    def want(self, request: MoveRequest | None) -> None:
        """Say what should be moved: another request takes the place of the one before, None ends it.

        The same request with other `is_paused` or `resumes` pauses or resumes its plan.
        """
        assert request is None or 0 < len(request.id) <= ID_MAX
        self._wanted = request
        self._news.set()

    def status(self) -> MoverStatus:
        """Return what is wanted, and how far it is where this scheduler carries it out."""
        progress = self._progress()
        last, shown = self._last if self._last is not None else ("", None)
        return MoverStatus(
            wanted=self._wanted,
            is_mover=self._held.is_valid(self._clock.monotonic()),
            plan=self._run.id if self._run is not None else last,
            progress=progress if self._run is not None else shown,
        )

    async def run(self) -> None:
        """Stand for the lock and carry out what is wanted, until cancelled; gives the lock back at the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stand_forever())
                tasks.create_task(self._step_forever())
        finally:
            self._stop("stopped")
            await self._step_down()

    def _progress(self) -> Progress | None:
        return self._run.plan.progress(self._clock.monotonic()) if self._run is not None else None

    # ---------------------------------------------------------------- the lock

    def has_work(self) -> bool:
        """Whether something is wanted that is not carried out yet."""
        return self._run is not None or (self._wanted is not None and self._wanted.id != self._finished)

    async def _stand_forever(self) -> None:
        while True:
            try:
                if self.has_work():
                    await self._stand()
            except StoreError as error:
                self._log.warning("mover_round_failed", error=str(error))
            await self._clock.sleep_until(Instant(self._clock.monotonic() + RENEW_MS))
            if not self.has_work():
                await self._step_down()
                await self._wait_for_work()

    async def _stand(self) -> None:
        asked_at = self._clock.monotonic()
        if self._session is None:
            self._session = await self._registry.open_session(self._node, ttl_ms=SESSION_TTL_MS)
        else:
            try:
                await self._registry.renew_session(self._session)
            except SessionLost:
                self._session = None
                self._held = HeldLease()  # a registry that started over counts its tokens from the beginning
                self._stop("lock lost")
                raise
        if self._held.epoch is not None:
            self._held.granted(asked_at, self._held.epoch, SESSION_TTL_MS)
            return
        before = await self._registry.get(LOCK_KEY)
        value = before.value if before is not None else b""
        token = await self._registry.acquire(LOCK_KEY, self._session, value)
        if token is not None:
            grace_ms = min(int(value), GRACE_MS_MAX) if value.isdigit() and len(value) <= DIGITS_MAX else 0
            self._settled_at = Instant(self._clock.monotonic() + grace_ms)
            self._held.granted(asked_at, Epoch(token), SESSION_TTL_MS)
            self._log.info("mover_elected", token=token)

    async def _step_down(self) -> None:
        """Give the lock back; if nobody is on the way, a successor need not wait."""
        is_settled = self._clock.monotonic() >= self._settled_at
        session, self._session = self._session, None
        was_held = self._held.epoch is not None
        self._held = HeldLease()
        if session is None:
            return
        try:
            if was_held and is_settled:
                await self._registry.acquire(LOCK_KEY, session, b"")
            await self._registry.close_session(session)
        except StoreError as error:  # it ends by itself
            self._log.debug("mover_session_left_open", error=str(error))

    async def _wait_for_work(self) -> None:
        while not self.has_work():
            self._news.clear()
            await self._news.wait()

    # ---------------------------------------------------------------- the plan

    async def _step_forever(self) -> None:
        while True:
            await self._wait_for_work()
            began = self._clock.monotonic()
            await self._step()
            await self._clock.sleep_until(Instant(began + STEP_MS))

    async def _step(self) -> None:
        now = self._clock.monotonic()
        if not self._held.is_valid(now):
            self._stop("lock lost")
            return
        if self._run is None:
            await self._begin(now)
            return
        run = self._run
        self._follow_wish(run)
        orders = run.plan.step(now, self._fleet(run.id))
        if self._wanted is None and run.plan.progress(now).left:
            run.plan.abort()
        ordered = {order.source for order in orders}
        async with asyncio.TaskGroup() as tasks:
            for order in orders:
                tasks.create_task(self._carry_out(run, order))
            for source in run.plan.to_ask(now):
                if source not in ordered:
                    tasks.create_task(self._tell(run, source, [], ORDER_MS))
        if run.plan.is_over and self._run is run:
            if run.plan.phase == "complete":  # what was broken off for something else may be wanted again
                self._finished = run.plan.request.id
            self._stop("over")

    async def _begin(self, now: Instant) -> None:
        """Begin what is wanted, as soon as nobody is on the way by another's orders."""
        wanted, session = self._wanted, self._session
        if now < self._settled_at or wanted is None or session is None:
            return
        if self._fleet("").is_registry_away:  # the lock was quicker than the view: what a plan begins with is old
            return
        try:
            token = await self._registry.acquire(LOCK_KEY, session, b"%d" % wanted.grace_ms)
        except StoreError as error:
            self._log.warning("mover_round_failed", error=str(error))
            return
        if token is not None and self._wanted is wanted and self._session == session:
            self._run = _Run(
                f"{wanted.id}-{token:x}", MovePlan(wanted, now, arm_of=self._node_arm), resumes=wanted.resumes
            )
            self._log.info("moves_started", plan=self._run.id, kind=wanted.kind)

    def _follow_wish(self, run: _Run) -> None:
        """Pause, resume or abort, as is wanted."""
        wanted = self._wanted
        if wanted is None or wanted.id != run.plan.request.id:
            if wanted is None and run.plan.phase in {"running", "paused"}:
                # Often since nobody is left: then it is complete, as soon as the last ones are heard of.
                run.plan.pause("it is not wanted any more")
                run.is_paused = True
            else:
                run.plan.abort()
            return
        if wanted.is_paused and not run.is_paused:
            run.plan.pause("paused by an operator")
        elif not wanted.is_paused and (run.is_paused or wanted.resumes > run.resumes):
            run.plan.resume()
        run.is_paused, run.resumes = wanted.is_paused, wanted.resumes

    def _stop(self, why: str) -> None:
        """Have nothing more to do with the plan, at once."""
        run, self._run = self._run, None
        if run is not None:
            now = self._clock.monotonic()
            if not run.plan.is_over:
                run.plan.abort()
                self._settled_at = Instant(now + run.plan.request.grace_ms)
            progress = run.plan.progress(now)
            self._last = (run.id, progress)
            self._log.info(
                "moves_stopped", plan=run.id, why=why, phase=progress.phase, moved=progress.moved, left=progress.left
            )

    # ---------------------------------------------------------------- one order

    async def _carry_out(self, run: _Run, order: Order) -> None:
        until = Instant(self._clock.monotonic() + ORDER_MS)
        feed = run.feeds.setdefault(order.source, _Feed())
        try:
            picked, is_last = await self._pick(run, order, feed, until)
        except RoadsteadError as error:
            self._failed(run, order.source, error, was_sent=False)
            return
        now = self._clock.monotonic()
        moves = self._direct(run, order, picked)
        reply = await self._tell(run, order.source, moves, max(until - now, 1))
        # Without an answer nobody knows. They are told again then, and the source says of whom that they were already.
        untold = {move.client for move in moves} if reply is None else set(reply.refused)
        feed.found.update((entry.id, entry) for entry in picked if entry.id in untold)
        if reply is None:
            return
        # Also who is absent is not asked again: it may be in the list for a while, told by a drain say.
        deadline = Instant(now + _grace_ms(run))
        feed.told.update((entry.id, deadline) for entry in picked if entry.id not in untold)
        if is_last and not feed.found:
            run.plan.exhausted(self._clock.monotonic(), order.source)

    async def _pick(self, run: _Run, order: Order, feed: _Feed, until: Instant) -> tuple[list[ClientEntry], bool]:
        """Return who should go, at most as many as the order says; and whether nobody else was found."""
        count = min(order.count, MOVES_MAX)
        kind = run.plan.request.kind
        is_rebalance = kind == "rebalance"
        # Of a rebalance the newest go: who has been there for long has shown that it stays, and has more to catch up.
        feed.begin(self._clock.monotonic(), anew=is_rebalance)
        # What is found and not picked waits, at each of a thousand sources: little more is read than is wanted.
        limit = min(count + len(feed.told) if is_rebalance else max(4 * count, PAGE_MIN), PAGE_MAX)
        for _ in range(PAGES_MAX):
            if len(feed.found) >= count or feed.is_at_end:
                break
            page = await self._pool.get(order.source).call(
                ACCESS_CLIENTS,
                ListClients(after=feed.after, limit=limit, newest_first=is_rebalance),
                deadline_ms=max(until - self._clock.monotonic(), 1),
            )
            feed.after, feed.is_at_end = page.next, not page.next
            limit = limit if is_rebalance else PAGE_MAX
            feed.found.update(
                (entry.id, entry)
                for entry in page.clients
                if entry.id not in feed.told
                and (kind != "to_canary" or self._client_arm(entry, order.source) == order.arm)
            )
        picked = [feed.found.pop(client) for client in tuple(islice(feed.found, count))]
        return picked, feed.is_at_end and len(picked) < count

    def _direct(self, run: _Run, order: Order, picked: list[ClientEntry]) -> list[MoveOrder]:
        """Say who goes where."""
        room = dict(order.targets)
        moves: list[MoveOrder] = []
        for entry in picked:
            target = self._choose(entry, order.source, order.arm) if run.plan.request.kind != "rebalance" else None
            if target is None or not room.get(target):
                target = max(room, key=room.__getitem__)
            room[target] -= 1
            moves.append(MoveOrder(entry.id, target, order.arm))
        return moves

    async def _tell(self, run: _Run, source: NodeId, moves: list[MoveOrder], deadline_ms: int) -> ClientsMoved | None:
        """Give the source its moves, and the plan its answer. Returns that, None if there was none."""
        if self._run is not run or not self._held.is_valid(self._clock.monotonic()):
            return None  # the lock was lost meanwhile
        was_sent = False
        try:
            peer = self._pool.get(source)
            was_sent = bool(moves)
            reply = await peer.call(ACCESS_MOVE, MoveClients(run.id, _grace_ms(run), moves), deadline_ms=deadline_ms)
        except RoadsteadError as error:
            self._failed(run, source, error, was_sent=was_sent and isinstance(error, PeerError))
            return None
        untold = {*reply.refused, *reply.absent}
        sent: dict[NodeId, int] = {}
        for move in moves:
            if move.client not in untold:
                sent[NodeId(move.node)] = sent.get(NodeId(move.node), 0) + 1
        self._metrics.told.inc(sum(sent.values()))
        self._metrics.refused.inc(len(reply.refused))
        totals = Totals(reply.waiting + reply.arrived + reply.closed, reply.arrived, reply.closed)
        run.plan.answered(self._clock.monotonic(), source, sent, totals)
        return reply

    def _failed(self, run: _Run, source: NodeId, error: RoadsteadError, *, was_sent: bool) -> None:
        self._metrics.unanswered.inc()
        self._log.warning("moves_unanswered", plan=run.id, source=source, error=str(error))
        run.plan.failed(self._clock.monotonic(), source, was_sent=was_sent)


def _grace_ms(run: _Run) -> int:
    """How long a client that was told may stay, as the wire takes it."""
    return max(run.plan.request.grace_ms, 100)
