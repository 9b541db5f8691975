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
    assert names(presumed.sees(at(3), 2, [instance("b")], was_away=False)) == "b"
    assert presumed.next_deadline() is None


def test_whom_it_lost_while_it_was_away_is_kept_too_but_not_for_ever() -> None:
    """Registrations ran out since nobody could renew them. Who is dead stays for as long as one lasts."""
    presumed = Presumed(KEEP_MS)
    presumed.sees(at(0), 5, [instance("a"), instance("b")], was_away=False)
    assert names(presumed.sees(at(10), 6, [instance("a")], was_away=True)) == "ab"
    assert presumed.next_deadline() == 110
    assert names(presumed.sees(at(50), 6, [instance("a")], was_away=True)) == "ab", "a second outage gives no more time"
    assert presumed.next_deadline() == 110
    assert names(presumed.sees(at(110), 6, [instance("a")], was_away=False)) == "a"


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 9), st.sets(st.sampled_from(NAMES)), st.booleans()), max_size=30
    )
)
def test_it_keeps_who_was_missed_first_at_most_so_long_ago(views: list[tuple[int, int, set[str], bool]]) -> None:
    """A dumb twin that looks through all of the past."""
    presumed = Presumed(KEEP_MS)
    now, last_index = 0, -1
    missed: dict[str, int] = {}
    live: set[str] = set()
    for pause_ms, index, shown, was_away in views:
        now += pause_ms
        is_doubtful = was_away or index < last_index
        for name in sorted(live - shown):
            if name not in missed and is_doubtful:
                missed[name] = now
        live = shown | {name for name, since in missed.items() if name not in shown and now < since + KEEP_MS}
        missed = {name: since for name, since in missed.items() if name in live - shown}
        last_index = index
        seen = presumed.sees(at(now), index, [instance(name) for name in shown], was_away=was_away)
        assert names(seen) == "".join(sorted(live))
        presumed.check_invariants()
        assert presumed.next_deadline() == min((since + KEEP_MS for since in missed.values()), default=None)
