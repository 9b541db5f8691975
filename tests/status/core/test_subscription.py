"""One subscription: groups of viewers, the grace, and what is told to whom."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from base.clock import Instant, Timestamp
from status.core.subscription import Shown, Subscription
from status.core.visibility import OFFLINE, UNKNOWN, Presence, Sight

ONLINE, AWAY, BUSY = Presence("online"), Presence("away"), Presence("busy")
GONE = Presence("offline", Timestamp(7))
GRACE_MS = 100


def subscription(sight: Sight = ONLINE, viewers: str = "vw") -> Subscription:
    made = Subscription()
    made.add(viewers, sight)
    return made


def see(one: Subscription, now: int, sight: Sight) -> Instant | None:
    next_at = one.see(Instant(now), sight, Instant(now + GRACE_MS))
    one.check_invariants()
    return next_at


def tell(one: Subscription, now: int) -> tuple[Shown, ...]:
    told = one.tell(Instant(now))
    one.check_invariants()
    return told


def by_name(seen: Mapping[str, Presence]) -> Sight:
    return lambda viewer: seen[viewer]


def everybody(presence: Presence) -> tuple[Shown, ...]:
    return (Shown(presence, None),)


def test_viewers_are_shown_what_they_see_when_they_come():
    """Named, since what is said to them now is not for those who are there."""
    made = Subscription()
    assert made.add("wv", ONLINE) == (Shown(ONLINE, ("v", "w")),)
    assert made.add("xy", by_name({"x": AWAY, "y": ONLINE})) == (Shown(AWAY, ("x",)), Shown(ONLINE, ("y",)))
    assert (len(made), made.viewers()) == (4, set("vwxy"))
    assert "v" in made
    assert "z" not in made
    assert see(made, 5, by_name({"v": ONLINE, "w": ONLINE, "x": AWAY, "y": ONLINE})) is None, "they know it"


def test_a_change_that_all_see_alike_is_told_to_all():
    """At once, and once."""
    made = subscription()
    assert see(made, 5, AWAY) == 5
    assert tell(made, 5) == everybody(AWAY)
    assert tell(made, 6) == ()
    assert see(made, 7, AWAY) is None


def test_the_last_change_before_telling_counts():
    """And one that leads back is none."""
    made = subscription()
    see(made, 5, AWAY)
    assert see(made, 6, BUSY) == 6
    assert tell(made, 6) == everybody(BUSY)
    see(made, 7, AWAY)
    assert see(made, 8, BUSY) is None
    assert tell(made, 8) == ()


def test_each_viewer_is_told_what_it_sees():
    """Others' news is none of theirs; named in an order that does not depend on hashes."""
    made = subscription(viewers="vwx")
    assert see(made, 5, by_name({"v": BUSY, "w": ONLINE, "x": AWAY})) == 5
    assert tell(made, 5) == (Shown(BUSY, ("v",)), Shown(AWAY, ("x",)))
    assert see(made, 6, AWAY) == 6
    assert tell(made, 6) == (Shown(AWAY, ("v", "w")),)
    assert see(made, 7, AWAY) is None


def test_viewers_who_were_told_different_things_may_all_be_told_the_same():
    """Then no names are needed."""
    made = subscription(by_name({"v": BUSY, "w": ONLINE}))
    see(made, 5, AWAY)
    assert tell(made, 5) == everybody(AWAY)


def test_offline_waits_for_the_grace():
    """I3, and its time is that of the last look."""
    made = subscription()
    assert see(made, 5, OFFLINE) == 105
    assert see(made, 50, GONE) == 105
    assert tell(made, 104) == ()
    assert tell(made, 105) == everybody(GONE)


def test_who_is_back_within_the_grace_was_never_away():
    """And who goes again gets another grace."""
    made = subscription()
    see(made, 5, OFFLINE)
    assert see(made, 50, ONLINE) is None
    assert see(made, 60, OFFLINE) == 160
    assert see(made, 70, AWAY) == 70
    assert see(made, 80, OFFLINE) == 180
    assert tell(made, 179) == ()
    assert tell(made, 180) == everybody(OFFLINE)


@pytest.mark.parametrize("told", [UNKNOWN, GONE])
def test_only_a_presence_has_a_grace(told: Presence):
    """A viewer who waits for an answer, or knows of the absence, gains nothing by waiting."""
    made = subscription(told)
    assert see(made, 5, OFFLINE) == 5
    assert tell(made, 5) == everybody(OFFLINE)


def test_while_the_owner_cannot_tell_nothing_is_told():
    """I2: what was to be told is not certain any more, and a grace begins anew."""
    made = subscription()
    see(made, 5, OFFLINE)
    assert see(made, 50, UNKNOWN) is None
    assert tell(made, 200) == ()
    assert see(made, 300, OFFLINE) == 400


def test_who_asks_again_is_told_again_what_is_now():
    """Without a grace, and nothing more comes of it."""
    made = subscription()
    see(made, 5, OFFLINE)
    assert made.add("v", OFFLINE) == (Shown(OFFLINE, ("v",)),)
    assert tell(made, 105) == (Shown(OFFLINE, ("w",)),)


def test_who_is_removed_is_told_nothing():
    """The others are; those who were not there do not matter."""
    made = subscription()
    see(made, 5, AWAY)
    assert made.remove("vz") == {"v"}
    assert tell(made, 5) == everybody(AWAY)
    assert made.remove("w") == {"w"}
    assert not made
    assert made.next_at() is None


def test_a_sight_that_fails_changes_nothing():
    """Neither for those who are there nor for those who come."""
    made = subscription()
    for act in (lambda: see(made, 5, by_name({})), lambda: made.add("v", by_name({}))):
        with pytest.raises(KeyError):
            act()
    made.check_invariants()
    assert made.next_at() is None
    assert see(made, 6, ONLINE) is None, "what they were told"
