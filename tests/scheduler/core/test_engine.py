"""The engine: candidates, regions, arms, draws and slots, each where it can be seen."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from math import inf, sqrt
from random import Random

import pytest

from scheduler.core.engine import Credit, Decision, Engine, Passed, Picked
from scheduler.core.policy import Rule
from scheduler.core.pools import Pool
from scheduler.core.regions import Region, Regions
from scheduler.core.snapshot import STABLE
from tests.scheduler.core.fleets import active, ask, engine, names, node, nodes, policy

LEAST = policy("least_connections", "proximity")
WEIGHTED = policy("weighted")
STICKY = policy("sticky")
MAP = (
    Region("east", latitude=31.2, longitude=121.5, spill=("south",)),
    Region("north", latitude=39.9, longitude=116.4),
    Region("south", latitude=23.1, longitude=113.3),
)


def firsts(made: Engine, count: int, now: int = 0, region: str = "") -> Counter[str]:
    """Decide for so many users and count whom each would try first."""
    return Counter(names(made, made.decide(ask(f"u{user}", region), now))[0] for user in range(count))


# ---------------------------------------------------------------- candidates


@pytest.mark.parametrize("by", [LEAST, WEIGHTED, STICKY], ids=["least", "weighted", "sticky"])
@pytest.mark.parametrize("wanted", [1, 2, 3, 6])
def test_there_are_as_many_candidates_as_are_wanted_or_as_there_are(by: object, wanted: int) -> None:
    """I1: first of the carrier, then of the region, then of the others; stable's users get no canary."""
    view = [node("a", region="east", carrier="CT"), node("b", region="east", carrier="CU")]
    view += [node("c", region="south"), node("x", region="east", version="fast"), node("y", is_draining=True)]
    by_nearness = policy("proximity", *by.rules[0].strategies)  # type: ignore[attr-defined]
    made = engine(view, rollouts=[active(percent=0)], by=by_nearness, regions=MAP, candidates=wanted)
    decision = made.decide(ask(region="east", carrier="CT"), 0)
    assert names(made, decision) == ["a", "b", "c"][:wanted]
    assert (decision.region, decision.carrier, decision.arm) == ("east", "CT", STABLE)


def test_without_nodes_nobody_is_sent_anywhere() -> None:
    """And told when to ask again; the number counts all the same."""
    made = engine()
    decision = made.decide(ask(), 5)
    assert decision == Decision(1, 5, made.snapshot.generation, "", STABLE, (), 1_000, picked=Picked.NOBODY)
    made.configure(rollouts=[], policy=STICKY, lists={}, regions=Regions(), now=5)
    made.observe([node("a", is_cordoned=True)], 6)
    assert made.decide(ask(), 6).seq == 2
    assert not made.decide(ask(), 6).candidates


def test_considering_leaves_everything_as_it_is() -> None:
    """Neither number, nor load, nor slot, nor dice: the next decision is what it would have been."""
    view = nodes(20, accepts_per_s=1)
    made, twin = engine(view), engine(view)
    for user in range(30):
        considered = made.consider(ask(f"u{user}"), 0, Random(user))
        assert considered.candidates
        assert considered.seq == 0
        assert made.decide(ask(f"u{user}"), 0) == twin.decide(ask(f"u{user}"), 0)


def test_the_first_rule_that_holds_decides() -> None:
    """Its number is a fact of the decision; a rule without proximity does not look at the region."""
    rules = (
        Rule("staff", frozenset({"weighted"}), active().rollout.segments[0].when),
        Rule("all", frozenset({"least_connections", "proximity"})),
    )
    made = engine([node("a", region="east"), node("b", region="north")], by=type(LEAST)("p", rules), candidates=1)
    assert {names(made, made.decide(ask("staff", "east"), 0))[0] for _ in range(50)} == {"a", "b"}
    assert {names(made, made.decide(ask("ann", "east"), 0))[0] for _ in range(50)} == {"a"}
    assert [made.decide(ask(user), 0).rule for user in ("staff", "ann")] == [0, 1]
    assert made.policy.rules == rules


# ---------------------------------------------------------------- draws


@pytest.mark.spec("AL-05")
def test_equal_nodes_get_equally_many() -> None:
    """Two choices: after 15,000 decisions within one view no node is a fiftieth above the mean."""
    counts = firsts(engine(nodes(20), by=LEAST, candidates=3), 15_000)
    assert len(counts) == 20
    assert max(counts.values()) / (15_000 / 20) < 1.02


def test_nodes_get_by_their_capacity() -> None:
    """Nodes with ten times the room get ten times as many."""
    view = [*nodes(10, capacity=10_000), *(node(f"s{number}", capacity=1_000) for number in range(10))]
    counts = firsts(engine(view, by=LEAST), 5_500)
    large = sum(count for name, count in counts.items() if name.startswith("n"))
    assert 0.89 < large / 5_500 < 0.93


def test_an_empty_node_among_full_ones_is_not_flooded() -> None:
    """No minimum of old reports: at most one of two draws can be it, so at most twice the mean."""
    view = [*nodes(19, connections=800), node("empty")]
    share = firsts(engine(view, by=LEAST), 2_000)["empty"] / (2_000 / 20)
    assert 1.6 < share < 2.5


def test_a_young_node_gets_little_at_first() -> None:
    """Slow start: a tenth of the draws, of which it wins those that it is in."""
    view = [*nodes(19, connections=800), node("young", uptime_ms=0)]
    assert firsts(engine(view, by=LEAST), 2_000)["young"] / (2_000 / 20) < 0.3
    later = engine(view, by=LEAST, now=30_000)
    assert 0.8 < firsts(later, 2_000, 30_000)["young"] / (2_000 / 20) < 1.3


def test_old_reports_are_doubted_against_newer_ones() -> None:
    """The better of two by a report that expired is no better: half of the pairs, as by luck."""
    view = [node("a", reported_at=200_000, connections=900), node("b", reported_at=0)]
    made = engine(view, by=LEAST, now=200_000, candidates=1)
    assert made.snapshot.vague == [0.0, 1.0]
    assert 400 < firsts(made, 1_000, 200_000)["a"] < 600
    alike = engine([node("a", connections=900), node("b")], by=LEAST, now=200_000, candidates=1)
    assert firsts(alike, 500, 200_000)["a"] == 0


def test_weighted_draws_do_not_look_at_loads() -> None:
    """By capacity alone; there is nothing to compare."""
    view = [node("a", capacity=3_000, connections=2_900), node("b", capacity=1_000)]
    made = engine(view, by=WEIGHTED, candidates=1)
    assert made.decide(ask(), 0).loads == ()
    assert 680 < firsts(made, 999)["a"] < 820


# ---------------------------------------------------------------- sticky


@pytest.mark.parametrize("fields", [{}, {"capacity": 500}], ids=["equal", "unequal"])
def test_a_user_comes_back_to_the_same_node(fields: dict[str, int]) -> None:
    """As long as loads are moderate; when a node goes only its own users move, and when it is back they return."""
    view = [*nodes(9, connections=100), node("z", connections=50, **fields)]
    made = engine(view, by=STICKY, candidates=1)
    users = [ask(f"u{number}") for number in range(100)]

    def seated() -> dict[str, str]:
        return {user.user: names(made, made.consider(user, 0, Random(0)))[0] for user in users}

    before = seated()
    assert len(set(before.values())) > 7
    made.observe(view[1:], 0)
    without = seated()
    assert {user for user in before if before[user] != without[user]} == {
        user for user, where in before.items() if where == "n000"
    }
    made.observe(view, 0)
    assert seated() == before


def test_a_sticky_user_leaves_a_node_that_is_far_above_the_mean() -> None:
    """And finds it in the list still, at the end."""
    view = nodes(3, connections=100)
    user = ask("ann")
    home, *others = names(*_decided(engine(view, by=STICKY), user))
    crowded = [node(one.id, connections=200 if one.id == home else 100) for one in view]
    assert names(*_decided(engine(crowded, by=STICKY), user)) == [*others, home]


def _decided(made: Engine, request: object) -> tuple[Engine, Decision]:
    return made, made.decide(request, 0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- regions


@pytest.mark.spec("AL-05")
def test_a_client_goes_to_its_region_and_then_by_the_order() -> None:
    """Its own, the spill list, then by distance, as each one's share is used up; then by the room in reserve."""
    view = [node(name, region=name, capacity=14) for name in ("east", "north", "south", "west")]
    made = engine(view, by=LEAST, regions=MAP, candidates=1)
    went = [made.decide(ask(region="east"), 0) for _ in range(57)]
    regions = [decision.region for decision in went]
    assert regions[:40] == ["east"] * 10 + ["south"] * 10 + ["north"] * 10 + ["west"] * 10
    assert Counter(regions[40:56]) == dict.fromkeys(("east", "north", "south", "west"), 4)
    assert [decision.picked for decision in (went[0], went[39], went[40])] == [
        Picked.NEAREST,
        Picked.NEAREST,
        Picked.BY_ROOM,
    ]
    assert went[10].passed == ((STABLE, "east", Passed.NO_ROOM),)
    assert not went[56].candidates


def test_room_is_shared_by_how_much_there_is() -> None:
    """Clients of nowhere: three times the room, three times the clients."""
    view = [node("a", region="east", capacity=30_000), node("b", region="north", capacity=10_000)]
    counts = firsts(engine(view, by=LEAST, candidates=1), 2_000)
    assert abs(counts["a"] - 1_500) < 3 * sqrt(2_000 * 0.75 * 0.25)


class TopDice:
    """What rounding could make of the largest number below 1."""

    def random(self) -> float:
        return 1.0


def test_rounding_leaves_the_last_region() -> None:
    """Never none."""
    made = engine([node("a", region="east"), node("b", region="north")], by=LEAST, candidates=1)
    assert names(made, made.consider(ask(), 0, TopDice())) == ["b"]


def test_a_pool_of_which_nothing_is_heard_is_not_taken_for_full() -> None:
    """With the registry away nobody is seen to leave: after a while an estimate above capacity means nothing."""
    made = engine(nodes(2, capacity=10), by=LEAST, report_expiry_ms=60_000, candidates=1)
    assert sum(firsts(made, 20).values()) == 20
    assert not made.decide(ask(), 60_000).candidates
    assert sum(firsts(made, 50, 60_001).values()) == 50
    made.observe(nodes(2, capacity=10), 60_002)
    assert made.decide(ask(), 60_002).candidates
    made.observe(nodes(2, capacity=10, connections=10), 60_003)
    assert not made.decide(ask(), 60_003).candidates


def test_a_carriers_clients_stay_in_its_network_as_long_as_it_takes_them() -> None:
    """Then they go to any node of the region; what others send to a node that both count in is counted in both."""
    view = [node("ct", carrier="CT", capacity=4), node("both", capacity=4), node("cu", carrier="CU", capacity=8)]
    made = engine(view, by=LEAST, overprovision=1.0, candidates=1)
    went = Counter[str]()
    for _ in range(8):
        decision = made.decide(ask(carrier="CT"), 0)
        assert decision.carrier == "CT"
        went.update(names(made, decision))
    assert set(went) == {"ct", "both"}
    after = made.decide(ask(carrier="CT"), 0)
    assert after.carrier == ""
    assert made.decide(ask(carrier="CM"), 0).carrier == ""
    pool = made.snapshot.pools[STABLE, ""]
    for carrier, members in {"CT": ("ct", "both"), "CU": ("cu", "both")}.items():
        used = sum(made.snapshot.load[made.snapshot.index[name]] for name in members)  # type: ignore[index]
        assert pool.carriers[carrier].used == used


# ---------------------------------------------------------------- credit and slots


def slots_in_bounds(slots: Iterable[float], rate_per_s: float, burst_ms: int, beside: float) -> bool:
    """Whether in each window of w ms there are at most (w + burst) * rate + `beside`."""
    lowest, rate = inf, rate_per_s / 1_000
    for number, slot in enumerate(sorted(slots)):
        lowest = min(lowest, number - slot * rate)
        if number + 1 - slot * rate - lowest > burst_ms * rate + beside + 1e-6:
            return False
    return True


@pytest.mark.parametrize("by", [LEAST, WEIGHTED, STICKY], ids=["least", "weighted", "sticky"])
@pytest.mark.parametrize("seed", range(4))
def test_no_node_and_no_pool_gives_more_slots_than_its_rate(by: object, seed: int) -> None:
    """I2 of pools: over views, nodes that go and come back, changing demand, and carriers that share nodes."""
    dice = Random(seed)
    rates = {f"n{number}": dice.choice((1, 5, 20)) for number in range(8)}
    view = [
        node(name, accepts_per_s=rate, carrier=("CT", "CU", "")[number % 3], region="east" if number < 5 else "north")
        for number, (name, rate) in enumerate(rates.items())
    ]
    made = engine(view, by=policy("proximity", *by.rules[0].strategies), slot_horizon_ms=20_000)  # type: ignore[attr-defined]
    slots: dict[str, list[float]] = {name: [] for name in rates}
    now = 0
    for _ in range(1_000):
        now += dice.choice((0, 0, 0, 1, 10, 100))
        if dice.random() < 0.02:
            made.observe([one for one in view if dice.random() < 0.8], now)
        request = ask(f"u{dice.randrange(9)}", dice.choice(("east", "north")), dice.choice(("CT", "CU", "")))
        decision = made.decide(request, now)
        assert decision.not_before_ms <= 20_000
        if decision.candidates:
            slots[names(made, decision)[0]].append(now + decision.not_before_ms)
    assert sum(len(times) for times in slots.values()) > 200
    for name, rate in rates.items():
        assert slots_in_bounds(slots[name], rate, 1_000, 1)
    for region in ("east", "north"):
        members = [one.id for one in view if one.region == region]
        rate = sum(rates[name] for name in members)
        assert slots_in_bounds([slot for name in members for slot in slots[name]], rate, 1_000, len(members))


def test_a_bound_that_is_broken_is_seen() -> None:
    """The test's own measure."""
    assert slots_in_bounds([0, 0, 100, 200], 10, 100, 1)
    assert not slots_in_bounds([0, 0, 0, 200], 10, 100, 1)


def test_a_storm_becomes_an_even_queue() -> None:
    """Time stands still: first a burst, then one slot each step, evenly over the nodes; refusal beyond the horizon."""
    made = engine(nodes(5, accepts_per_s=20), by=LEAST, slot_horizon_ms=3_000, candidates=2)
    decisions = [made.decide(ask(f"u{number}"), 7) for number in range(600)]
    served = [decision for decision in decisions if decision.candidates]
    waits = [decision.not_before_ms for decision in served]
    assert 80 <= sum(wait == 0 for wait in waits) <= 105
    assert 385 <= len(served) <= 405
    assert max(waits) <= 3_000
    per_node = Counter(names(made, decision)[0] for decision in served)
    assert max(per_node.values()) - min(per_node.values()) < 12
    refused = decisions[-1]
    assert (refused.picked, refused.not_before_ms) == (Picked.NOBODY, 1_000)
    assert refused.passed[-1] == (STABLE, "", Passed.NO_SLOT)
    assert served[-1].picked == Picked.BY_SLOT
    assert made.decide(ask(), 5_000).not_before_ms == 0


def test_who_is_out_of_credit_spills_to_the_next_region() -> None:
    """Then the earliest slot of any; a region without a limit never waits."""
    view = [node("a", region="east", accepts_per_s=2), node("b", region="south", accepts_per_s=2)]
    made = engine(view, by=LEAST, regions=MAP, burst_ms=1_000, candidates=1)
    went = [made.decide(ask(region="east"), 0) for _ in range(10)]
    assert [decision.region for decision in went[:6]] == ["east"] * 3 + ["south"] * 3
    assert went[3].passed == ((STABLE, "east", Passed.NO_CREDIT),)
    assert [decision.not_before_ms for decision in went[6:]] == [500, 500, 1_000, 1_000]
    made.observe([*view, node("c", region="north")], 0)
    assert made.decide(ask(region="east"), 0).region == "north"
    assert made.decide(ask(), 0).region == "north"


def test_a_node_without_credit_loses_to_one_with_credit() -> None:
    """However empty it is; and where a carrier's nodes have spent theirs, the region's others take its clients."""
    view = [node("ct", carrier="CT", accepts_per_s=1), node("cu", carrier="CU", accepts_per_s=100, connections=900)]
    made = engine(view, by=LEAST, overprovision=1.0)
    went = [made.decide(ask(carrier="CT"), 0) for _ in range(20)]
    assert [names(made, decision)[0] for decision in went] == ["ct", "ct"] + ["cu"] * 18
    assert {decision.not_before_ms for decision in went} == {0}
    assert made.decide(ask(), 0).loads[::-1].count(inf) == 1


def test_slots_are_remembered_of_nodes_and_pools_that_go_and_return() -> None:
    """They were given, whoever is registered; a new engine is told of them. What is over is forgotten."""
    view = [node("a", accepts_per_s=1, capacity=10)]
    made = engine(view, by=LEAST)
    waits = [made.decide(ask(), 0).not_before_ms for _ in range(4)]
    assert waits == [0, 0, 1_000, 2_000]
    made.observe([node("a", is_draining=True)], 100)
    assert not made.decide(ask(), 100).candidates
    made.observe([], 100)
    made.accept_loss()
    made.observe([], 100)
    assert made.credit(100) == Credit({"a": 4_000.0}, {(STABLE, "", ""): 4_000.0})
    other = Engine(made.settings, Random(1), credit=made.credit(100))
    for one in (made, other):
        one.observe(view, 100)
        assert one.decide(ask(), 100).not_before_ms == 2_900
    assert made.credit(6_000) == Credit()
    made.observe([node("a", accepts_per_s=0, capacity=10)], 200)
    assert made.decide(ask(), 200).not_before_ms == 0


def test_a_node_that_is_behind_its_pool_is_charged_when_its_client_comes() -> None:
    """A node that joins a queue is not given a slot in it twice as often as it can bear."""
    made = engine(nodes(4, accepts_per_s=10), by=LEAST)
    for _ in range(1_000):
        made.decide(ask(), 0)
    made.observe([*nodes(4, accepts_per_s=10), node("new", accepts_per_s=10)], 0)
    decisions = [made.decide(ask(), 0) for _ in range(2_000)]
    slots = [one.not_before_ms for one in decisions if names(made, one)[0] == "new"]
    assert len(slots) > 100
    assert slots_in_bounds(slots, 10, 1_000, 1)


def test_the_horizon_holds_for_the_node_too() -> None:
    """A node whose queue is longer than its pool's, as with draws by weight alone, refuses when it is too long."""
    view = [node("a", accepts_per_s=1, capacity=99_000), node("b", accepts_per_s=1), *nodes(9, capacity=1)]
    made = engine(view, by=WEIGHTED, slot_horizon_ms=2_000, candidates=1)
    went = [made.decide(ask(), 0) for _ in range(9)]
    assert [decision.not_before_ms for decision in went[:8]] == [0, 0, 0, 0, 1_000, 1_000, 2_000, 2_000]
    assert went[8].candidates == ()
    assert went[8].passed == ((STABLE, "", Passed.NO_SLOT),)
    assert made.decide(ask(), 1_000).candidates


# ---------------------------------------------------------------- arms


@pytest.mark.spec("AL-05")
def test_the_canarys_share_is_its_percentage() -> None:
    """Within three standard deviations, of users; staff by their segment whatever it is."""
    view = [*nodes(5, capacity=100_000), *(node(f"c{number}", version="fast", capacity=100_000) for number in range(5))]
    made = engine(view, rollouts=[active(percent=10_000)])
    arms = Counter(made.decide(ask(f"u{user}"), 0).arm for user in range(10_000))
    assert abs(arms["fast"] - 1_000) < 3 * sqrt(10_000 * 0.1 * 0.9)
    decision = made.decide(ask("staff"), 0)
    assert (decision.arm, decision.placed[0].segment) == ("fast", "staff")
    assert all(name.startswith("c") for name in names(made, decision))


def test_a_canary_is_no_reason_to_be_far_away() -> None:
    """It is left where stable takes the client in a nearer region, for want of nodes, room or credit."""
    view = [node("s", region="east"), node("c", region="south", version="fast")]
    made = engine(view, rollouts=[active()], regions=MAP, candidates=1)
    decision = made.decide(ask(region="east"), 0)
    assert (decision.arm, decision.passed) == (STABLE, (("fast", "east", Passed.ARM_NOT_HERE),))
    assert made.decide(ask(region="south"), 0).arm == "fast"
    assert made.decide(ask(), 0).arm == "fast"
    made.observe([*view, node("d", region="east", version="fast", capacity=4, accepts_per_s=1)], 0)
    assert [made.decide(ask(region="east"), 0).arm for _ in range(3)] == ["fast", "fast", STABLE]
    assert [made.decide(ask(region="east"), 9_000).arm for _ in range(3)] == ["fast", "fast", STABLE]
    assert made.decide(ask(region="east"), 99_000).passed == (("fast", "east", Passed.ARM_FULL),)


def test_where_stable_goes_elsewhere_so_does_the_canary() -> None:
    """The region that the client would go to anyway is not the nearest then."""
    view = [node("s", region="east", capacity=14, connections=10), node("t", region="south")]
    view += [node("c", region="south", version="fast"), node("d", region="north", version="fast")]
    made = engine(view, rollouts=[active()], regions=MAP, candidates=1)
    decision = made.decide(ask(region="east"), 0)
    assert (decision.region, decision.arm, decision.picked) == ("south", "fast", Picked.NEAREST)


def test_a_canary_that_nobody_can_take_now_queues_with_its_own() -> None:
    """When stable has no credit either, the canary's users keep to the canary, and get its earliest slot."""
    view = [node("s", region="east", accepts_per_s=1), node("c", region="east", version="fast", accepts_per_s=1)]
    made = engine(view, rollouts=[active()], regions=MAP, candidates=1)
    arms = [(one.arm, one.not_before_ms) for one in (made.decide(ask(region="east"), 0) for _ in range(6))]
    assert arms == [("fast", 0)] * 2 + [(STABLE, 0)] * 2 + [("fast", 1_000), ("fast", 2_000)]


def test_a_canarys_limit_is_the_operators_word() -> None:
    """Beyond it its users go to stable, though the canary has room; the next rollout is asked before."""
    view = [node("s"), node("c", version="fast", capacity=10), node("d", version="slow", capacity=2)]
    made = engine(view, rollouts=[active(max_share_of_capacity=0.3), active("slow")], candidates=1)
    went = [made.decide(ask(), 0) for _ in range(6)]
    assert [decision.arm for decision in went] == ["fast"] * 3 + ["slow"] * 2 + [STABLE]
    assert went[5].passed == (("fast", "", Passed.ARM_FULL), ("slow", "", Passed.ARM_FULL))
    assert [placed.is_canary for placed in went[5].placed] == [True, True]


def test_a_rollout_that_failed_gets_nobody_but_as_the_last_resort() -> None:
    """Rather a canary than no service: one that did not fail, then one that did."""
    failed, good = active(is_failed=True), active("slow", percent=0)
    view = [node("s"), node("c", version="fast"), node("d", version="slow")]
    made = engine(view, rollouts=[failed, good], candidates=1)
    assert {made.decide(ask(user), 0).arm for user in ("staff", *map(str, range(50)))} == {STABLE, "slow"}
    made.observe([node("s", is_draining=True), *view[1:]], 0)
    decision = made.decide(ask(), 0)
    assert (decision.arm, decision.passed) == ("slow", ((STABLE, "", Passed.ARM_FULL),))
    made.observe([node("s", is_draining=True), node("d", version="slow", is_cordoned=True), view[1]], 0)
    assert made.decide(ask(), 0).arm == "fast"
    made.observe([node("s", is_draining=True)], 0)
    made.accept_loss()
    made.observe([node("s", is_draining=True)], 0)
    assert made.decide(ask(), 0).picked == Picked.NOBODY


# ---------------------------------------------------------------- what it is told


def test_panic_keeps_nodes_until_an_operator_speaks() -> None:
    """See `core.panic`: the engine goes on with those who vanished."""
    made = engine(nodes(10))
    assert not made.is_panic
    made.observe(nodes(1), 0)
    assert made.is_panic
    assert len(made.snapshot.nodes) == 10
    made.accept_loss()
    made.observe(nodes(1), 0)
    assert len(made.snapshot.nodes) == 1


def test_what_was_assigned_counts_over_views_by_the_share() -> None:
    """One of four equal schedulers: each of its own stands for four, until the node reports them."""
    made = engine([node("a")], schedulers=4)
    for _ in range(10):
        made.decide(ask(), 0)
    assert made.snapshot.load == [40.0]
    made.observe([node("a")], 100, schedulers=4)
    assert made.snapshot.load == [40.0]
    made.observe([node("a", connections=30, admitted=8, admitted_of_all=30, reported_at=200)], 200, schedulers=4)
    assert made.snapshot.load == [38.0]
    made.configure(rollouts=[], policy=LEAST, lists={}, regions=Regions(), now=300)
    assert made.snapshot.load == [38.0]


def test_two_engines_that_are_told_the_same_decide_the_same() -> None:
    """I3; another seed does not."""
    made, twin, other = (engine(nodes(30), seed=seed) for seed in (1, 1, 2))
    went = [[one.decide(ask(f"u{user}"), user) for user in range(50)] for one in (made, twin, other)]
    assert went[0] == went[1] != went[2]


def test_pools_are_where_the_facts_are() -> None:
    """Draws of a sticky user hash each node once in a snapshot."""
    made = engine(nodes(4), by=STICKY)
    pool: Pool = made.snapshot.pools[STABLE, ""]
    assert pool.seeds == ()
    made.decide(ask(), 0)
    seeds = pool.seeds
    made.decide(ask("other"), 0)
    assert pool.seeds is seeds
    assert len(heapq.nlargest(9, seeds)) == 4
