"""How a table becomes the wanted one: the leader's decisions, each of them one write of the table.

The leader compares the table with what its weights ask for and with what the nodes report, and decides all that can be
decided now as one list of changes, written by compare-and-set. It remembers nothing that the table does not say:
pauses, weights of nodes that leave and the stage of each move are in the table, and reports come again each half
second. So another leader goes on from any point, and a write whose answer was lost is simply read.

What must be true before each change:

    Begin     neither the partition nor too many of its node pair are on the move; source and target are live
    COPY      every live status and access node acknowledged PREPARE
    CATCHUP   the target is within reach of the source's head
    SEAL      the target was equal to the source at a mark, and is close to it still
    COMMIT    the target is ready: all of the sealed stream, equal digests. The single commit point.
    CLEANUP   every live status and access node acknowledged COMMIT: nobody asks the source any more
    End       the source acknowledged CLEANUP, or is gone; after a taking: the barrier (`serving.is_fenced`)

    target gone before COMMIT   End: the source goes on
    source gone, target ready   COMMIT: nothing is lost
    source gone otherwise       Take: the target refills from the access nodes after the barrier
    owner gone, no move         Take, by whoever shall own it without the lost node

Invariants:
    I1  One write is under way at a time, and it continues the newest table that this leader has read.
    I2  A change is decided only while its condition above holds.
    I3  At most `PAIR_MOVES_MAX` moves a pair of nodes.
    I4  Nothing but the table, the reports and whether grants have ended decides.
    I5  After COMMIT a move only goes forward.

"Gone" is a presumption, from silence: it may be wrong, and then costs time but no truth, since the barrier waits for
what fences the old owner. No timeout here is a fence.

Sources: Scylla's topology-over-raft (stages with their conditions), Cassandra's CEP-21 (resumable sequences), Patroni's
quorum (restart from every prefix).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import assert_never

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.core.partitions import (
    AFTER_COMMIT,
    Advance,
    Begin,
    Change,
    End,
    Members,
    Move,
    PartitionTable,
    Pause,
    Settle,
    Stage,
    Take,
    plan_table,
)
from status.core.serving import is_fenced, is_majority

__all__ = ["GONE_MS", "PAIR_MOVES_MAX", "Migration", "NodeReport", "Progress", "View", "WriteTable", "decide"]

PAIR_MOVES_MAX = 8
GONE_MS = 3_000
"""Silence after which a status node is presumed gone."""


class Progress(IntEnum):
    """How far a target is with a move."""

    NONE = 0
    COPIED = 1
    CAUGHT_UP = 2
    READY = 3


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a status node says of itself, with each question for a lease."""

    node: NodeId
    incarnation: Incarnation
    acknowledged: Epoch
    progress: Mapping[tuple[int, Epoch], Progress] = field(default_factory=dict)
    """(partition, move_id) -> how far, of moves to this node."""
    incomplete: frozenset[int] = frozenset()
    """Partitions that it owns and has no complete store of."""
    access: Mapping[NodeId, Epoch] = field(default_factory=dict)
    """Access nodes with a lease here, with the newest epoch each acknowledged."""


@dataclass(frozen=True, slots=True)
class View:
    """What a leader knows at an instant beside the table."""

    live: Mapping[NodeId, NodeReport]
    acknowledged: Mapping[NodeId, Epoch]
    """Per status node, live or not, the newest epoch it ever acknowledged."""
    grants_over: Callable[[NodeId], bool]

    def is_known_to_all(self, epoch: Epoch) -> bool:
        """Return whether every live status and access node acknowledged the epoch."""
        access: dict[NodeId, Epoch] = {}
        for report in self.live.values():
            for node, seen in report.access.items():
                access[node] = max(seen, access.get(node, Epoch(0)))
        return all(report.acknowledged >= epoch for report in self.live.values()) and all(
            seen >= epoch for seen in access.values()
        )

    def progress(self, move: Move) -> Progress:
        """Return how far the target says to be."""
        report = self.live.get(move.target)
        return report.progress.get((move.partition, move.move_id), Progress.NONE) if report else Progress.NONE


# ---------------------------------------------------------------- the decision


def decide(table: PartitionTable, view: View) -> list[Change]:
    """Return all changes that may be made to the table now; none when it has to wait or is as wanted."""
    changes: list[Change] = [Settle()] if table.former and may_change_members(table, view) else []
    for move in table.moves:
        change = _decide_move(table, view, move)
        if change is not None:
            changes.append(change)
    moving = {move.partition for move in table.moves}
    wanted = _planned(table, view)
    if wanted is None:
        return changes
    pairs = Counter((move.source, move.target) for move in table.moves)
    for partition in range(len(table.owners)):
        owner, target = table.owner(partition), wanted[partition]
        if partition in moving or owner == target:
            continue
        if owner not in view.live:
            changes.append(Take(partition, target))
        elif not table.is_paused and pairs[owner, target] < PAIR_MOVES_MAX and _may_send(view, owner, partition):
            pairs[owner, target] += 1
            changes.append(Begin(partition, target))
    return changes or _decide_members(table, view)


def _decide_move(table: PartitionTable, view: View, move: Move) -> Change | None:
    partition = move.partition
    if move.stage in AFTER_COMMIT:
        if move.target in view.live:
            return _decide_late_stage(table, view, move)
        heir = _heir(table, view, move)
        return Take(partition, heir) if heir is not None else None
    if move.stage is Stage.SEAL and view.progress(move) is Progress.READY:
        return Advance(partition, Stage.COMMIT)
    if move.target not in view.live:
        return End(partition)
    if move.source not in view.live:
        return Take(partition, move.target)
    return _decide_early_stage(table, view, move)


def _decide_early_stage(table: PartitionTable, view: View, move: Move) -> Change | None:
    partition, progress = move.partition, view.progress(move)
    match move.stage:
        case Stage.PREPARE:
            if move.target not in table.wanted():
                return End(partition)
            is_known = view.is_known_to_all(table.partition_epoch(partition))
            return Advance(partition, Stage.COPY) if is_known else None
        case Stage.COPY:
            return Advance(partition, Stage.CATCHUP) if progress >= Progress.COPIED else None
        case Stage.CATCHUP:
            may_seal = progress >= Progress.CAUGHT_UP and not table.is_paused
            return Advance(partition, Stage.SEAL) if may_seal else None
        case _:
            # Sealed. If the source forgot what it was sealing, its next life has nothing to send.
            return End(partition) if partition in view.live[move.source].incomplete else None


def _decide_late_stage(table: PartitionTable, view: View, move: Move) -> Change | None:
    partition, epoch = move.partition, table.partition_epoch(move.partition)
    match move.stage:
        case Stage.COMMIT:
            return Advance(partition, Stage.CLEANUP) if view.is_known_to_all(epoch) else None
        case Stage.CLEANUP:
            is_done = move.source not in view.live or view.live[move.source].acknowledged >= epoch
            return End(partition) if is_done else None
        case _:
            is_passed = is_fenced(
                table,
                partition,
                source=move.source,
                grants_over=view.grants_over(move.source),
                acknowledged=view.acknowledged,
            )
            return End(partition) if is_passed else None


def _heir(table: PartitionTable, view: View, move: Move) -> NodeId | None:
    """Return who takes a partition whose new owner is gone: the one before, if it is there, or the first that is."""
    wanted = [node for node in table.wanted() if node in view.live]
    return move.source if move.source in wanted else next(iter(wanted), None)


def _may_send(view: View, owner: NodeId, partition: int) -> bool:
    return partition not in view.live[owner].incomplete


def _planned(table: PartitionTable, view: View) -> list[NodeId] | None:
    """Return each partition's owner to be, with all moves done; None while no wanted node is live."""
    weights = {node: weight for node, weight in table.wanted().items() if node in view.live}
    if not weights:
        return None
    owners = list(table.owners)
    for move in table.moves:
        owners[move.partition] = table.nodes.index(move.target)
    settled = PartitionTable(table.epoch, table.nodes, table.weights, tuple(owners))
    plan = plan_table(weights, settled)
    return [plan.owner(partition) for partition in range(len(owners))]


def _decide_members(table: PartitionTable, view: View) -> list[Change]:
    """Forget nodes of weight 0 that own nothing, once a majority knows the set of nodes that is (see `former`)."""
    used = {table.owner(partition) for partition in range(len(table.owners))}
    used.update(node for move in table.moves for node in (move.source, move.target))
    weights = {node: weight for node, weight in zip(table.nodes, table.weights, strict=True) if weight or node in used}
    if len(weights) == len(table.nodes) or not may_change_members(table, view):
        return []
    return [Members(tuple(weights.items()))]


def may_change_members(table: PartitionTable, view: View) -> bool:
    """Return whether the set of nodes may change: majorities of it and of the set before know this table.

    An old owner could otherwise go on with grants of a majority of a set that nobody counts any more.
    """
    aware = {node for node, seen in view.acknowledged.items() if seen >= table.epoch}
    return is_majority(table.nodes, aware) and is_majority(table.former, aware)


# ---------------------------------------------------------------- the step machine


@dataclass(frozen=True, slots=True)
class Reported:
    """A status node reported."""

    report: NodeReport


@dataclass(frozen=True, slots=True)
class TableRead:
    """This is the table in the registry: after winning, after each write whatever became of it, and when it changed."""

    table: PartitionTable


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operator wants these weights: adds, removes, changes."""

    weights: tuple[tuple[NodeId, int], ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """An operator pauses or resumes the resize."""

    is_paused: bool


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """An operator wants every move rolled back that can be: those before COMMIT; and a pause, lest they begin anew."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Reported | TableRead | Wanted | Paused | AbortAsked | Tick


@dataclass(frozen=True, slots=True)
class WriteTable:
    """Write this table if the registry still has the one of epoch `expect`; then read, and step `TableRead`."""

    expect: Epoch
    table: PartitionTable


class Migration:
    """One leader's step machine, made anew with each term. It waits `GONE_MS` before it presumes anybody gone."""

    def __init__(self, now: Instant, *, grants_over: Callable[[Instant, NodeId], bool]) -> None:
        """`grants_over`: `LeaderGrants.is_over` of the same term."""
        self._grants_over = grants_over
        self._began_at = now
        self._table: PartitionTable | None = None
        self._is_writing = False
        self._reports: dict[NodeId, tuple[Instant, NodeReport]] = {}
        self._acknowledged: dict[NodeId, Epoch] = {}
        self._asked: list[Wanted | Paused | AbortAsked] = []

    def step(self, now: Instant, event: Event) -> list[WriteTable]:
        """Apply one event; return the write to make now, if any."""
        match event:
            case Reported(report):
                self._reported(now, report)
            case TableRead(table):
                if self._table is None or table.epoch >= self._table.epoch:
                    self._table = table
                    self._is_writing = False
            case Wanted() | Paused() | AbortAsked():
                # The newest of a kind counts: a wish that is repeated while a write is under way must not pile up.
                self._asked = [*(wish for wish in self._asked if type(wish) is not type(event)), event]
            case Tick():
                pass
            case _:
                assert_never(event)
        return self._write(now)

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        assert self._table is not None or not self._is_writing, "I1"

    def _reported(self, now: Instant, report: NodeReport) -> None:
        last = self._reports.get(report.node)
        if last is not None and report.incarnation < last[1].incarnation:
            return
        self._reports[report.node] = (now, report)
        self._acknowledged[report.node] = max(
            report.acknowledged, self._acknowledged.get(report.node, report.acknowledged)
        )

    def _view(self, now: Instant) -> View:
        return View(
            live={node: report for node, (at, report) in sorted(self._reports.items()) if now < at + GONE_MS},
            acknowledged=self._acknowledged,
            grants_over=lambda node: self._grants_over(now, node),
        )

    def _write(self, now: Instant) -> list[WriteTable]:
        table = self._table
        if table is None or self._is_writing or now < self._began_at + GONE_MS:
            return []
        view = self._view(now)
        changes = self._operate(table, view) or decide(table, view)
        if not changes:
            return []
        self._is_writing = True
        return [WriteTable(table.epoch, table.with_changes(changes))]

    def _operate(self, table: PartitionTable, view: View) -> list[Change]:
        """Return the changes of the oldest wish that can be done now."""
        if not self._asked:
            return []
        wish = self._asked[0]
        changes: list[Change]
        match wish:
            case Wanted(weights):
                kept = {node: 0 for node in table.nodes if node not in dict(weights)}
                if set(dict(weights)) - set(table.nodes) and not may_change_members(table, view):
                    return []
                members = tuple(sorted({**dict(weights), **kept}.items()))
                is_new = members != tuple(zip(table.nodes, table.weights, strict=True))
                changes = [Members(members)] if is_new else []
            case Paused(is_paused):
                changes = [Pause(is_paused)] if is_paused != table.is_paused else []
            case AbortAsked():
                aborted = [End(move.partition) for move in table.moves if move.stage not in AFTER_COMMIT]
                changes = [Pause(is_paused=True), *aborted]
            case _:
                assert_never(wish)
        self._asked.pop(0)
        return changes
