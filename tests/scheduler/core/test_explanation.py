"""Explanations: what each fact of a decision becomes in words. All decisions of histories: test_engine_histories."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.core.engine import Engine
from scheduler.core.explanation import Stage, explain
from scheduler.core.regions import Region
from scheduler.core.request import Location, Request
from tests.scheduler.core.fleets import active, ask, engine, node, policy

MAP = (Region("east", spill=("north",)), Region("north"))


def why(made: Engine, request: Request | None = None, now: int = 0) -> dict[str, Stage]:
    asked = request or ask()
    stages = explain(made.snapshot, made.policy, asked, made.decide(asked, now))
    return {stage.stage: stage for stage in stages}


def test_a_plain_decision() -> None:
    """Every stage, in order."""
    made = engine([node("a", region="east", connections=250), node("b", region="east", is_draining=True)])
    asked = Request("u", location=Location("east", "CN-SH", "CT", "mmdb"))
    assert list(why(made, asked).values()) == [
        Stage("locate", "region east, place CN-SH, carrier CT, by mmdb"),
        Stage("filter", "1 of 2 access nodes take clients", ("b: draining",)),
        Stage("rule", "all: canary, least_connections, proximity"),
        Stage("arm", "stable"),
        Stage("region", "east: the first in the client's order with room and credit"),
        Stage("draw", "a", ("a: load 25.000% of its weight, candidate 1",)),
        Stage("slot", "may connect at once"),
    ]


def test_nobody_takes_clients() -> None:
    """There is no draw to tell of then, nor a slot."""
    found = why(engine([node("a", is_cordoned=True)]), Request("u"))
    assert list(found) == ["locate", "filter", "rule", "arm", "region"]
    assert found["locate"].says == "nowhere in particular, by none"
    assert found["region"].says == "none: nobody takes clients now"
    made = engine([node("a", accepts_per_s=1)], slot_horizon_ms=0)
    assert [why(made, ask(region="x"))["region"].dropped for _ in range(3)][2] == (
        "unnamed: its nodes accept nobody more in this moment",
        "unnamed: its next slot is too far away",
    )


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("staff", "fast: fast takes the client (segment staff)"),
        ("ann", "fast: fast takes the client (bucket 19.879 of 50 %)"),
        ("", "stable: fast does not take the client (nothing to make a bucket of)"),
    ],
)
def test_how_a_rollout_placed_the_client(user: str, says: str) -> None:
    """By a segment, by the bucket, or not at all."""
    made = engine([node("s"), node("c", version="fast")], rollouts=[active(percent=50_000)])
    assert why(made, ask(user))["arm"].says == says


def test_a_rollout_that_failed_says_so() -> None:
    """And that a canary is the last resort."""
    made = engine([node("c", version="fast")], rollouts=[active(is_failed=True)])
    found = why(made, ask("staff"))
    assert found["arm"].says == (
        "fast: fast does not take the client (segment staff; it failed, and takes nobody); "
        "as the last resort, since stable takes nobody"
    )
    assert found["arm"].dropped == ("stable, anywhere: its nodes take nobody more now",)


def test_why_an_arm_was_left() -> None:
    """With the region where it would have been."""
    made = engine(
        [node("s", region="east"), node("c", region="north", version="fast")], rollouts=[active()], regions=MAP
    )
    assert why(made, ask(region="east"))["arm"].dropped == (
        "fast, east: it has no node there, where stable takes the client",
    )


def test_why_a_region_was_left_and_how_the_other_was_found() -> None:
    """Spill for want of room, with the client's own region; who came from elsewhere to fill up the list."""
    view = [node("a", region="east", capacity=14, connections=10), node("b", region="north", capacity=14)]
    made = engine(view, by=policy("least_connections", "proximity"), regions=MAP)
    found = why(made, ask(region="east"))
    assert found["region"].says == ("north, for a client of east: the first in the client's order with room and credit")
    assert found["region"].dropped == ("east: used up to its share",)
    assert found["draw"].says == "b, a (east)"
    canary = engine([node("a", version="fast")], rollouts=[active(is_failed=True, max_share_of_capacity=0.001)])
    assert why(canary, ask(region="x"))["region"].says == (
        "unnamed, for a client of x: the first in the client's order with room and credit"
    )
    assert why(canary, ask(region="x"))["region"].dropped == ("unnamed (fast): used up to its share",)


def test_regions_without_a_name_are_told_apart() -> None:
    """Nodes that name none are of a region all the same."""
    made = engine([node("a", region="east"), node("b")], by=policy("least_connections", "proximity"), regions=MAP)
    assert why(made, ask(region="east"))["draw"].says == "a, b (no region)"


def test_a_carrier_and_a_slot() -> None:
    """Whose nodes it was drawn from, and how long to wait."""
    view = [node("a", carrier="CT", accepts_per_s=1), node("b", carrier="CU", accepts_per_s=1)]
    made = engine(view, burst_ms=0, by=policy("least_connections"))
    assert (
        why(made, ask(carrier="CT"))["region"].says
        == "unnamed: drawn by the room that is left, nodes in the network of CT"
    )
    found = [why(made, ask()) for _ in range(3)][2]
    assert found["region"].says == "unnamed: the earliest slot, nobody has credit now"
    assert found["draw"].dropped[0].endswith(": no credit, candidate 1")
    assert found["slot"].says == "wait 1500 ms for the slot"


def compared(made: Engine) -> Any:
    return why(made)["draw"].dropped


def test_what_nodes_were_compared_by() -> None:
    """Loads, or their weight alone; with the doubt where a report is old."""
    view = [node("a", reported_at=97_500), node("b", reported_at=195_000), node("c", reported_at=195_000)]
    assert min(compared(engine(view, by=policy("weighted")))).startswith("a: by its weight alone, candidate ")
    made = engine(view, by=policy("least_connections"), candidates=2, now=195_000)
    assert sum("load 0.000% of its weight, doubted by 50% as its report is old" in line for line in compared(made)) == 1
    assert sum(line.endswith("not chosen") for line in compared(made)) == 1


def test_a_decision_is_explained_on_its_own_snapshot() -> None:
    """Another one's numbers of nodes mean others."""
    made = engine([node("a")])
    decision = made.decide(ask(), 0)
    made.observe([node("a")], 1)
    with pytest.raises(AssertionError):
        explain(made.snapshot, made.policy, ask(), decision)
