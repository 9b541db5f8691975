"""How a table becomes the wanted one: the leader's decisions, each of them one write of the table.

The leader compares the table with what its weights ask for and with what the nodes report, and decides all that can be
decided now as one list of changes, written by compare-and-set. It remembers nothing that the table does not say:
pauses, weights of nodes that leave and the stage of each move are in the table, and reports come again each half
second. So another leader goes on from any point, and a write whose answer was lost is simply read. What operators want
is not remembered either: the shell says what that is now, and what was withdrawn is not there any more.

What must be true before each change:

    Begin     neither the partition nor too many of its node pair are on the move; source and target are live
    COPY      every live status and access node acknowledged PREPARE
    CATCHUP   the target is within reach of the source's head
    SEAL      the target was equal to the source at a mark, and is close to it still
    COMMIT    the target is ready: all of the sealed stream, equal digests. The single commit point.
    CLEANUP   every live status and access node acknowledged COMMIT: nobody asks the source any more
    End       the source acknowledged CLEANUP, or is gone; after a taking: the barrier (`serving.is_fenced`)

    target gone before COMMIT   End: the source goes on
    no progress before COMMIT   End: the source goes on, and the pair rests (`patience`)
    source gone, target ready   COMMIT: nothing is lost
    source gone otherwise       Take: the target refills from the access nodes after the barrier
    owner gone, no move         Take, by whoever shall own it without the lost node

Invariants:
    I1  One write is under way at a time, and it continues the newest table that this leader has read.
    I2  A change is decided only while its condition above holds.
    I3  At most a pair's share of `MOVES_MAX` moves a pair of nodes, of which its share of `SEALED_MAX` are sealed.
    I4  Nothing but the table, the reports, the present wish, whether grants have ended, and patience decides.
    I5  After COMMIT a move only goes forward.

"Gone" is a presumption, from silence: it may be wrong, and then costs time but no truth, since the barrier waits for
what fences the old owner. No timeout here is a fence.

Sources: Scylla's topology-over-raft (stages with their conditions), Cassandra's CEP-21 (resumable sequences), Patroni's
quorum (restart from every prefix).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import assert_never

import msgspec

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
    Registered,
    Settle,
    Stage,
    Take,
    plan_table,
)
from status.core.patience import Pair, Patience
from status.core.serving import ASK_MS, is_fenced, is_majority

__all__ = [
    "ABSENT_MS",
    "GONE_MS",
    "MOVES_MAX",
    "SEALED_MAX",
    "Migration",
    "NodeReport",
    "Progress",
    "View",
    "WriteTable",
]
__all__ += ["decide", "misplaced_by", "planned"]

MOVES_MAX = 384
"""So many partitions are on the move at once, shared evenly by the pairs of nodes."""
SEALED_MAX = 192
"""So many of them are sealed at once: requests wait for the final copy of all of them."""
GONE_MS = 2_000
"""Silence after which a status node is presumed gone."""
ABSENT_MS = ASK_MS * 3 // 2
"""The same of a node that lost what it led by."""
FILLING_MS = 10_000
"""How long it takes at most until everybody who lives is registered in a registry that started over: ten heartbeats."""


class Progress(IntEnum):
    """How far a target is with a move."""

    NONE = 0
    COPIED = 1
    CAUGHT_UP = 2
    READY = 3


class NodeReport(msgspec.Struct, frozen=True, array_like=True):
    """What a status node says of itself, with each question for a lease."""

    node: NodeId
    incarnation: Incarnation
    acknowledged: Epoch
    progress: dict[tuple[int, Epoch], Progress] = {}
    """(partition, move_id) -> how far, of moves to this node."""
    incomplete: frozenset[int] = frozenset()
    """Partitions that it owns and has no complete store of."""
    access: dict[NodeId, Epoch] = {}
    """Access nodes with a lease here, with the newest epoch each acknowledged."""
    answers: dict[NodeId, int] = {}
    """How many answers this life took in of each source that it copies from. Only that it grows says something."""
    is_leaving: bool = False
    """Whether it is about to stop: others are to have its partitions before."""


@dataclass(frozen=True, slots=True)
class View:
    """What a leader knows at an instant beside the table."""

    live: Mapping[NodeId, NodeReport]
    acknowledged: Mapping[NodeId, Epoch]
    """Per status node, live or not, the newest epoch it ever acknowledged."""
    grants_over: Callable[[NodeId], bool]
    stalled: Collection[int] = ()
    """Partitions whose move made no progress for too long."""
    resting: Collection[Pair] = ()
    """Pairs of nodes that shall begin and seal no move."""
    is_filled: bool = False
    """Whether the leader leads for so long that a registry which started over must list everybody again."""

    def known_to_all(self) -> Epoch:
        """Return the newest epoch that every live status and access node acknowledged."""
        access: dict[NodeId, Epoch] = {}
        for report in self.live.values():
            for node, seen in report.access.items():
                access[node] = max(seen, access.get(node, Epoch(0)))
        return min([*(report.acknowledged for report in self.live.values()), *access.values()], default=Epoch(0))

    def progress(self, move: Move) -> Progress:
        """Return how far the target says to be."""
        report = self.live.get(move.target)
        return report.progress.get((move.partition, move.move_id), Progress.NONE) if report else Progress.NONE

    def answers(self, source: NodeId, target: NodeId) -> int:
        """Return how many answers the target says it took in of the source."""
        report = self.live.get(target)
        return report.answers.get(source, 0) if report else 0


# ---------------------------------------------------------------- the decision


def decide(table: PartitionTable, view: View, misplaced: Mapping[int, NodeId] | None) -> list[Change]:
    """Return all changes that may be made to the table now; none when it has to wait or is as wanted.

    `misplaced` is what `planned` says of the live nodes' weights, None when no wanted node is live.
    """
    changes: list[Change] = [Settle()] if table.former and may_change_members(table, view) else []
    if table.is_filling and view.is_filled:
        changes.append(Registered())
    changes += _decide_moves(table, view)
    if misplaced is None:
        return changes
    moving = {move.partition for move in table.moves}
    pairs = Counter((move.source, move.target) for move in table.moves)
    share = _share(MOVES_MAX, {*pairs, *((table.owner(partition), target) for partition, target in misplaced.items())})
    for partition, target in misplaced.items():
        owner = table.owner(partition)
        if partition in moving:
            continue
        if owner not in view.live:
            changes.append(Take(partition, target))
        elif not table.is_paused and pairs[owner, target] < share and _may_begin(view, partition, (owner, target)):
            pairs[owner, target] += 1
            changes.append(Begin(partition, target))
    return changes or _decide_members(table, view)


def _share(maximum: int, pairs: Collection[Pair]) -> int:
    """Return how many moves each pair may have, so that all of them together have no more than the maximum."""
    return max(1, maximum // max(1, len(pairs)))


def _decide_moves(table: PartitionTable, view: View) -> list[Change]:
    """Decide on all moves, one by one but for the seals: those of a pair wait until all of it has caught up.

    Then nothing else keeps its two nodes busy. What is committed now makes room for the next seals in the same write.
    """
    known = view.known_to_all() if table.moves else Epoch(0)
    decided = [(move, _decide_move(table, view, move, known)) for move in table.moves]
    copying: set[Pair] = set()
    sealed: Counter[Pair] = Counter()
    for move, change in decided:
        if move.stage is Stage.SEAL and change is None:
            sealed[move.source, move.target] += 1
        elif move.stage is Stage.COPY or (move.stage is Stage.CATCHUP and change is None):
            copying.add((move.source, move.target))
    share = _share(SEALED_MAX, {(move.source, move.target) for move in table.moves})
    changes: list[Change] = []
    for move, change in decided:
        pair = (move.source, move.target)
        if isinstance(change, Advance) and change.stage is Stage.SEAL:
            if pair in copying or pair in view.resting or sealed[pair] >= share:
                continue
            sealed[pair] += 1
        if change is not None:
            changes.append(change)
    return changes


def _decide_move(table: PartitionTable, view: View, move: Move, known: Epoch) -> Change | None:
    partition = move.partition
    if move.stage in AFTER_COMMIT:
        if move.target in view.live:
            return _decide_late_stage(table, view, move, known)
        heir = _heir(table, view, move)
        return Take(partition, heir) if heir is not None else None
    if move.stage is Stage.SEAL and view.progress(move) is Progress.READY:
        return Advance(partition, Stage.COMMIT)
    if move.target not in view.live:
        return End(partition)
    if move.source not in view.live:
        return Take(partition, move.target)
    if partition in view.stalled:
        return End(partition)
    return _decide_early_stage(table, view, move, known)


def _decide_early_stage(table: PartitionTable, view: View, move: Move, known: Epoch) -> Change | None:
    partition, progress = move.partition, view.progress(move)
    match move.stage:
        case Stage.PREPARE:
            if move.target not in table.wanted():
                return End(partition)
            return Advance(partition, Stage.COPY) if known >= table.partition_epoch(partition) else None
        case Stage.COPY:
            return Advance(partition, Stage.CATCHUP) if progress >= Progress.COPIED else None
        case Stage.CATCHUP:
            may_seal = progress >= Progress.CAUGHT_UP and not table.is_paused
            return Advance(partition, Stage.SEAL) if may_seal else None
        case _:
            # Sealed. If the source forgot what it was sealing, its next life has nothing to send.
            return End(partition) if partition in view.live[move.source].incomplete else None


def _decide_late_stage(table: PartitionTable, view: View, move: Move, known: Epoch) -> Change | None:
    partition, epoch = move.partition, table.partition_epoch(move.partition)
    match move.stage:
        case Stage.COMMIT:
            return Advance(partition, Stage.CLEANUP) if known >= epoch else None
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


def _may_begin(view: View, partition: int, pair: Pair) -> bool:
    return pair not in view.resting and partition not in view.live[pair[0]].incomplete


def misplaced_by(table: PartitionTable, plan: Sequence[NodeId]) -> dict[int, NodeId]:
    """Return the partitions that another node owns than by the plan, with their owner to be. Costs a pass."""
    nodes = table.nodes
    pairs = enumerate(zip(table.owners, plan, strict=True))
    return {partition: target for partition, (owner, target) in pairs if nodes[owner] != target}


def planned(table: PartitionTable, weights: Mapping[NodeId, int]) -> tuple[NodeId, ...]:
    """Return each partition's owner to be by these weights, moving as little as possible from where all moves end."""
    owners = list(table.owners)
    for move in table.moves:
        owners[move.partition] = table.nodes.index(move.target)
    plan = plan_table(weights, PartitionTable(table.epoch, table.nodes, table.weights, tuple(owners)))
    return tuple(plan.nodes[owner] for owner in plan.owners)


def _decide_members(table: PartitionTable, view: View) -> list[Change]:
    """Forget nodes of weight 0 that own nothing, once a majority knows the set of nodes that is (see `former`)."""
    used = {table.nodes[owner] for owner in set(table.owners)}
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
class Wished:
    """Time passed, and this is all that operators want now: what an earlier wish said beside it was withdrawn."""

    weights: Mapping[NodeId, int] | None = None
    """Which nodes shall own partitions, with their weights; None: as the table has it."""
    is_paused: bool = False
    abort: Epoch = Epoch(0)
    """Moves that began at this epoch or before are to be rolled back where they can be: before COMMIT."""


Event = Reported | TableRead | Wished


@dataclass(frozen=True, slots=True)
class WriteTable:
    """Write this table if the registry still has the one of epoch `expect`; then read, and step `TableRead`."""

    expect: Epoch
    table: PartitionTable
    stalled: tuple[Pair, ...] = ()
    """Pairs of which it ends moves that got nowhere, to be told to whoever looks after them."""


class Migration:
    """One leader's step machine, made anew with each term.

    It decides nothing before it has heard of every node of the table, or waited `GONE_MS` for them; `ABSENT_MS` for
    who led last.
    """

    def __init__(
        self, now: Instant, *, grants_over: Callable[[Instant, NodeId], bool], predecessor: NodeId | None = None
    ) -> None:
        """`grants_over`: `LeaderGrants.is_over` of the same term. `predecessor`: who led last, if that is known."""
        self._grants_over = grants_over
        self._predecessor = predecessor
        self._began_at = now
        self._table: PartitionTable | None = None
        self._is_writing = False
        self._reports: dict[NodeId, tuple[Instant, NodeReport]] = {}
        self._acknowledged: dict[NodeId, Epoch] = {}
        self._wish: Wished | None = None
        self._patience = Patience()
        self._quiet: tuple[Epoch, tuple[tuple[NodeId, bool], ...]] | None = None
        self._plan: tuple[dict[NodeId, int], Sequence[NodeId]] | None = None
        self._found: tuple[Epoch, dict[int, NodeId]] = (Epoch(0), {})

    def step(self, now: Instant, event: Event) -> list[WriteTable]:
        """Apply one event; return the write to make now, if any."""
        match event:
            case Reported(report):
                self._reported(now, report)
                return []  # what follows from it is decided later, from many at once
            case TableRead(table):
                if self._table is None:
                    self._began_at = now  # before there was a table nobody could be heard
                if self._table is None or table.epoch >= self._table.epoch:
                    self._table = table
                    self._is_writing = False
            case Wished():
                self._wish = event
            case _:
                assert_never(event)
        return self._write(now)

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        assert self._table is not None or not self._is_writing, "I1"
        self._patience.check_invariants()

    def _reported(self, now: Instant, report: NodeReport) -> None:
        last = self._reports.get(report.node)
        if last is not None and report.incarnation < last[1].incarnation:
            return
        self._reports[report.node] = (now, report)
        self._acknowledged[report.node] = max(
            report.acknowledged, self._acknowledged.get(report.node, report.acknowledged)
        )

    def _view(self, now: Instant, table: PartitionTable) -> View:
        live = {node: report for node, (at, report) in sorted(self._reports.items()) if now < at + GONE_MS}
        view = View(live, self._acknowledged, lambda node: self._grants_over(now, node))
        self._patience.look(now, table.moves, view.answers)
        return replace(
            view,
            stalled=self._patience.stalled,
            resting=self._patience.resting,
            is_filled=now >= self._began_at + FILLING_MS,
        )

    def _write(self, now: Instant) -> list[WriteTable]:
        table = self._table
        if table is None or self._is_writing:
            return []
        view = self._view(now, table)
        if any(node not in view.live and self._may_be_there(now, node) for node in table.nodes):
            return []
        asked = _asked(table, self._wish)
        quiet = (table.epoch, tuple((node, report.is_leaving) for node, report in view.live.items()))
        if quiet == self._quiet and not asked:
            return []
        misplaced = self._misplaced(table, view)
        changes = _allowed(table, view, asked) or decide(table, view, misplaced)
        if not changes:
            is_settled = not (asked or table.moves or table.former or table.is_filling or 0 in table.weights)
            if is_settled and misplaced is not None and not misplaced:
                self._quiet = quiet  # only another table, a wish, or a node that comes or goes is news now
            return []
        self._is_writing = True
        ended = {change.partition for change in changes if isinstance(change, End)} & self._patience.stalled
        stalled = {(move.source, move.target): None for move in table.moves if move.partition in ended}
        return [WriteTable(table.epoch, table.with_changes(changes), tuple(stalled))]

    def _may_be_there(self, now: Instant, node: NodeId) -> bool:
        """Return whether a node that was not heard yet may be about to report.

        Who led last needs a lease as soon as its lock is over, and asks everybody. Who is led need not know me yet.
        """
        return now < self._began_at + (ABSENT_MS if node == self._predecessor else GONE_MS)

    def _misplaced(self, table: PartitionTable, view: View) -> Mapping[int, NodeId] | None:
        """Return what is misplaced by the plan for the wanted nodes that are live and stay; None without live ones.

        The plan is made anew only when these nodes or weights change, and looked up once a table.
        """
        weights = {node: weight for node, weight in table.wanted().items() if node in view.live}
        if not weights:
            return None
        # Whoever is about to stop is left what it has only if nobody stays.
        weights = {node: weight for node, weight in weights.items() if not view.live[node].is_leaving} or weights
        if self._plan is None or self._plan[0] != weights:
            self._plan = (weights, planned(table, weights))
            self._found = (Epoch(0), {})
        if self._found[0] != table.epoch:
            self._found = (table.epoch, misplaced_by(table, self._plan[1]))
        return self._found[1]


def _asked(table: PartitionTable, wish: Wished | None) -> list[Change]:
    """Return what differs in the table from what operators want, as changes of it."""
    if wish is None:
        return []
    asked: list[Change] = [
        End(move.partition) for move in table.moves if move.move_id <= wish.abort and move.stage not in AFTER_COMMIT
    ]
    if wish.is_paused != table.is_paused:
        asked.append(Pause(wish.is_paused))
    if wish.weights is not None and wish.weights != table.wanted():
        asked.append(Members(tuple(sorted({**dict.fromkeys(table.nodes, 0), **wish.weights}.items()))))
    return asked


def _allowed(table: PartitionTable, view: View, asked: Sequence[Change]) -> list[Change]:
    """Return what of it may be done now. New nodes wait until the set of nodes may change."""
    may_add = may_change_members(table, view)
    return [
        change
        for change in asked
        if not isinstance(change, Members) or may_add or {node for node, _ in change.weights} == {*table.nodes}
    ]
