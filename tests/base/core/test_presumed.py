"""Presumed: whom to take for live while a registry fills again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from base.clock import Instant
from base.core.presumed import Presumed
from base.core.registry import ServiceInstance

KEEP_MS = 100
NAMES = "abc"


def instance(name: str, life: int = 1) -> ServiceInstance:
    return ServiceInstance(id=name, service="access", url=f"http://{name}", incarnation=life)


def at(ms: int) -> Instant:
    return Instant(ms)


def names(instances: tuple[ServiceInstance, ...]) -> str:
    return "".join(one.id for one in instances)


def test_who_is_not_shown_any_more_is_gone() -> None:
    """As long as the registry was there and goes on counting."""
    presumed = Presumed(KEEP_MS)
    assert names(presumed.sees(at(0), 5, [instance("b"), instance("a")], was_away=False)) == "ab"
    assert names(presumed.sees(at(1), 6, [instance("a")], was_away=False)) == "a"
    assert presumed.next_deadline() is None


def test_whom_a_registry_that_started_over_lost_is_kept_until_it_is_there_again() -> None:
    """Each as it was shown last, and then as it is shown."""
    presumed = Presumed(KEEP_MS)
    presumed.sees(at(0), 5, [instance("a"), instance("b")], was_away=False)
    assert names(presumed.sees(at(1), 0, [], was_away=False)) == "ab"
    back = instance("a", life=2)
    assert presumed.sees(at(2), 1, [back], was_away=False) == (back, instance("b"))
    assert presumed.sees(at(3), 2, [back, instance("b", life=2)], was_away=False) == (back, instance("b", life=2))
    assert presumed.next_deadline() is None


def test_whom_it_lost_while_it_was_away_is_kept_too_but_not_for_ever() -> None:
    """Registrations ran out since nobody could renew them. Who is dead stays for as long as one lasts."""
    presumed = Presumed(KEEP_MS)
    presumed.sees(at(0), 5, [instance("a"), instance("b")], was_away=False)
    assert names(presumed.sees(at(10), 6, [instance("a")], was_away=True)) == "ab"
    assert presumed.next_deadline() == 110
    assert names(presumed.sees(at(109), 6, [instance("a")], was_away=False)) == "ab"
    assert names(presumed.sees(at(110), 6, [instance("a")], was_away=False)) == "a"
    assert presumed.next_deadline() is None


def test_whom_it_loses_after_it_is_back_is_kept_as_well() -> None:
    """It comes back with everybody, and finds then that nobody was heard of for too long."""
    presumed = Presumed(KEEP_MS)
    presumed.sees(at(0), 5, [instance("a"), instance("b")], was_away=False)
    assert names(presumed.sees(at(10), 5, [instance("a"), instance("b")], was_away=True)) == "ab"
    assert presumed.next_deadline() is None, "nobody is missed"
    assert names(presumed.sees(at(20), 6, [instance("b")], was_away=False)) == "ab"
    assert names(presumed.sees(at(30), 7, [], was_away=False)) == "ab"
    assert presumed.next_deadline() == 110
    assert names(presumed.sees(at(40), 8, [instance("a")], was_away=False)) == "ab"
    assert names(presumed.sees(at(110), 8, [instance("a")], was_away=False)) == "a"


def test_another_outage_gives_everybody_another_time() -> None:
    """Nobody could register during that, either."""
    presumed = Presumed(KEEP_MS)
    presumed.sees(at(0), 5, [instance("a")], was_away=False)
    assert names(presumed.sees(at(10), 6, [], was_away=True)) == "a"
    assert names(presumed.sees(at(500), 7, [], was_away=True)) == "a"
    assert presumed.next_deadline() == 600
    assert names(presumed.sees(at(600), 7, [], was_away=False)) == ""


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 9), st.sets(st.sampled_from(NAMES)), st.booleans()), max_size=30
    )
)
def test_it_keeps_whom_it_saw_since_the_last_view_that_it_had_to_believe(
    views: list[tuple[int, int, set[str], bool]],
) -> None:
    """A dumb twin that keeps all views, and looks through them anew each time."""
    presumed = Presumed(KEEP_MS)
    past: list[tuple[int, set[str], bool]] = []
    now, last_index = 0, -1
    for pause_ms, index, shown, was_away in views:
        now += pause_ms
        past.append((now, shown, was_away or index < last_index))
        last_index = index
        live, doubt_began = set[str](), -KEEP_MS
        for when, seen_then, begins_doubt in past:
            doubt_began = when if begins_doubt else doubt_began
            live = seen_then | live if when < doubt_began + KEEP_MS else seen_then
        seen = presumed.sees(at(now), index, [instance(name) for name in shown], was_away=was_away)
        assert names(seen) == "".join(sorted(live))
        presumed.check_invariants()
        assert presumed.next_deadline() == (doubt_began + KEEP_MS if live - shown else None)
