"""Rollouts in operation: what operators order, what time brings, what the analysis finds, each written to the registry.

A change is made from what is there and written by compare-and-set; when somebody else was faster it is made again from
what is there then. One scheduler of several judges, the one that holds the lock: it keeps the evidence. Orders may come
to any. All of them follow what is written, and so a rollout that failed is left by all within the time that a change of
the registry takes to arrive.

Without the registry nothing goes on: no step, no analysis (there are no reports either), and no order is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from base.clock import Clock, Instant
from base.core.histogram import Histogram
from base.core.registry import Entry
from base.errors import BadRequest, CasConflict, Conflict, NotFound, RoadsteadError, TooLarge
from base.log import logger
from base.registry import Registry
from base.registry.leadership import Leadership
from scheduler.core.analysis import judge
from scheduler.core.cohorts import ActiveRollout, lists_of
from scheduler.core.ledger import Ledger, NodeTotals
from scheduler.core.node import AccessNode
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.rollout_machine import (
    Live,
    Order,
    Refused,
    RolloutState,
    command,
    judged,
    next_deadline,
    renewed,
    start,
    tick,
)
from scheduler.core.rollout_record import RolloutRecord, changed, created, move_id
from scheduler.following import Sighting
from scheduler.orders import BYTES_MAX, ROLLOUTS, UNREADABLE, Orders, RunningRollout, running_rollout
from scheduler.promql import Measured, Measurement

__all__ = ["Rollouts", "bad_document"]

TICK_S = 0.5
FEED_MS = 2_000
"""How often the evidence takes the nodes' reports."""
FRESH_MS = 500
"""How old those may be that are judged by: nodes report once a second."""
BATCH = 100
TRIES = 8
JUDGE_KEY = "scheduler/judge"
ROLLOUTS_MAX = 32
"""Every decision asks them one after the other."""

_encode = msgspec.json.Encoder().encode
_Change = Callable[[RunningRollout], RolloutRecord | None]
_Revision = tuple[int, int]
"""When a rollout was created, and the revision of its document: evidence is of one document."""


class Rollouts:
    """See the module. Raises StoreUnavailable from orders while the registry is away."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        orders: Orders,
        *,
        node: str,
        nodes: Callable[[], Iterable[AccessNode]],
    ) -> None:
        """`nodes`: the access nodes as the engine sees them, for what is live."""
        self._registry = registry
        self._clock = clock
        self._orders = orders
        self._nodes = nodes
        self._measure: Callable[[str, str], Awaitable[Measurement]] | None = None
        self._ledgers: dict[str, tuple[_Revision, Ledger]] = {}
        self._analysed: dict[str, Instant] = {}
        """When each rollout that is judged here was analysed last."""
        self._sightings: tuple[Sighting, ...] = ()
        self._fed_at = Instant(0)
        self._feeding = asyncio.Lock()
        self._is_new = False
        """Whether it was elected and did not judge yet. Which rollouts there are it may learn only later."""
        self._must_renew: set[str] = set()
        self._leadership = Leadership(registry, clock, key=JUDGE_KEY, node=node, on_elected=self._elected)
        self._log = logger(node=node)

    @property
    def is_judging(self) -> bool:
        """Whether this scheduler is the one that judges."""
        return self._leadership.is_leading

    def ask_with(self, measure: Callable[[str, str], Awaitable[Measurement]]) -> None:
        """Answer PromQL checks with this: it gets the check's name and its query."""
        self._measure = measure

    def active(self) -> tuple[ActiveRollout, ...]:
        """Return all rollouts as the engine takes them, in the order in which they are asked."""
        return tuple(
            ActiveRollout(
                running.rollout,
                running.record.state.percent,
                running.record.state.phase in {"failed", "aborted"},
                lists_of(running.rollout, self._orders.lists),
            )
            for running in self._orders.rollouts.values()
        )

    def observe(self, sightings: Iterable[Sighting]) -> None:
        """Take the nodes' newest reports. The evidence takes them from here, every few seconds."""
        self._sightings = tuple(sightings)

    def live(self, rollout: Rollout) -> Live:
        """Return the live connections of both arms."""
        canary = total = capacity = 0
        for node in self._nodes():
            total += node.connections
            if node.version == rollout.version:
                canary += node.connections
                capacity += 0 if node.is_draining or node.is_cordoned else node.capacity
        running, moves = self._orders.rollouts.get(rollout.name), self._orders.moves
        is_moved = (
            running is not None
            # Whom a ticket of before brings to a canary that was left is brought back, too.
            and running.record.state.phase not in {"failed", "aborted"}
            and moves is not None
            and moves.is_complete
            and moves.request == move_id(running.record)
        )
        return Live(canary, total, capacity, is_moved)

    # ---------------------------------------------------------------- orders

    async def create(self, document: str, *, who: str) -> RolloutRecord:
        """Start a rollout, or a new revision of one that is over. Raises BadRequest with every fault and its line."""
        # It may be long, and made to take long: others go on meanwhile.
        rollout = await asyncio.to_thread(parsed, document)
        others = {name: one for name, one in self._orders.rollouts.items() if name != rollout.name}
        if len(others) >= ROLLOUTS_MAX:
            raise Conflict(f"there are {len(others)} rollouts; delete one that is over first")
        for name, other in others.items():
            if other.rollout.version == rollout.version:
                raise Conflict(f"the version {rollout.version} is the canary of the rollout {name}; delete that first")
            if other.record.state.phase == "complete":
                raise Conflict(f"the rollout {name} is complete and takes all clients; delete it, or nobody is left")
        key = ROLLOUTS + rollout.name
        for _ in range(TRIES):
            entry = await self._registry.get(key)
            before = self._readable(entry).record if entry is not None else None
            if before is not None and before.state.phase in {"running", "paused"}:
                raise Conflict(f"the rollout {rollout.name} is {before.state.phase}; abort it before you revise it")
            now = self._clock.realtime()
            state = start(rollout, now, self.live(rollout))
            record = created(rollout.name, document, state, who=who, now=now, before=before)
            value = _encode(record)
            if not self._orders.room_for(key, len(value)):
                raise TooLarge(f"with it all orders would have over {BYTES_MAX} bytes; delete lists", limit=BYTES_MAX)
            try:
                index = await self._registry.put(key, value, expect=entry.index if entry else 0)
            except CasConflict:
                continue
            self._wrote(RunningRollout(record, rollout, index))
            return record
        raise Conflict(f"others change the rollout {rollout.name} all the time")

    async def order(self, name: str, order: Order, *, who: str) -> RolloutRecord:
        """Carry out an order. Raises NotFound, and Conflict with the sentence that says why not."""

        def change(running: RunningRollout) -> RolloutRecord:
            now = self._clock.realtime()
            state = command(running.rollout, running.record.state, order, now, who=who, live=self.live(running.rollout))
            if isinstance(state, Refused):
                raise Conflict(state.sentence)
            return changed(running.record, state, who=who, action=order, now=now, detail=state.reason)

        written = await self._change(name, change, read=self._in_force)
        assert written is not None
        return written

    async def delete(self, name: str) -> None:
        """Forget a rollout that is over: its nodes are like all others then. Raises NotFound, Conflict."""
        entry = await self._found(name)
        try:
            phase = self._in_force(entry).record.state.phase
        except Conflict:  # nobody goes by what nobody can read
            phase = "aborted"
        if phase in {"running", "paused"}:
            raise Conflict(f"the rollout {name} is {phase}; abort it before you delete it")
        try:
            await self._registry.delete(entry.key, expect=entry.index)
        except CasConflict as error:
            raise Conflict(f"somebody changed the rollout {name} meanwhile") from error

    # ---------------------------------------------------------------- judging

    async def run(self) -> None:
        """Judge, if this scheduler is the one, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leadership.run())
            tasks.create_task(self._judge_forever())

    async def _judge_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self.is_judging:
                self._ledgers.clear()  # whoever judges collects the evidence
                continue
            if not self._orders.is_known.is_set():
                continue
            if self._is_new:
                self._is_new = False
                self._must_renew = set(self._orders.rollouts)
            await self._feed(FEED_MS)
            async with asyncio.TaskGroup() as tasks:  # a Prometheus that is slow for one does not keep the others
                for name in self._orders.rollouts:
                    tasks.create_task(self._judge_safely(name))

    async def _judge_safely(self, name: str) -> None:
        """Judge, and contain what goes wrong: the next scheduler would fail in the same way, and so all of them."""
        try:
            await self._judge(name)
        except RoadsteadError as error:
            self._log.warning("rollout_not_judged", rollout=name, error=str(error))
        except Exception:  # noqa: BLE001 - see above
            self._log.exception("rollout_not_judged", rollout=name)

    async def _judge(self, name: str) -> None:
        running = self._orders.rollouts.get(name)
        if running is None or running.record.state.phase not in {"running", "paused"}:
            return
        if name in self._must_renew:
            await self._change(name, lambda found: self._moved_on(found, "judging taken over", self._renew))
            self._must_renew.discard(name)
        await self._change(name, lambda found: self._moved_on(found, "", self._tick))
        running = self._orders.rollouts.get(name)
        if running is not None and self._is_due(name, running):
            self._analysed[name] = self._clock.monotonic()
            await self._analyse(name, running)

    def _is_due(self, name: str, running: RunningRollout) -> bool:
        """Whether to make an analysis now."""
        state, now = running.record.state, self._clock.realtime()
        due = next_deadline(running.rollout, state)
        if due is None:
            return False
        since_ms = self._clock.monotonic() - self._analysed.setdefault(name, self._clock.monotonic())
        # A wall clock that was ahead and was set back must not keep anybody from seeing what goes wrong.
        return now >= due or (now < state.at and since_ms >= running.rollout.analysis.interval_ms)

    def _tick(self, running: RunningRollout) -> RolloutState:
        live = self.live(running.rollout) if any(True for _ in self._nodes()) else None  # or nothing would be to move
        return tick(running.rollout, running.record.state, self._clock.realtime(), live)

    def _renew(self, running: RunningRollout) -> RolloutState:
        return renewed(running.record.state, self._clock.realtime())

    def _moved_on(
        self, running: RunningRollout, action: str, decide: Callable[[RunningRollout], RolloutState]
    ) -> RolloutRecord | None:
        """Return the record after a decision of the machine, None if it brought nothing."""
        state = decide(running)
        if state is running.record.state:
            return None
        before = running.record.state
        if not action:
            action = "step" if state.step != before.step else state.phase if state.phase != before.phase else "epoch"
        return changed(running.record, state, who="scheduler", action=action, now=state.at, detail=state.reason)

    async def _analyse(self, name: str, running: RunningRollout) -> None:
        rollout, state, revision = running.rollout, running.record.state, _revision(running.record)
        answers = await self._ask(rollout)
        await self._feed(FRESH_MS)
        running = self._orders.rollouts.get(name, running)
        # Another step was begun meanwhile, or another document.
        if running.record.state.epoch != state.epoch or _revision(running.record) != revision:
            return
        ledger = self._ledger(name, running)
        step = rollout.steps[state.step]
        verdict = judge(
            rollout,
            ledger,
            now=self._clock.realtime(),
            percent=state.percent,
            connects_min=step.connects_min,
            promql=answers,
        )

        def change(found: RunningRollout) -> RolloutRecord | None:
            if _revision(found.record) != revision:
                return None
            after = judged(found.rollout, found.record.state, verdict, self._clock.realtime())
            if after is found.record.state:
                return None
            if after.phase == found.record.state.phase:  # nothing that anybody decided: no line in the history
                return msgspec.structs.replace(found.record, state=after)
            self._log.warning("rollout_failed", rollout=name, reason=after.reason)
            return changed(found.record, after, who="analysis", action=after.phase, now=after.at, detail=after.reason)

        await self._change(name, change)

    async def _ask(self, rollout: Rollout) -> dict[int, float | str]:
        measure = self._measure
        queries = {number: one.query for number, one in enumerate(rollout.analysis.checks) if one.metric == "promql"}
        if measure is None:
            return dict.fromkeys(queries, "no Prometheus server is configured (scheduler.prometheus_url)")
        async with asyncio.TaskGroup() as tasks:  # together: each has a deadline of seconds
            asked = {
                number: tasks.create_task(_answer(measure(f"{rollout.name}/{number}", query)))
                for number, query in queries.items()
            }
        return {number: task.result() for number, task in asked.items()}

    # ---------------------------------------------------------------- inside

    def _elected(self) -> None:
        """Evidence of an epoch that somebody else collected is not here: a new one begins."""
        self._is_new = True

    async def _feed(self, age_ms: int) -> None:
        """Give all rollouts' evidence the newest reports, unless it has some that are not as old."""
        async with self._feeding:
            if self._clock.monotonic() - self._fed_at < age_ms:
                return
            self._fed_at = self._clock.monotonic()
            reports: list[NodeTotals] = []
            if self._running():
                for sighting in self._sightings:
                    # A thousand nodes' histograms take 60 ms to read: others go on in between.
                    if len(reports) % BATCH == BATCH - 1:
                        await asyncio.sleep(0)
                    reports.append(_totals(sighting))
            running = self._running()
            self._ledgers = {name: known for name, known in self._ledgers.items() if name in running}
            self._analysed = {name: at for name, at in self._analysed.items() if name in running}
            for name, one in running.items():
                self._ledger(name, one).observe(reports)

    def _running(self) -> dict[str, RunningRollout]:
        rollouts = self._orders.rollouts.items()
        return {name: one for name, one in rollouts if one.record.state.phase in {"running", "paused"}}

    def _ledger(self, name: str, running: RunningRollout) -> Ledger:
        """Return the evidence of the rollout's present epoch."""
        epoch, revision = running.record.state.epoch, _revision(running.record)
        known = self._ledgers.get(name)
        if known is None or known[0] != revision:
            known = self._ledgers[name] = revision, Ledger(running.rollout.version, epoch=epoch)
        ledger = known[1]
        if ledger.epoch != epoch:
            ledger.begin(epoch)
        return ledger

    async def _change(
        self, name: str, change: _Change, *, read: Callable[[Entry], RunningRollout] | None = None
    ) -> RolloutRecord | None:
        """Write what `change` makes of the record that is there; None, and nothing is written, if that is nothing."""
        running = self._orders.rollouts.get(name)
        for _ in range(TRIES):
            if running is None:
                running = (read or self._readable)(await self._found(name))
            record = change(running)
            if record is None:
                return None
            try:
                index = await self._registry.put(ROLLOUTS + name, _encode(record), expect=running.index)
            except CasConflict:
                running = None
                continue
            self._wrote(RunningRollout(record, running.rollout, index))
            return record
        raise Conflict(f"others change the rollout {name} all the time")

    async def _found(self, name: str) -> Entry:
        entry = await self._registry.get(ROLLOUTS + name)
        if entry is None:
            raise NotFound(f"there is no rollout {name}")
        return entry

    def _readable(self, entry: Entry) -> RunningRollout:
        """Return the rollout of an entry. Raises Conflict for one that cannot be read."""
        try:
            return running_rollout(entry, self._orders.rollouts.get(entry.key.removeprefix(ROLLOUTS)))
        except UNREADABLE as error:
            raise Conflict(f"{entry.key} in the registry cannot be read: {error}") from error

    def _in_force(self, entry: Entry) -> RunningRollout:
        """Return the same, or the last good one: an operator's order is for what is in force, and may write over it."""
        try:
            return self._readable(entry)
        except Conflict:
            known = self._orders.rollouts.get(entry.key.removeprefix(ROLLOUTS))
            if known is None:
                raise
            return msgspec.structs.replace(known, index=entry.index)

    def _wrote(self, running: RunningRollout) -> None:
        """Go by it at once; the registry's view of it comes later."""
        self._orders.wrote(running)


def parsed(document: str) -> Rollout:
    """Return the rollout that a document describes. Raises BadRequest with every fault and its line."""
    rollout = parse_rollout(document)
    if isinstance(rollout, tuple):
        raise bad_document(rollout)
    return rollout


def bad_document(faults: Iterable[tuple[int, str]]) -> BadRequest:
    """Return the error for a document with faults: (line, message) each."""
    listed = [{"line": line, "message": message} for line, message in faults]
    lines = "; ".join(f"line {fault['line']}: {fault['message']}" for fault in listed)
    return BadRequest(f"the document is not good: {lines}", faults=listed)


async def _answer(measured: Awaitable[Measurement]) -> float | str:
    measurement = await measured
    return measurement.value if isinstance(measurement, Measured) else measurement.reason


def _revision(record: RolloutRecord) -> _Revision:
    return record.created_at, record.document_revision


def _totals(sighting: Sighting) -> NodeTotals:
    instance, report = sighting.instance, sighting.report
    return NodeTotals(
        node=instance.id,
        incarnation=instance.incarnation,
        report=report.number,
        version=report.version or instance.meta.get("version", ""),
        region=instance.meta.get("region", ""),
        is_draining=report.is_draining,
        connections=report.connections,
        accepted=report.accepted,
        rejected=report.rejected,
        abnormal=report.abnormal,
        handshakes=Histogram.decode(report.handshakes),
        pushes=Histogram.decode(report.pushes),
    )
