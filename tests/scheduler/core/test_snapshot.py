"""Snapshots: pools against sums over their nodes, who is left out and why, doubts, orders."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cohorts import ActiveRollout, Cohort
from scheduler.core.node import AccessNode
from scheduler.core.regions import Region, Regions
from scheduler.core.snapshot import STABLE, Settings, Snapshot
from tests.scheduler.core.fleets import active, node


def snapshot(
    view: list[AccessNode],
    *,
    loads: list[float] | None = None,
    rollouts: tuple[ActiveRollout, ...] = (),
    regions: tuple[Region, ...] = (),
    share: float = 1.0,
    now: int = 0,
    **rules: Any,
) -> Snapshot:
    return Snapshot(
        view,
        [float(one.connections) for one in view] if loads is None else loads,
        cohorts=[Cohort(one) for one in rollouts],
        regions=Regions(regions),
        settings=Settings(**rules),
        share=share,
        now=now,
        generation=1,
    )


FIELDS: dict[str, tuple[Any, ...]] = {
    "region": ("east", "north", ""),
    "carrier": ("", "CT", "CU"),
    "version": ("old", "fast", "slow"),
    "capacity": (1, 10, 1_000),
    "connections": (0, 5, 900),
    "accepts_per_s": (0.0, 2.0, 50.0),
    "is_draining": (False, False, True),
    "is_cordoned": (False, False, True),
    "uptime_ms": (0, 30_000, 90_000),
}


def fleet(seed: int, count: int) -> list[AccessNode]:
    dice = Random(seed)
    return [
        node(f"n{number}", **{field: dice.choice(values) for field, values in FIELDS.items()})
        for number in range(count)
    ]


@given(st.integers(0, 1 << 32), st.integers(0, 20), st.sampled_from((0.25, 1.0)))
def test_every_node_is_left_out_or_in_the_pools_where_it_belongs(seed: int, count: int, share: float) -> None:
    """Each pool is what its nodes are together, and so is each carrier's part; a part is never all of it."""
    view = fleet(seed, count)
    made = snapshot(view, rollouts=(active("fast", max_share_of_capacity=0.5),), share=share)
    assert len(made.left_out) + sum(len(pool.members) for pool in made.pools.values()) == count
    for index, one in enumerate(view):
        assert made.index[one.id] == index
        is_out = one.is_draining or one.is_cordoned or one.connections >= one.capacity
        assert (index in made.left_out) == is_out
        arm = "fast" if one.version == "fast" else STABLE
        assert made.arm_of(one) == arm
        assert [pool.carrier for pool in made.homes[index]][:1] == ([] if is_out else [""])
    parts = [part for pool in made.pools.values() for part in (pool, *pool.carriers.values())]
    assert list(made.every_pool()) == parts
    for (arm, region), pool in made.pools.items():
        assert (pool.arm, pool.region) == (arm, region)
        for part in (pool, *pool.carriers.values()):
            inside = [view[index] for index in part.members]
            assert part.capacity == sum(one.capacity for one in inside)
            assert part.used == sum(made.load[index] for index in part.members)
            assert part.limit == pytest.approx(part.capacity * (0.5 if arm == "fast" else 1 / 1.4))
            assert part.total == pytest.approx(sum(made.weight_of(one) for one in inside))
            rates = [1_000 / made.step_ms[index] if made.step_ms[index] else 0.0 for index in part.members]
            assert part.step_ms == (pytest.approx(1_000 / sum(rates)) if all(rates) else 0)
        for carrier, part in pool.carriers.items():
            assert 0 < len(part.members) < len(pool.members)
            assert [i for i in pool.members if view[i].carrier in {carrier, ""}] == list(part.members)
    assert sum(made.totals().values()) == sum(one.connections for one in view)


def test_why_a_node_is_left_out() -> None:
    """By its own word, an operator's, or its estimate."""
    view = [node("a", is_draining=True), node("b", is_cordoned=True), node("c", connections=999), node("d")]
    made = snapshot(view, loads=[0, 0, 1_000.4, 0])
    assert made.left_out == {0: "draining", 1: "cordoned", 2: "full at 1000 of 1000"}
    assert [made.weight_of(one) for one in view] == [1_000] * 4


def test_a_node_that_does_not_report_is_full_only_by_its_report() -> None:
    """Nobody is seen to leave it: its estimate only grows."""
    view = [node("a"), node("b", connections=1_000)]
    assert set(snapshot(view, loads=[1_000, 1_000], now=180_000).left_out) == {0, 1}
    made = snapshot(view, loads=[1_500, 1_000], now=180_001)
    assert set(made.left_out) == {1}
    assert made.pools[STABLE, ""].used == 1_000


def test_rates_are_this_schedulers_part_and_grow_with_age() -> None:
    """A node that names none has the operator's; no limit of any is no limit of all."""
    view = [node("a", accepts_per_s=10.0), node("b", uptime_ms=30_000)]
    made = snapshot(view, accepts_per_s=20.0, share=0.5)
    assert made.step_ms == [200, 200]
    assert made.pools[STABLE, ""].step_ms == 100
    assert made.weight_of(view[1]) == 500
    assert snapshot(view).pools[STABLE, ""].step_ms == 0
    assert made.unit == 2


def test_reports_are_doubted_by_how_much_older_than_the_newest_they_are() -> None:
    """Where all are old alike there is nothing to doubt."""
    view = [node(str(at), reported_at=at) for at in (1_000_000, 985_000, 902_500, 820_000, 5)]
    made = snapshot(view, report_fresh_ms=15_000, report_expiry_ms=180_000)
    assert made.vague == [0, 0, 0.5, 1, 1]
    assert snapshot(view[:2], now=10_000_000).vague is None
    assert snapshot([]).vague is None


def test_pools_come_in_the_clients_order() -> None:
    """And side by side with stable's, for those whom a rollout takes."""
    regions = (Region("east", spill=("north",)), Region("north"), Region("south"))
    view = [node("a", region="south"), node("b", region="north", version="fast"), node("c", region="east")]
    made = snapshot(view, rollouts=(active("fast"), active("slow")), regions=regions)
    assert [pool.region for pool in made.order(STABLE, "east")] == ["east", "south"]
    assert [pool.region for pool in made.order("fast", "east")] == ["north"]
    assert made.order("slow", "east") == ()
    assert made.order(STABLE, "east") is made.order(STABLE, "east")
    walk = made.walk("fast", "east")
    assert [(where, pool is not None, stable is not None) for where, pool, stable in walk] == [
        ("east", False, True),
        ("north", True, False),
        ("south", False, True),
    ]
    assert made.walk("fast", "east") is walk


def test_of_two_rollouts_of_one_version_the_first_has_the_nodes() -> None:
    """As it is the first that is asked; both are in the totals."""
    made = snapshot(
        [node("a", version="v", connections=3)], rollouts=(active("one", version="v"), active("two", version="v"))
    )
    assert list(made.pools) == [("one", "")]
    assert made.totals() == {STABLE: 0, "one": 3, "two": 0}
