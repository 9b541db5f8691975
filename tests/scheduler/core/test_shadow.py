"""The comparison of two engines against counts made by hand."""

from __future__ import annotations

from scheduler.core.engine import Decision, Engine
from scheduler.core.shadow import Comparison, Difference
from tests.scheduler.core.fleets import engine, node


def two() -> tuple[Engine, Engine]:
    """Return two whose numbers of the same node differ."""
    return engine([node("a"), node("b"), node("c")]), engine([node("b"), node("c")])


def decided(*candidates: int, arm: str = "stable", region: str = "", wait: int = 0) -> Decision:
    return Decision(1, 0, 1, region, arm, candidates, wait)


def test_nothing_was_compared_yet() -> None:
    """Zeros."""
    assert Comparison().difference() == Difference(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0)


def test_the_same_nodes_by_other_numbers_are_no_difference() -> None:
    """Names count."""
    real, shadow = two()
    compared = Comparison()
    compared.add(real, decided(1, 2, wait=5), shadow, decided(0, 1, wait=7))
    compared.add(real, decided(), shadow, decided())
    assert compared.difference() == Difference(
        **dict.fromkeys(Difference.__struct_fields__, 0)
        | {"decisions": 2, "max_to_mean": 1.0, "shadow_max_to_mean": 1.0, "waited_ms": 5, "shadow_waited_ms": 7}
    )


def test_each_difference_is_counted() -> None:
    """Order, first, arm, region, and who found nobody; the first candidates are what each assigns."""
    real, shadow = two()
    compared = Comparison()
    for one, other in (
        (decided(1, 2, 0), decided(0, 1)),  # b c a, b c
        (decided(1, 2), decided(1, 0)),  # b c, c b
        (decided(1, arm="fast"), decided(1, region="east")),  # b, c
        (decided(1), decided()),
        (decided(), decided(1)),
        (decided(0), decided(1)),  # a, c
    ):
        compared.add(real, one, shadow, other)
    assert compared.difference() == Difference(
        decisions=6,
        other_arm=1,
        other_region=1,
        other_first=3,
        other_candidates=4,
        nobody=1,
        somebody=1,
        max_to_mean=1.6,  # b 4, a 1
        shadow_max_to_mean=1.6,  # c 4, b 1
        waited_ms=0,
        shadow_waited_ms=0,
    )
