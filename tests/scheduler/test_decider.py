"""The decider: the engine, its shadow, its recording and its memory are told the same."""

from __future__ import annotations

from random import Random

import pytest

from base.clock import SimClock
from base.errors import Conflict
from scheduler import decider as module
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.policy import DEFAULT_POLICY, Policy
from scheduler.core.recording import Born, Configured, Decided, LossAccepted, Observed, Replay, records
from scheduler.core.regions import Regions
from scheduler.core.snapshot import Settings
from scheduler.decider import Decider, Rules
from tests.scheduler.core.fleets import active, ask, node, nodes, policy


def rules(*rollouts: ActiveRollout, by: Policy = DEFAULT_POLICY) -> Rules:
    return Rules(rollouts, by, {}, Regions())


def made(*, remembered: int = 100, **settings: int) -> tuple[Decider, SimClock]:
    """Return one that has seen five nodes, one of them of the canary."""
    clock = SimClock()
    one = Decider("s1", Settings(**settings), clock, rules(active(percent=0)), remembered=remembered)
    one.observe([*nodes(4), node("c", version="fast")], schedulers=1)
    return one, clock


# ---------------------------------------------------------------- decisions and their memory


def test_decisions_are_numbered_counted_and_explained() -> None:
    """At once, and later by their number; what is only considered is none of it."""
    one, _ = made()
    assert [one.decide(ask(f"u{number}")).seq for number in range(3)] == [1, 2, 3]
    canary = one.decide(ask("staff"))
    assert one.arm_counts.totals == {"stable": 3, "fast": 1}
    considered, stages = one.consider(ask())
    assert (considered.seq, stages[0].stage, one.engine.seq) == (0, "locate", 4)
    found = one.explain_past(4)
    assert found is not None
    past, why = found
    assert (past.decision, past.request, past.policy) == (canary, ask("staff"), DEFAULT_POLICY)
    assert why == one.explain(ask("staff"), canary)
    assert one.explain_past(5) is None


def test_a_refusal_is_no_assignment_and_is_explained() -> None:
    """Nobody was sent to an arm."""
    clock = SimClock()
    one = Decider("s1", Settings(), clock, rules(), remembered=9)
    assert not one.decide(ask()).candidates
    assert one.arm_counts.totals == {}
    assert one.explain_past(1) is not None


def test_only_the_last_decisions_are_remembered() -> None:
    """By number, and by how many views ago they were made: snapshots cost memory, large ones more."""
    one, _ = made(remembered=2)
    for _ in range(3):
        one.decide(ask())
    assert [one.explain_past(seq) is None for seq in (1, 2, 3)] == [True, False, False]
    for _ in range(module.SNAPSHOTS_MAX - 1):
        one.observe(nodes(4), schedulers=1)
        assert one.explain_past(3)
    one.configure(rules())
    assert one.explain_past(3) is None
    assert not one._recent


def test_of_large_snapshots_fewer_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the last two."""
    monkeypatch.setattr(module, "NODES_MAX", 20)
    one, _ = made()
    one.decide(ask())
    for kept in (True, True, True, False):
        one.observe(nodes(5), schedulers=1)
        assert (one.explain_past(1) is not None) == kept
    one.observe(nodes(50), schedulers=1)
    one.decide(ask())
    one.observe(nodes(50), schedulers=1)
    assert one.explain_past(2)
    one.observe(nodes(50), schedulers=1)
    assert one.explain_past(2) is None


def test_rules_change_for_all_that_follows() -> None:
    """And a decision of before is explained by those of before."""
    one, _ = made()
    before = one.decide(ask())
    one.configure(rules(by=policy("sticky")))
    assert one.engine.policy == policy("sticky")
    assert one.decide(ask()).generation > before.generation
    found = one.explain_past(1)
    assert found is not None
    assert found[0].policy == DEFAULT_POLICY


def test_panic_is_told_once_and_ends_by_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    """Shadow and engine keep the nodes alike; a shadow that begins meanwhile does so too."""
    one, _ = made()
    one.observe([], schedulers=1)
    one.observe([], schedulers=1)
    assert one.engine.is_panic
    one.set_shadow(policy("weighted"))
    assert one.shadow is not None
    assert one.shadow.engine.is_panic
    assert len(one.snapshot.nodes) == len(one.shadow.engine.snapshot.nodes) == 5
    assert one.decide(ask()).candidates
    one.accept_loss()
    assert not one.engine.is_panic
    assert not one.shadow.engine.is_panic
    assert one.snapshot.nodes == ()
    written = capsys.readouterr()
    assert (written.out + written.err).count("panic") <= 2


# ---------------------------------------------------------------- shadow


def test_a_shadow_changes_nothing_and_its_differences_are_counted() -> None:
    """The same decisions with it and without; it is told of views and rules as the engine is."""
    one, _ = made()
    assert (one.shadow, one.shadow_policy) == (None, None)
    one.set_shadow(policy("canary", "weighted"))
    assert one.shadow_policy == policy("canary", "weighted")
    shadow = one.shadow
    assert shadow is not None
    for number in range(200):
        one.decide(ask(f"u{number}"))
    found = shadow.difference()
    assert (found.decisions, found.other_arm, found.nobody) == (200, 0, 0)
    assert 0 < found.other_first <= found.other_candidates <= 200
    one.configure(rules(active(percent=100_000), by=policy("least_connections")))
    for number in range(50):
        one.decide(ask(f"u{number}"))
    assert shadow.difference().other_arm == 50
    one.observe([node("c", version="fast"), node("d", is_cordoned=True), *nodes(2, is_draining=True)], schedulers=2)
    assert len(shadow.engine.snapshot.nodes) == len(one.snapshot.nodes)
    assert one.shadow_policy == policy("canary", "weighted")
    one.set_shadow(None)
    one.decide(ask())
    assert one.shadow is None
    assert shadow.difference().decisions == 250


# ---------------------------------------------------------------- recording


def test_what_is_recorded_from_the_middle_of_life_is_decided_again() -> None:
    """With everything that it is told; decisions go on in their numbers, and are remembered as before."""
    one, clock = made()
    one.set_shadow(policy("sticky"))
    for number in range(20):
        one.decide(ask(f"u{number}"))
    kept: list[bytes] = []
    one.record(kept.append)
    with pytest.raises(Conflict):
        one.record(kept.append)
    for number in range(300):
        clock.advance(number % 3)
        if number == 50:
            one.configure(rules(active(percent=30_000), by=policy("canary", "least_connections")))
        if number % 60 == 30:
            one.observe([*nodes(6, connections=number), node("c", version="fast")], schedulers=2)
        if number == 200:
            one.accept_loss()
        one.decide(ask(f"u{number}"))
    one.stop_recording()
    one.stop_recording()
    last = one.decide(ask())
    assert last.seq == 321
    told = list(records(kept))
    assert [type(record) for record in told[:3]] == [Born, Configured, Observed]
    assert sum(isinstance(record, LossAccepted) for record in told) == 1
    replay = Replay(Random)
    decided = []
    for record in told:
        again = replay.tell(record)
        if isinstance(record, Decided):
            decided.append((record.decision, again))
    assert len(decided) == 300
    assert all(was == again for was, again in decided)
    assert decided[0][0].seq == 21


def test_a_recording_forgets_neither_slots_nor_what_was_decided() -> None:
    """Who is told to wait is not overtaken because somebody records; older decisions are explained still."""
    clock = SimClock()
    one = Decider("s1", Settings(), clock, rules(), remembered=99)
    one.observe(nodes(1, accepts_per_s=1), schedulers=1)
    assert [one.decide(ask()).not_before_ms for _ in range(3)] == [0, 0, 1_000]
    generation = one.engine.snapshot.generation
    one.record(lambda _: None)
    assert one.engine.snapshot.generation <= generation
    assert one.decide(ask()).not_before_ms == 2_000
    for seq in (1, 3, 4):
        found = one.explain_past(seq)
        assert found is not None
        assert found[0].decision.seq == seq
    for _ in range(module.SNAPSHOTS_MAX):
        one.observe(nodes(1), schedulers=1)
    assert not one._recent
