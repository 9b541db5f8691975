"""The leader's decisions: every stage's condition, every loss, and every interrupted prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, combinations

import pytest
from msgspec.structs import replace as replace_report

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.core.migration import (
    ABSENT_MS,
    FILLING_MS,
    GONE_MS,
    MOVES_MAX,
    SEALED_MAX,
    Migration,
    NodeReport,
    Progress,
    Reported,
    TableRead,
    View,
    Wished,
    WriteTable,
    decide,
    misplaced_by,
    planned,
)
from status.core.partitions import (
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
    restored,
)
from status.core.patience import COPY_PATIENCE_MS, REST_MS, SEAL_PATIENCE_MS

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
GATE = NodeId("gate")
LIFE = Incarnation(1)
NOW = Instant(100_000)
EARLY = (Stage.PREPARE, Stage.COPY, Stage.CATCHUP, Stage.SEAL)


def table(stage: Stage | None = None, **fields: object) -> PartitionTable:
    """Two partitions: one of a, on its way to b as far as the stage, and one of c, which stays there."""
    made = PartitionTable(Epoch(1), (A, B, C), (0, 1, 1), (0, 2))
    if stage is Stage.RECOVER:
        made = made.with_changes([Take(0, B)])
    elif stage is not None:
        made = made.with_changes([Begin(0, B)])
        order = list(Stage)
        for later in order[1 : order.index(stage) + 1]:
            made = made.with_changes([Advance(0, later)])
    for node, weight in fields.items():
        made = made.with_changes(
            [Members(tuple({**dict(zip(made.nodes, made.weights, strict=True)), node: weight}.items()))]
        )  # type: ignore[dict-item]
    return made


def report(
    node: NodeId,
    seen: int = 99,
    *,
    progress: Progress = Progress.NONE,
    incomplete: Iterable[int] = (),
    access: int = 99,
) -> NodeReport:
    done = {(0, Epoch(2)): progress}
    return NodeReport(node, LIFE, Epoch(seen), done, frozenset(incomplete), {GATE: Epoch(access)})


def decided(now: PartitionTable, seen: View) -> list[Change]:
    weights = {node: weight for node, weight in now.wanted().items() if node in seen.live}
    return decide(now, seen, misplaced_by(now, planned(now, weights)) if weights else None)


def view(*reports: NodeReport, grants_over: bool = True, acknowledged: dict[NodeId, int] | None = None) -> View:
    seen = acknowledged if acknowledged is not None else {found.node: found.acknowledged for found in reports}
    return View(
        {found.node: found for found in reports},
        {node: Epoch(epoch) for node, epoch in seen.items()},
        lambda _: grants_over,
    )


ALL = (report(A), report(B), report(C))


def with_b(progress: Progress, **of_a: object) -> View:
    return view(report(A, **of_a), report(B, progress=progress), report(C))  # type: ignore[arg-type]


# ---------------------------------------------------------------- conditions


def test_a_move_begins_when_the_plan_and_the_owner_differ():
    """And the owner's store is complete."""
    assert decided(table(), view(*ALL)) == [Begin(0, B)]
    assert decided(table(), view(report(A, incomplete=[0]), report(B), report(C))) == []
    assert decided(table().with_changes([Pause(is_paused=True)]), view(*ALL)) == []


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.COMMIT])
def test_prepare_and_commit_wait_for_every_live_node(stage: Stage):
    """Status nodes and access nodes, of which the newest report counts."""
    now = table(stage)
    following = [Advance(0, Stage.COPY if stage is Stage.PREPARE else Stage.CLEANUP)]
    behind = now.epoch - 1
    assert decided(now, view(*ALL)) == following
    assert decided(now, view(report(A, behind), report(B), report(C))) == []
    assert decided(now, view(report(A, access=behind), report(B, access=behind), report(C, access=behind))) == []
    assert decided(now, view(report(A, access=behind), report(B), report(C))) == following
    assert decided(now, view(report(A), report(B)))[:1] == following, "the dead are not waited for"


@pytest.mark.parametrize(
    ("stage", "needs", "following"),
    [
        (Stage.COPY, Progress.COPIED, Stage.CATCHUP),
        (Stage.CATCHUP, Progress.CAUGHT_UP, Stage.SEAL),
        (Stage.SEAL, Progress.READY, Stage.COMMIT),
    ],
)
def test_a_target_says_how_far_it_is(stage: Stage, needs: Progress, following: Stage):
    """I2: and nothing less will do."""
    for progress in Progress:
        changes: list[Change] = [Advance(0, following)] if progress >= needs else []
        assert decided(table(stage), with_b(progress)) == changes


def test_a_pause_seals_nothing_but_ends_what_is_sealed():
    """Parked requests must not wait for an operator."""
    assert decided(table(Stage.CATCHUP).with_changes([Pause(is_paused=True)]), with_b(Progress.CAUGHT_UP)) == []
    sealed = table(Stage.SEAL).with_changes([Pause(is_paused=True)])
    assert decided(sealed, with_b(Progress.READY)) == [Advance(0, Stage.COMMIT)]


def test_cleanup_ends_when_the_source_knows_or_is_gone():
    """It drops its data when it reads the stage."""
    now = table(Stage.CLEANUP)
    assert decided(now, view(report(A, now.epoch - 1), report(B), report(C))) == []
    assert decided(now, view(*ALL)) == [End(0)]
    assert decided(now, view(report(B), report(C))) == [End(0)]


def test_recovery_ends_at_the_barrier():
    """See `is_fenced`, which has its own tests."""
    now = table(Stage.RECOVER)
    two = {B: 99, C: 99}
    assert decided(now, view(report(B), report(C), acknowledged=two)) == [End(0)]
    assert decided(now, view(report(B), report(C), acknowledged=two, grants_over=False)) == []
    assert decided(now, view(report(B), report(C), acknowledged={B: 99})) == []


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("stage", EARLY)
def test_a_lost_target_aborts_before_commit(stage: Stage):
    """The source goes on."""
    assert decided(table(stage), view(report(A), report(C))) == [End(0)]


@pytest.mark.parametrize("stage", EARLY)
def test_a_lost_source_is_taken_from(stage: Stage):
    """Unless the target has everything: then it commits, and nothing is lost."""
    assert decided(table(stage), view(report(B), report(C))) == [Take(0, B)]
    ready = view(report(B, progress=Progress.READY), report(C))
    assert decided(table(stage), ready) == [Advance(0, Stage.COMMIT) if stage is Stage.SEAL else Take(0, B)]


@pytest.mark.parametrize("stage", [Stage.COMMIT, Stage.CLEANUP, Stage.RECOVER])
def test_a_lost_new_owner_is_taken_from(stage: Stage):
    """I5: forward only. The source may have it back if it is wanted, else whoever is; else it waits."""
    now = table(stage, a=1)
    assert decided(now, view(report(A), report(C)))[0] == Take(0, A)
    assert decided(table(stage, c=1), view(report(A), report(C)))[0] == Take(0, C)
    assert decided(table(stage), view(report(A))) == []


def test_a_source_that_forgot_what_it_sealed_aborts():
    """Its next life has nothing to send."""
    assert decided(table(Stage.SEAL), with_b(Progress.CAUGHT_UP, incomplete=[0])) == [End(0)]
    assert decided(table(Stage.SEAL), with_b(Progress.READY, incomplete=[0])) == [Advance(0, Stage.COMMIT)]


def test_a_lost_owner_is_taken_from_even_in_a_pause():
    """Failures do not wait for operators."""
    now = table().with_changes([Pause(is_paused=True)])
    assert decided(now, view(report(B), report(C))) == [Take(0, B)]
    assert decided(now, view(report(A), report(C))) == []


def test_a_move_to_a_node_that_is_not_wanted_any_more_ends():
    """While that is cheap."""
    assert decided(table(Stage.PREPARE, b=0, a=1), view(*ALL)) == [End(0)]


# ---------------------------------------------------------------- bounds and members


def test_a_pair_of_nodes_moves_so_many_partitions_at_once():
    """I3."""
    now = PartitionTable(Epoch(1), (A, B), (1, 1), (0,) * (4 * MOVES_MAX))
    changes = decided(now, view(report(A), report(B)))
    assert len(changes) == MOVES_MAX
    now = now.with_changes(changes)
    assert all(isinstance(change, Advance) for change in decided(now, view(report(A), report(B))))


def test_a_node_of_no_weight_is_forgotten_when_it_owns_nothing():
    """And a majority knows the table."""
    settled = PartitionTable(Epoch(3), (A, B, C), (0, 1, 1), (1, 2))
    assert decided(settled, view(*ALL)) == [Members(((B, 1), (C, 1)))]
    assert decided(settled, view(report(A, 2), report(B, 2), report(C))) == []


def test_moves_of_a_pair_are_sealed_when_all_have_caught_up() -> None:
    """I3: and not too many at once, since requests wait for all of them. What is committed makes room."""
    count = 2 * SEALED_MAX
    begun = PartitionTable(Epoch(1), (A, B), (0, 1), (0,) * count).with_changes(
        [change for one in range(count) for change in (Begin(one, B), Advance(one, Stage.CATCHUP))]
    )

    def decided_with(now: PartitionTable, progress: list[Progress]) -> list[Change]:
        told = {(partition, Epoch(2)): one for partition, one in enumerate(progress)}
        return decided(now, view(report(A), NodeReport(B, Incarnation(1), Epoch(99), told)))

    caught_up = [Progress.CAUGHT_UP] * count
    assert decided_with(begun, [*caught_up[1:], Progress.COPIED]) == [], "one is still copying"
    seals = [Advance(one, Stage.SEAL) for one in range(count)]
    assert decided_with(begun, caught_up) == seals[:SEALED_MAX]
    sealed = begun.with_changes(seals[:SEALED_MAX])
    assert decided_with(sealed, caught_up) == []
    assert decided_with(sealed, [Progress.READY, *caught_up[1:]]) == [
        Advance(0, Stage.COMMIT),
        Advance(SEALED_MAX, Stage.SEAL),
    ]


# ---------------------------------------------------------------- the step machine


def leader(
    now: PartitionTable, *, began: Instant = NOW, over: Callable[[Instant, NodeId], bool] = lambda _, __: True
) -> Migration:
    made = Migration(Instant(began - GONE_MS), grants_over=over)
    assert made.step(Instant(began - GONE_MS), TableRead(now)) == []
    return made


def reported(machine: Migration, *reports: NodeReport, now: Instant = NOW) -> list[WriteTable]:
    for found in reports:
        assert machine.step(now, Reported(found)) == [], "reports are decided on together"
    machine.check_invariants()
    return machine.step(now, Wished())


@pytest.mark.parametrize(("last", "wait_ms"), [(None, GONE_MS), (C, GONE_MS), (A, ABSENT_MS)])
def test_a_leader_waits_before_it_presumes_anybody_gone(last: NodeId | None, wait_ms: int):
    """It has heard of nobody yet; but who led last would have asked for a lease by now."""
    machine = Migration(NOW, grants_over=lambda _, __: True, predecessor=last)
    assert machine.step(NOW, Wished()) == []
    machine.step(NOW, TableRead(table()))
    assert reported(machine, report(B), report(C), now=Instant(NOW + wait_ms - 1)) == []
    later = Instant(NOW + wait_ms)
    assert reported(machine, report(B), report(C), now=later) == [
        WriteTable(Epoch(1), table().with_changes([Take(0, B)]))
    ]


def test_a_leader_waits_from_the_table_on_however_long_it_leads():
    """Who leads before there is a first table could hear of nobody."""
    machine = Migration(NOW, grants_over=lambda _, __: True)
    read_at = Instant(NOW + 10 * GONE_MS)
    assert machine.step(read_at, TableRead(table())) == []
    assert reported(machine, report(B), report(C), now=Instant(read_at + GONE_MS - 1)) == []
    assert reported(machine, now=Instant(read_at + GONE_MS)) == [
        WriteTable(Epoch(1), table().with_changes([Take(0, B)]))
    ]


def test_a_leader_that_heard_of_all_nodes_does_not_wait():
    """Nobody is presumed anything."""
    machine = Migration(NOW, grants_over=lambda _, __: True)
    machine.step(NOW, TableRead(table()))
    assert reported(machine, report(A), report(B)) == []
    assert reported(machine, report(C)) == [WriteTable(Epoch(1), table().with_changes([Begin(0, B)]))]


def test_who_is_registered_is_told_when_a_leader_has_led_for_long_enough():
    """Of a registry that started over it is known then that whoever lives is listed. And once is enough."""
    quiet = PartitionTable(Epoch(1), (A, C), (1, 1), (0, 1))
    now = restored(quiet, Epoch(9), is_refilled=False)
    machine = leader(now)
    early = Instant(NOW - GONE_MS + FILLING_MS - 1)
    assert reported(machine, report(A), report(C), now=early) == []
    [write] = reported(machine, report(A), report(C), now=Instant(early + 1))
    assert write == WriteTable(Epoch(9), now.with_changes([Registered()]))
    assert not write.table.is_filling
    machine.step(Instant(early + 1), TableRead(write.table))
    assert reported(machine, report(A), report(C), now=Instant(early + 2)) == []


def test_others_have_the_partitions_of_who_is_about_to_stop_until_it_is_back():
    """Though nothing was to be decided before; but not if all stop."""
    quiet = PartitionTable(Epoch(1), (A, C), (1, 1), (0, 1))
    leaving = replace_report(report(A), is_leaving=True)
    assert reported(leader(quiet), leaving, replace_report(report(C), is_leaving=True)) == []
    machine = leader(quiet)
    assert reported(machine, report(A), report(C)) == []
    [write] = reported(machine, leaving, report(C))
    assert write.table == quiet.with_changes([Begin(0, C)])
    handed_over = PartitionTable(Epoch(5), (A, C), (1, 1), (1, 1))
    machine.step(NOW, TableRead(handed_over))
    later = Instant(NOW + GONE_MS)
    assert reported(machine, report(C), now=later) == [], "it is gone"
    [write] = reported(machine, report(A), report(C), now=later)
    assert [move.target for move in write.table.moves] == [A]


def test_one_write_is_under_way_at_a_time():
    """I1: until the table was read, whatever became of the write; an older table is no news."""
    machine = leader(table(Stage.PREPARE))
    assert len(reported(machine, *ALL)) == 1
    assert machine.step(NOW, Wished()) == []
    assert machine.step(NOW, TableRead(table())) == []
    again = machine.step(NOW, TableRead(table(Stage.PREPARE)))
    assert again
    assert machine.step(NOW, TableRead(again[0].table)) != again


def test_reports_of_an_older_life_are_dropped():
    """It may say that it is ready with what its next life forgot."""
    machine = leader(table(Stage.SEAL))
    reported(machine, NodeReport(B, Incarnation(2), Epoch(9)), report(A), report(C))
    assert reported(machine, report(B, progress=Progress.READY)) == []


def settled(machine: Migration, writes: list[WriteTable], now: PartitionTable) -> PartitionTable:
    """Write what it decides until it decides nothing more; return the table then."""
    while writes:
        now = writes[0].table
        writes = machine.step(NOW, TableRead(now))
    return now


def test_operators_change_weights():
    """One write; nodes that are not named leave."""
    machine = leader(table(Stage.COPY, a=1))
    reported(machine, *ALL)
    current = table(Stage.COPY, a=1)
    wish = Wished({A: 5, B: 1})
    writes = machine.step(NOW, wish)
    assert writes == [WriteTable(current.epoch, current.with_changes([Members(((A, 5), (B, 1), (C, 0)))]))]
    current = settled(machine, writes, current)
    assert machine.step(NOW, wish) == [], "what is so already is no write"


def test_operators_pause_and_abort():
    """Moves that began later than the abort was asked go on: nobody wanted these rolled back."""
    machine = leader(table(Stage.COPY))
    reported(machine, *ALL)
    current = table(Stage.COPY)
    paused = machine.step(NOW, Wished(is_paused=True))
    assert paused == [WriteTable(current.epoch, current.with_changes([Pause(is_paused=True)]))]
    current = settled(machine, paused, current)
    began = current.moves[0].move_id
    assert machine.step(NOW, Wished(is_paused=True, abort=Epoch(began - 1))) == []
    aborted = machine.step(NOW, Wished(is_paused=True, abort=began))
    assert aborted == [WriteTable(current.epoch, current.with_changes([End(0)]))]
    current = settled(machine, aborted, current)
    assert machine.step(NOW, Wished(is_paused=True, abort=began)) == [], "once"
    resumed = machine.step(NOW, Wished(abort=began))
    assert resumed == [WriteTable(current.epoch, current.with_changes([Pause(is_paused=False)]))]
    assert settled(machine, resumed, current).moves[0].move_id > began


def test_nobody_wishes_anything_before_the_wish_is_known():
    """A new leader must not undo a pause that it has not read yet."""
    now = table(Stage.CATCHUP).with_changes([Pause(is_paused=True)])
    machine = leader(now)
    for found in ALL:
        machine.step(NOW, Reported(found))
    assert machine.step(NOW, TableRead(now)) == []


def test_a_new_node_waits_until_a_majority_knows_the_set():
    """Else two sets could each have a majority. What else was wanted does not wait for it."""
    four = Wished({A: 1, B: 1, C: 1, NodeId("d"): 1})
    settled = PartitionTable(Epoch(3), (A, B, C), (1, 1, 1), (0, 1, 2))
    machine = leader(settled)
    old = [report(node, 2) for node in (A, B, C)]
    assert reported(machine, *old) == []
    assert machine.step(NOW, four) == []
    paused = machine.step(NOW, Wished(four.weights, is_paused=True))
    assert paused[0].table.is_paused
    assert paused[0].table.nodes == (A, B, C)
    machine = leader(settled)
    assert reported(machine, *old) == []
    assert machine.step(NOW, four) == []
    for node in (A, B):
        machine.step(NOW, Reported(report(node, 3)))
    assert machine.step(NOW, four)[0].table.former == (A, B, C)


def test_a_wish_that_was_withdrawn_is_not_executed():
    """It had to wait, and by the time that it could be done nobody wanted it any more."""
    machine = leader(PartitionTable(Epoch(3), (A, B, C), (1, 1, 1), (0, 1, 2)))
    assert reported(machine, *(report(node, 2) for node in (A, B, C))) == []
    assert machine.step(NOW, Wished({A: 1, B: 1, C: 1, NodeId("d"): 1})) == []
    as_it_is = Wished({A: 1, B: 1, C: 1})
    assert machine.step(NOW, as_it_is) == []
    for node in (A, B, C):
        machine.step(NOW, Reported(report(node, 3)))
    assert machine.step(NOW, as_it_is) == []
    assert machine.step(NOW, TableRead(PartitionTable(Epoch(3), (A, B, C), (1, 1, 1), (0, 1, 2)))) == []


# ---------------------------------------------------------------- moves that get nowhere


@pytest.mark.parametrize("stage", EARLY)
def test_a_move_that_got_nowhere_ends(stage: Stage):
    """The source goes on, which was never anything but safe; what is ready commits all the same."""
    assert decide(table(stage), replace(view(*ALL), stalled={0}), {}) == [End(0)]
    ready = replace(with_b(Progress.READY), stalled={0})
    assert decide(table(stage), ready, {}) == [Advance(0, Stage.COMMIT) if stage is Stage.SEAL else End(0)]


@pytest.mark.parametrize("stage", [Stage.COMMIT, Stage.CLEANUP, Stage.RECOVER])
def test_after_commit_nobody_loses_patience(stage: Stage):
    """I5."""
    now = table(stage)
    seen = view(*(report(node, 1, access=1) for node in (A, B, C)))
    assert decide(now, replace(seen, stalled={0}), {}) == decide(now, seen, {})


def test_a_pair_that_rests_begins_and_seals_nothing():
    """It would get nowhere again at once. Other pairs go on."""
    resting = replace(view(*ALL), resting={(A, B)})
    assert decide(table(), resting, {0: B}) == []
    assert decide(table(), resting, {0: C}) == [Begin(0, C)]
    sealing = replace(with_b(Progress.CAUGHT_UP), resting={(A, B)})
    assert decide(table(Stage.CATCHUP), sealing, {}) == []
    assert decide(table(Stage.CATCHUP), replace(sealing, resting={(B, A)}), {}) == [Advance(0, Stage.SEAL)]


def keep_reporting(machine: Migration, now: Instant, until: Instant, *reports: NodeReport) -> list[WriteTable]:
    """All report twice a second; return the first write, or none by then."""
    while now < until:
        now = Instant(now + 500)
        writes = reported(machine, *reports, now=now)
        if writes:
            return writes
    return []


@pytest.mark.parametrize(
    ("stage", "patience_ms"),
    [(Stage.COPY, COPY_PATIENCE_MS), (Stage.CATCHUP, COPY_PATIENCE_MS), (Stage.SEAL, SEAL_PATIENCE_MS)],
)
def test_a_leader_ends_moves_of_nodes_that_reach_only_it_and_lets_the_pair_rest(stage: Stage, patience_ms: int):
    """Both report all the time, and the target never says that it got nearer."""
    now = table(stage)
    machine = leader(now)
    target = NodeReport(B, LIFE, Epoch(99), {}, answers={A: 5})
    # Of a seal it counts from when it read the table, of a copy from the first report.
    given_up = Instant((NOW - GONE_MS if stage is Stage.SEAL else NOW + 500) + patience_ms)
    assert keep_reporting(machine, NOW, Instant(given_up - 500), report(A), target, report(C)) == []
    aborted = reported(machine, report(A), target, report(C), now=given_up)
    assert aborted == [WriteTable(now.epoch, now.with_changes([End(0)]), ((A, B),))]
    assert machine.step(given_up, TableRead(aborted[0].table)) == []
    rested = Instant(given_up + REST_MS)
    assert keep_reporting(machine, given_up, Instant(rested - 500), report(A), target, report(C)) == []
    again = reported(machine, report(A), target, report(C), now=rested)
    assert again == [WriteTable(aborted[0].table.epoch, aborted[0].table.with_changes([Begin(0, B)]))]


def test_a_copy_whose_target_hears_of_the_source_may_last():
    """However large it is."""
    machine = leader(table(Stage.COPY))
    for number in range(3 * COPY_PATIENCE_MS // 500):
        target = NodeReport(B, LIFE, Epoch(99), {}, answers={A: number})
        assert reported(machine, report(A), target, report(C), now=Instant(NOW + 500 * number)) == []


# ---------------------------------------------------------------- every interrupted prefix


class Model:
    """Nodes that do what the table says at once, and count who serves: the dumb twin of all shells."""

    def __init__(self, start: PartitionTable) -> None:
        self.table = start
        self.wish = Wished()

    def reports(self, live: Iterable[NodeId]) -> list[NodeReport]:
        made: list[NodeReport] = []
        for node in live:
            progress = {
                (move.partition, move.move_id): self._progress(move) for move in self.table.moves if move.target == node
            }
            made.append(NodeReport(node, LIFE, self.table.epoch, progress))
        return made

    @staticmethod
    def _progress(move: Move) -> Progress:
        return {Stage.COPY: Progress.COPIED, Stage.CATCHUP: Progress.CAUGHT_UP, Stage.SEAL: Progress.READY}.get(
            move.stage, Progress.NONE
        )

    def go_on(self, live: Iterable[NodeId], writes_max: int) -> int:
        """Run a new leader from the table alone, for so many writes; return how many it made."""
        machine = leader(self.table)
        made = 0
        self._report(machine, live)
        writes = machine.step(NOW, self.wish)
        while writes and made < writes_max:
            (write,) = writes
            assert write.expect == self.table.epoch == write.table.epoch - 1
            write.table.check_structure()
            self.table = write.table
            made += 1
            self._report(machine, live)
            writes = machine.step(NOW, TableRead(self.table))
        return made

    def _report(self, machine: Migration, live: Iterable[NodeId]) -> None:
        for found in self.reports(live):
            machine.step(NOW, Reported(found))


def subsets(nodes: tuple[NodeId, ...]) -> list[tuple[NodeId, ...]]:
    return list(chain.from_iterable(combinations(nodes, count) for count in range(len(nodes) + 1)))


def start() -> PartitionTable:
    return plan_table({A: 1, B: 1}, partitions=6).with_changes([Members(((A, 1), (B, 1), (C, 2))), Settle()])


WRITES = Model(start()).go_on((A, B, C), 100)


@pytest.mark.parametrize("prefix", range(WRITES + 1))
def test_another_leader_goes_on_from_every_prefix_with_every_set_of_live_nodes(prefix: int):
    """I4: after each write the leader dies; whoever is left, the next one makes the best of it, and when all are
    back the third one finishes as if nothing had happened.
    """
    for live in subsets((A, B, C)):
        model = Model(start())
        model.go_on((A, B, C), prefix)
        assert model.go_on(live, 100) < 100, "it comes to rest"
        if len(live) >= 2:
            assert {model.table.owner(partition) for partition in range(6)} <= set(live)
            assert not model.table.moves
        assert model.go_on((A, B, C), 100) < 100
        assert not model.table.moves
        assert model.table.counts() == {A: 2, B: 1, C: 3} or model.table.counts() == {A: 1, B: 2, C: 3}


@pytest.mark.parametrize("prefix", range(WRITES + 1))
def test_an_abort_at_every_prefix_rolls_back_all_that_can_be(prefix: int):
    """I5: what is committed goes forward."""
    model = Model(start())
    model.go_on((A, B, C), prefix)
    committed = {move.partition for move in model.table.moves if model.table.owner(move.partition) == move.target}
    machine = leader(model.table)
    for found in model.reports((A, B, C)):
        machine.step(NOW, Reported(found))
    model.wish = Wished(is_paused=True, abort=model.table.epoch)
    (write,) = machine.step(NOW, model.wish)
    assert {move.partition for move in write.table.moves} == committed
    assert write.table.owners == model.table.owners
    model.table = write.table
    model.go_on((A, B, C), 100)
    assert not model.table.moves
    assert model.table.owners == write.table.owners


def test_the_former_nodes_are_forgotten_when_a_majority_of_them_knows():
    """Until then a taking needs them."""
    now = table().with_changes([Members(((A, 0), (B, 1), (C, 1), (NodeId("d"), 1)))])
    assert decided(now, view(*ALL))[0] == Settle()
    assert Settle() not in decided(now, view(report(A, 1), report(B, 1), report(C)))
    assert now.with_changes([Settle()]).former == ()
