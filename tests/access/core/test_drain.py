"""Drains: examples, the pace over tables of sizes and ticks, then a state machine against plain lists."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from access.core.drain import DrainPlan, Move, Progress, Step, Targets
from base.clock import Instant

START = 1_234_567
NOTHING = Step((), ())


def at(ms: int) -> Instant:
    return Instant(START + ms)


def names(count: int) -> list[str]:
    return [f"c{number}" for number in range(count)]


def plan(count: int, *, over_ms: int = 10_000, grace_ms: int = 2_000, targets: Targets | None = None) -> DrainPlan:
    return DrainPlan(names(count), at(0), over_ms=over_ms, grace_ms=grace_ms, targets=targets or Targets([]))


def moved(step: Step) -> list[str]:
    return [move.client for move in step.move]


# ---------------------------------------------------------------- one client's way


def test_clients_move_one_after_the_other_in_their_order():
    """Evenly over the time, the last at its end."""
    drain = plan(4, over_ms=4_000)
    told = {ms: moved(drain.step(at(ms))) for ms in range(0, 5_000, 200)}
    assert {ms: clients for ms, clients in told.items() if clients} == {
        1_000: ["c0"],
        2_000: ["c1"],
        3_000: ["c2"],
        4_000: ["c3"],
    }


def test_each_is_told_its_target_and_deadline():
    """And where nobody has room, that it should ask the scheduler."""
    drain = plan(2, over_ms=2_000, grace_ms=500, targets=Targets([("access-2", 9, 10)]))
    assert drain.step(at(1_000)) == Step((Move("c0", "access-2", at(1_500)),), ())
    assert drain.step(at(2_000)) == Step((Move("c1", None, at(2_500)),), ("c0",))


def test_who_is_here_after_its_grace_is_closed_once():
    """I4: at its deadline, not before."""
    drain = plan(1, over_ms=1_000)
    assert moved(drain.step(at(1_000))) == ["c0"]
    assert drain.step(at(2_999)) == NOTHING
    assert not drain.is_over
    assert drain.step(at(3_000)) == Step((), ("c0",))
    assert drain.is_over
    drain.gone("c0")
    assert drain.step(at(9_000)) == NOTHING
    assert drain.progress(at(9_000)) == Progress(1, 0, 0, 0, 1, 0, 0)


def test_who_went_in_time_is_not_closed():
    """I4: it arrived, as far as this node can tell."""
    drain = plan(1, over_ms=1_000)
    drain.step(at(1_000))
    drain.gone("c0")
    assert drain.is_over
    assert drain.step(at(3_000)) == NOTHING
    assert drain.progress(at(3_000)) == Progress(1, 0, 0, 1, 0, 0, 0)


def test_who_went_by_itself_is_not_told():
    """I1."""
    drain = plan(2, over_ms=2_000)
    drain.gone("c0")
    drain.gone("c0")
    drain.gone("stranger")
    assert drain.progress(at(0)) == Progress(2, 1, 0, 0, 0, 1, 4_000)
    assert [moved(drain.step(at(ms))) for ms in (1_000, 2_000)] == [[], ["c1"]]


def test_a_node_without_clients_is_drained_at_once():
    """There is nothing to do, ever."""
    drain = plan(0)
    assert drain.is_over
    assert drain.step(at(0)) == drain.step(at(60_000)) == NOTHING
    assert drain.progress(at(0)) == Progress(0, 0, 0, 0, 0, 0, 0)


def test_a_client_is_named_once():
    """Or it would be told twice."""
    with pytest.raises(AssertionError):
        DrainPlan(["a", "a"], at(0), over_ms=1, grace_ms=0, targets=Targets([]))


# ---------------------------------------------------------------- pause, resume, abort, progress


def test_a_pause_puts_the_end_off_by_its_length():
    """Nobody is told meanwhile; afterwards the pace is as before, not faster."""
    drain = plan(4, over_ms=4_000, grace_ms=60_000)
    assert moved(drain.step(at(1_000))) == ["c0"]
    drain.pause(at(1_500))
    drain.pause(at(1_700))
    assert drain.step(at(20_000)) == NOTHING
    drain.resume(at(31_500))
    drain.resume(at(31_700))
    told = [moved(drain.step(at(ms))) for ms in (31_999, 32_000, 33_000, 34_000)]
    assert told == [[], ["c1"], ["c2"], ["c3"]]


def test_who_was_told_before_a_pause_is_closed_in_it():
    """I4: it was told until when it has time."""
    drain = plan(2, over_ms=2_000)
    drain.step(at(1_000))
    drain.pause(at(1_000))
    assert drain.step(at(3_000)).close == ("c0",)
    assert not drain.is_over


def test_an_aborted_drain_leaves_the_others_where_they_are():
    """I4: who was told goes, and then it is over."""
    drain = plan(2, over_ms=2_000)
    drain.step(at(1_000))
    drain.abort()
    assert drain.step(at(2_000)) == NOTHING
    assert not drain.is_over
    assert drain.progress(at(2_000)) == Progress(2, 1, 1, 0, 0, 0, 1_000)
    assert drain.step(at(3_000)) == Step((), ("c0",))
    assert drain.is_over
    assert drain.progress(at(3_000)) == Progress(2, 1, 0, 0, 1, 0, 0)
    drain.gone("c1")
    assert drain.progress(at(3_000)) == Progress(2, 0, 0, 0, 1, 1, 0)


def test_progress_says_how_long_it_will_take():
    """The time that is left and the last one's grace; unknown while paused; longer if it is late."""
    drain = plan(100, over_ms=10_000)
    assert drain.progress(at(0)).eta_ms == 12_000
    drain.step(at(1_000))
    assert drain.progress(at(1_500)) == Progress(100, 90, 10, 0, 0, 0, 10_500)
    drain.pause(at(1_500))
    assert drain.progress(at(1_600)).eta_ms is None
    drain.resume(at(2_000))
    assert drain.progress(at(2_000)).eta_ms == 10_500
    assert drain.progress(at(9_000)).eta_ms == 7_500 + 2_000  # 90 at 12 a second at most
    for ms in range(2_000, 11_000, 100):
        drain.step(at(ms))
    assert drain.progress(at(10_500)).pending == 0
    assert drain.progress(at(10_500)).eta_ms == 2_000
    assert drain.progress(at(99_999)).eta_ms == 0


# ---------------------------------------------------------------- the pace


def pace_bound(count: int, over_ms: int) -> int:
    """The twin of I2, from its words."""
    return ceil(Fraction(12, 10) * count / (Fraction(over_ms) / 1_000))


def worst_second(moves: list[tuple[int, int]]) -> int:
    """Most clients told in any 1,000 ms. `moves`: instant and count, in order."""
    worst = recent = first = 0
    for instant, count in moves:
        recent += count
        while moves[first][0] <= instant - 1_000:
            recent -= moves[first][1]
            first += 1
        worst = max(worst, recent)
    return worst


def run(drain: DrainPlan, instants: list[int]) -> list[tuple[int, int]]:
    """Step at these times; return when how many were told."""
    return [(ms, len(drain.step(at(ms)).move)) for ms in instants]


@pytest.mark.parametrize("count", [1, 2, 7, 100, 119, 120, 121, 999, 15_000])
@pytest.mark.parametrize("over_ms", [500, 30_000, 120_000])
@pytest.mark.parametrize("tick_ms", [20, 100, 170, 200])
def test_punctual_steps_keep_an_even_pace_and_end_in_time(count: int, over_ms: int, tick_ms: int):
    """I2, and the worst second is the even pace but for the client and the tick that do not divide it."""
    drain = plan(count, over_ms=over_ms)
    moves = run(drain, list(range(0, over_ms + tick_ms, tick_ms)))
    assert sum(count for _, count in moves) == count
    even = Fraction(count * 1_000, over_ms)
    assert worst_second(moves) <= min(pace_bound(count, over_ms), even * (1_000 + tick_ms) / 1_000 + 1)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 3_000), over_ms=st.integers(1_000, 60_000))
def test_late_steps_never_make_a_second_faster_than_the_bound(seed: int, count: int, over_ms: int):
    """I2: stalls of up to ten seconds, and clients that go by themselves; and it still comes to its end."""
    rng = random.Random(seed)
    drain = plan(count, over_ms=over_ms)
    instants = [0]
    while instants[-1] < 4 * over_ms + 60_000:
        instants.append(instants[-1] + (rng.randint(500, 10_000) if rng.random() < 0.05 else rng.randint(1, 250)))
    moves = []
    for ms in instants:
        if rng.random() < 0.2:
            drain.gone(f"c{rng.randrange(count)}")
        moves.append((ms, len(drain.step(at(ms)).move)))
        drain.check_invariants()
    assert worst_second(moves) <= pace_bound(count, over_ms)
    assert drain.is_over


def test_a_stall_is_made_up_for_over_the_rest_of_the_time():
    """Not at once: after its first second the pace is a few percent above the even one, and the end is the same."""
    drain = plan(12_000, over_ms=120_000)
    instants = [*range(0, 60_000, 100), *range(65_000, 120_100, 100)]
    moves = run(drain, instants)
    assert sum(count for _, count in moves) == 12_000
    after = [
        sum(count for ms, count in moves if second <= ms < second + 1_000) for second in range(67_000, 119_000, 1_000)
    ]
    assert max(after) <= 110
    assert min(after) >= 100
    assert sum(count for ms, count in moves if 65_000 <= ms < 66_000) <= 120


def test_a_stall_at_the_end_ends_late_rather_than_fast():
    """I2: what is left goes at the bound."""
    drain = plan(12_000, over_ms=120_000)
    moves = run(drain, [*range(0, 110_000, 100), *range(120_000, 130_000, 100)])
    assert sum(count for _, count in moves) == 12_000
    assert worst_second(moves) == 120
    assert max(ms for ms, count in moves if count) < 129_000


# ---------------------------------------------------------------- targets


def test_empty_targets_get_clients_in_proportion_to_their_capacity():
    """At any time, not only in the end."""
    targets = Targets([("a", 0, 10), ("b", 0, 20), ("c", 0, 70)])
    given: Counter[str | None] = Counter()
    for _ in range(10):
        given.update(targets.take() for _ in range(10))
        share = sum(given.values()) // 10
        assert given == {"a": share, "b": 2 * share, "c": 7 * share}
    assert targets.take() is None


def test_who_is_fuller_gets_nobody_until_the_others_are_as_full():
    """Or nodes that are drained one after the other would pile up at the last ones."""
    targets = Targets([("a", 8, 10), ("b", 2, 10), ("c", 5, 10)])
    assert [targets.take() for _ in range(10)] == ["b", "b", "b", "b", "c", "b", "c", "b", "c", "a"]


def test_a_full_target_is_left_out():
    """I5: and one without room from the beginning."""
    targets = Targets([("a", 9, 10), ("b", 17, 20), ("c", 5, 5), ("d", 9, 4)])
    assert [targets.take() for _ in range(6)] == ["b", "b", "a", "b", None, None]


def test_a_dropped_target_gets_nobody_more():
    """It filled up by others, or is gone."""
    targets = Targets([("a", 0, 5), ("b", 0, 2)])
    targets.drop("a")
    targets.drop("unknown")
    assert [targets.take() for _ in range(3)] == ["b", "b", None]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6), st.data())
def test_the_next_one_goes_to_the_least_full(sizes: list[tuple[int, int]], data: st.DataObject):
    """I5; the twin looks at every node each time, with exact fractions."""
    nodes = {f"n{number}": size for number, size in enumerate(sizes)}
    targets = Targets((name, held, capacity) for name, (held, capacity) in nodes.items())
    taken: Counter[str] = Counter()
    dropped: set[str] = set()
    for _ in range(sum(capacity for _, capacity in sizes) + 1):
        full = {
            name: Fraction(held + taken[name], capacity)
            for name, (held, capacity) in nodes.items()
            if name not in dropped and held + taken[name] < capacity
        }
        node = targets.take()
        if not full:
            assert node is None
            break
        assert node is not None
        assert full[node] == min(full.values())
        taken[node] += 1
        if data.draw(st.integers(0, 20)) == 0:
            dropped.add(node)
            targets.drop(node)


# ---------------------------------------------------------------- against plain lists


class DrainAgainstLists(RuleBasedStateMachine):
    """The twin knows where each client is by name, and when everybody was told, and draws no conclusions."""

    def __init__(self) -> None:
        super().__init__()
        self.setup(0, 1, 0)

    @initialize(count=st.integers(0, 30), over_ms=st.integers(1, 20_000), grace_ms=st.integers(0, 3_000))
    def setup(self, count: int, over_ms: int, grace_ms: int) -> None:
        self.now = 0
        self.count = count
        self.over_ms = over_ms
        self.grace_ms = grace_ms
        self.drain = plan(count, over_ms=over_ms, grace_ms=grace_ms)
        self.places = dict.fromkeys(names(count), "pending")
        self.deadlines: dict[str, int] = {}
        self.moves: list[tuple[int, int]] = []
        self.is_paused = self.is_aborted = False

    @rule(ms=st.one_of(st.integers(0, 200), st.integers(0, 5_000)))
    def step(self, ms: int) -> None:
        self.now += ms
        due = [client for client, deadline in self.deadlines.items() if deadline <= self.now]
        step = self.drain.step(at(self.now))
        assert list(step.close) == [client for client in due if self.places[client] == "waiting"], "I4"
        for client in step.close:
            self.places[client] = "closed"
        for client in due:
            del self.deadlines[client]
        assert not (step.move and (self.is_paused or self.is_aborted))
        for move in step.move:
            assert self.places[move.client] == "pending", "I1"
            assert move.deadline == at(self.now + self.grace_ms)
            self.places[move.client] = "waiting"
            self.deadlines[move.client] = self.now + self.grace_ms
        self.moves.append((self.now, len(step.move)))
        assert worst_second(self.moves) <= pace_bound(self.count, self.over_ms), "I2"

    @rule(number=st.integers(0, 40))
    def go(self, number: int) -> None:
        client = f"c{number}"
        self.drain.gone(client)
        after = {"pending": "departed", "waiting": "arrived"}
        if client in self.places:
            self.places[client] = after.get(self.places[client], self.places[client])

    @rule()
    def pause(self) -> None:
        self.drain.pause(at(self.now))
        self.is_paused = True

    @rule()
    def resume(self) -> None:
        self.drain.resume(at(self.now))
        self.is_paused = False

    @rule(chance=st.integers(0, 5))
    def abort(self, chance: int) -> None:
        if not chance:
            self.drain.abort()
            self.is_aborted = True

    @invariant()
    def everybody_is_somewhere(self) -> None:
        """I3."""
        self.drain.check_invariants()
        places = Counter(self.places.values())
        progress = self.drain.progress(at(self.now))
        for place in ("pending", "waiting", "arrived", "closed", "departed"):
            assert getattr(progress, place) == places[place]
        assert self.drain.is_over is (not places["waiting"] and (self.is_aborted or not places["pending"]))
        assert (progress.eta_ms is None) is (self.is_paused and not self.is_aborted and places["pending"] > 0)

    def teardown(self) -> None:
        """However it was disturbed, it comes to an end."""
        self.resume()
        for _ in range(self.count * 2 + 10):
            self.step(1_000)
        for _ in range(200):
            self.step(self.over_ms // 100 + 1)
        self.step(self.grace_ms)
        assert self.drain.is_over


TestDrainAgainstLists = DrainAgainstLists.TestCase
TestDrainAgainstLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
