"""Visibility: who may see whom, and that a viewer who may not cannot tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from status.core.visibility import (
    AUDIENCE_BYTES_MAX,
    AUDIENCE_MAX,
    EVERYONE,
    OFFLINE,
    UNKNOWN,
    Audience,
    Known,
    Mode,
    Presence,
    SessionState,
    best_of,
    checked_audience,
    may_see,
    seen_by,
    sight,
)

SEEN = Timestamp(1_700_000_000_000)
ONLINE, INVISIBLE = Presence("online"), Presence("invisible")
NOBODY = Audience("nobody")


def is_contact(user: str, viewer: str) -> bool:
    """Whom `u` has among the contacts; `u` is among those of `stranger`, which must not count."""
    return (user, viewer) in {("u", "friend"), ("stranger", "u")}


# ---------------------------------------------------------------- audiences


@pytest.mark.parametrize(
    ("audience", "viewers"),
    [
        (EVERYONE, {"friend", "listed", "stranger"}),
        (Audience("contacts"), {"friend"}),
        (Audience("listed", ("a", "listed", "z")), {"listed"}),
        (Audience("listed"), set()),
        (Audience("nobody", ("listed",)), set()),
    ],
)
def test_who_is_in_an_audience(audience: Audience, viewers: set[str]):
    """And the user and trusted services always are: I1."""
    allowed = {viewer for viewer in ("friend", "listed", "stranger") if may_see(viewer, "u", audience, is_contact)}
    assert allowed == viewers
    assert may_see("u", "u", audience, is_contact)
    assert may_see(None, "u", audience, is_contact)


def test_an_audience_is_sorted_and_has_each_user_once():
    """`may_see` searches it."""
    assert checked_audience("listed", ["b", "a", "b"]) == Audience("listed", ("a", "b"))
    assert checked_audience("contacts") == Audience("contacts")


def test_an_audience_that_cannot_be_is_refused():
    """Users that would mean nothing, ids that must not come in, and too many."""
    with pytest.raises(BadRequest, match="takes no users"):
        checked_audience("contacts", ["a"])
    with pytest.raises(BadRequest, match="128 bytes"):
        checked_audience("listed", ["x" * 129])
    assert len(checked_audience("listed", map(str, range(AUDIENCE_MAX))).users) == AUDIENCE_MAX
    with pytest.raises(LimitExceeded) as caught:
        checked_audience("listed", map(str, range(AUDIENCE_MAX + 1)))
    assert caught.value.detail == {"what": "audience", "limit": AUDIENCE_MAX, "seen": AUDIENCE_MAX + 1}


def test_the_ids_of_an_audience_are_bounded_together():
    """In bytes, whatever they are made of: 125 of the longest ids fill it."""
    longest = [f"{number:03}" + "\u00e9" * 62 + "x" for number in range(126)]
    assert AUDIENCE_BYTES_MAX == 125 * 128
    assert len(checked_audience("listed", longest[:125]).users) == 125
    with pytest.raises(LimitExceeded) as caught:
        checked_audience("listed", longest)
    assert caught.value.detail == {"what": "audience_bytes", "limit": AUDIENCE_BYTES_MAX, "seen": 126 * 128}


# ---------------------------------------------------------------- presences


@pytest.mark.parametrize(
    ("states", "best"),
    [
        ((), None),
        (("invisible",), "invisible"),
        (("invisible", "away"), "away"),
        (("away", "online"), "online"),
        (("online", "busy", "away"), "busy"),
    ],
)
def test_the_best_state_stands_for_all(states: tuple[SessionState, ...], best: SessionState | None):
    """Busy before online before away before invisible."""
    assert best_of(states) == best


def test_an_invisible_session_is_there_for_the_user_and_for_trusted_services_only():
    """I3, and the time is that of the last visible one."""
    known = Known(("invisible",), SEEN)
    assert seen_by("u", "u", known, EVERYONE, is_contact) == INVISIBLE
    assert seen_by(None, "u", known, EVERYONE, is_contact) == INVISIBLE
    gone = Known((), SEEN)
    assert seen_by("friend", "u", known, EVERYONE, is_contact) == seen_by("friend", "u", gone, EVERYONE, is_contact)


def test_who_is_visible_somewhere_is_visible():
    """The invisible session does not count, it does not hide."""
    assert seen_by("friend", "u", Known(("invisible", "away")), EVERYONE, is_contact) == Presence("away")


@pytest.mark.parametrize("known", [Known(), Known(("online",)), Known(("invisible",)), Known(late=("busy",))])
@pytest.mark.parametrize("last_seen", [None, SEEN])
def test_a_denied_viewer_sees_somebody_who_left(known: Known, last_seen: Timestamp | None):
    """I2: the same value as of who has no session, with the time of when everybody could see the user last."""
    known = known._replace(last_seen=last_seen)
    absent = seen_by("friend", "u", Known((), last_seen), EVERYONE, is_contact)
    assert seen_by("stranger", "u", known, NOBODY, is_contact) == absent == Presence("offline", last_seen)
    unsure = known._replace(is_complete=False)
    assert seen_by("stranger", "u", unsure, NOBODY, is_contact) == UNKNOWN


def test_a_session_that_is_late_is_unknown_to_who_may_see_it():
    """Everybody else sees that nobody is there (I2, I5)."""
    late = Known((), SEEN, late=("away",))
    assert seen_by("friend", "u", late, EVERYONE, is_contact) == UNKNOWN
    assert seen_by("stranger", "u", late, NOBODY, is_contact) == Presence("offline", SEEN)
    invisible = Known((), SEEN, late=("invisible",))
    assert seen_by("friend", "u", invisible, EVERYONE, is_contact) == Presence("offline", SEEN)
    assert seen_by("u", "u", invisible, EVERYONE, is_contact) == UNKNOWN
    assert seen_by("friend", "u", Known(("busy",), late=("away",)), EVERYONE, is_contact) == Presence("busy")


def test_who_is_not_known_to_be_there_is_unknown_until_the_owner_is_complete():
    """Neither offline nor a time may be said of somebody who may be online; but who is known to be there is there."""
    assert seen_by("friend", "u", Known((), SEEN, is_complete=False), EVERYONE, is_contact) == UNKNOWN
    assert seen_by("friend", "u", Known(("invisible",), is_complete=False), EVERYONE, is_contact) == UNKNOWN
    assert seen_by("friend", "u", Known(("online",), is_complete=False), EVERYONE, is_contact) == ONLINE


def test_what_all_see_alike_is_one_presence():
    """So that a change of a user with many viewers costs one look."""
    assert sight("u", Known(("online",)), EVERYONE, is_contact) == ONLINE
    assert sight("u", Known((), SEEN), EVERYONE, is_contact) == Presence("offline", SEEN)
    assert sight("u", Known(), NOBODY, is_contact) == OFFLINE
    assert sight("u", Known((), SEEN, is_complete=False), NOBODY, is_contact) == UNKNOWN
    assert sight("u", Known((), SEEN), NOBODY, is_contact) == Presence("offline", SEEN)
    assert callable(sight("u", Known(("online",)), NOBODY, is_contact))
    assert callable(sight("u", Known(("invisible",)), EVERYONE, is_contact))


@given(
    viewer=st.sampled_from(["u", "friend", "listed", "stranger"]),
    mode=st.sampled_from(["everyone", "contacts", "listed", "nobody"]),
    states=st.lists(st.sampled_from(["online", "away", "busy", "invisible"]), max_size=3),
    late=st.lists(st.sampled_from(["online", "invisible"]), max_size=2),
    last_seen=st.none() | st.just(SEEN),
    is_complete=st.booleans(),
)
def test_a_sight_shows_each_viewer_what_that_viewer_sees(
    viewer: str,
    mode: Mode,
    states: list[SessionState],
    late: list[SessionState],
    last_seen: Timestamp | None,
    *,
    is_complete: bool,
):
    """I4, I2, I3 and I5 over everything there is."""
    known = Known(tuple(states), last_seen, is_complete, tuple(late))
    absent = Known((), last_seen, is_complete)
    audience = Audience(mode, ("listed",) if mode == "listed" else ())
    seen = sight("u", known, audience, is_contact)
    shown = seen if isinstance(seen, Presence) else seen(viewer)
    assert shown == seen_by(viewer, "u", known, audience, is_contact)
    if not may_see(viewer, "u", audience, is_contact):
        assert shown == seen_by("friend", "u", absent, EVERYONE, is_contact)
    if viewer != "u" and not {*states, *late} - {"invisible"}:
        assert shown == seen_by("friend", "u", absent, EVERYONE, is_contact)
    assert viewer == "u" or shown.state != "invisible"
    assert shown.last_seen is None or shown.state == "offline"
