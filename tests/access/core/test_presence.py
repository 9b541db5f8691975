"""The presence hub: examples by invariant, then random comings and goings against a model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from access.core.presence import PresenceHub, Published, Start
from base.errors import LimitExceeded

NOWHERE = ("", 0)


def hub(channels_max: int = 3) -> PresenceHub[str]:
    return PresenceHub(channels_max=channels_max)


def attached(
    presences: PresenceHub[str], session: str = "s", user: str = "u", *, viewer: str = "v", epoch: str = "e"
) -> int:
    made = presences.attach(session, viewer, user, new_epoch=epoch)
    presences.check_invariants()
    assert made is not None
    return made


def test_a_view_begins_with_its_first_session_and_ends_with_the_last():
    """I3: whoever attaches first watches, whoever leaves last ends that."""
    presences = hub()
    assert presences.attach("s", "v", "u", new_epoch="e") == 1
    assert presences.attach("t", "v", "u", new_epoch="f") == 2
    assert presences.attach("t", "v", "u", new_epoch="f") is None
    assert presences.attach("r", "w", "u", new_epoch="f") == 3
    assert presences.statistics() == {"views": 2, "channels": 3}
    assert presences.detach("s", "u") is None
    assert presences.detach("s", "u") is None
    assert presences.detach("t", "u") == ("u", "v")
    assert presences.detach("r", "u") == ("u", "w")
    presences.check_invariants()
    assert presences.statistics() == {"views": 0, "channels": 0}


def test_a_session_is_told_from_its_start_on():
    """I1: what changes before that is in what it starts with."""
    presences = hub()
    number = attached(presences)
    assert presences.published("u", "v") is None
    assert presences.started("s", "u", number, NOWHERE) == Start("e", 1, is_known=False)
    other = attached(presences, "t")
    assert presences.published("u", "v") == Published(2, (("s", number),))
    assert presences.started("t", "u", other, NOWHERE) == Start("e", 2, is_known=False)
    assert presences.published("u", "v") == Published(3, (("s", number), ("t", other)))
    assert presences.published("u", "w") is None


def test_a_position_of_the_living_view_is_known():
    """Any other one is not: another epoch, or another offset, even a greater one."""
    presences = hub()
    number = attached(presences)
    presences.started("s", "u", number, NOWHERE)
    presences.published("u", "v")
    for position, is_known in [(("e", 2), True), (("e", 1), False), (("e", 3), False), (("f", 2), False)]:
        other = attached(presences, "t")
        assert presences.started("t", "u", other, position) == Start("e", 2, is_known)
        presences.detach("t", "u")


def test_offsets_grow_while_nobody_listens():
    """I2: or who comes back with the last position would be thought to know the state."""
    presences = hub()
    number = attached(presences)
    presences.started("s", "u", number, NOWHERE)
    loading = attached(presences, "t")
    presences.detach("s", "u")
    assert presences.published("u", "v") == Published(2, ())
    assert presences.started("t", "u", loading, ("e", 1)) == Start("e", 2, is_known=False)


def test_a_subscription_that_ended_does_not_start():
    """Nor does its end touch the one that followed it."""
    presences = hub()
    first = attached(presences)
    presences.detach("s", "u")
    assert presences.started("s", "u", first, NOWHERE) is None
    second = attached(presences)
    assert presences.started("s", "u", first, NOWHERE) is None
    assert presences.detach("s", "u", first) is None
    assert presences.started("s", "u", second, NOWHERE) is not None
    assert presences.detach("s", "u", second) == ("u", "v")


def test_the_users_of_a_session_are_bounded():
    """I4, for each session on its own."""
    presences = hub(channels_max=2)
    attached(presences, user="u1")
    attached(presences, user="u2")
    with pytest.raises(LimitExceeded) as caught:
        presences.attach("s", "v", "u3", new_epoch="e")
    assert caught.value.detail["limit"] == 2
    attached(presences, "t", "u3")
    assert presences.users("s") == ("u1", "u2")
    assert presences.users("nobody") == ()
    presences.detach("s", "u1")
    attached(presences, user="u3")


class Comings(RuleBasedStateMachine):
    """Two users, two viewers with two sessions each: every client knows the present state once it has started."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = hub(channels_max=2)
        self.epochs = 0
        self.state: dict[tuple[str, str], int] = {}
        self.numbers: dict[tuple[str, str], int] = {}
        self.knows: dict[tuple[str, str], int] = {}
        """What each client believes, while it is subscribed."""
        self.kept: dict[tuple[str, str], tuple[tuple[str, int], int]] = {}
        """The position and the state with which it left."""

    @rule(session=st.sampled_from(["v1", "v2", "w1", "w2"]), user=st.sampled_from(["u", "x"]))
    def attach(self, session: str, user: str) -> None:
        self.epochs += 1
        made = self.hub.attach(session, session[0], user, new_epoch=str(self.epochs))
        assert (made is None) == ((session, user) in self.numbers)
        if made is not None:
            self.numbers[session, user] = made

    @rule(session=st.sampled_from(["v1", "v2", "w1", "w2"]), user=st.sampled_from(["u", "x"]))
    def start(self, session: str, user: str) -> None:
        number = self.numbers.get((session, user))
        if number is None or (session, user) in self.knows:
            return
        position, believed = self.kept.get((session, user), (NOWHERE, -1))
        start = self.hub.started(session, user, number, position)
        assert start is not None
        state = self.state.setdefault((user, session[0]), 0)
        if start.is_known:
            assert believed == state
        self.knows[session, user] = state
        self.kept[session, user] = ((start.epoch, start.offset), state)

    @rule(viewer=st.sampled_from(["v", "w"]), user=st.sampled_from(["u", "x"]))
    def change(self, viewer: str, user: str) -> None:
        self.state[user, viewer] = self.state.get((user, viewer), 0) + 1
        published = self.hub.published(user, viewer)
        for session, number in published.sessions if published else ():
            assert number == self.numbers[session, user]
            (epoch, offset), _ = self.kept[session, user]
            assert published is not None
            assert published.offset == offset + 1, "I2"
            self.knows[session, user] = self.state[user, viewer]
            self.kept[session, user] = ((epoch, published.offset), self.state[user, viewer])

    @rule(session=st.sampled_from(["v1", "v2", "w1", "w2"]), user=st.sampled_from(["u", "x"]))
    def detach(self, session: str, user: str) -> None:
        self.hub.detach(session, user)
        self.numbers.pop((session, user), None)
        self.knows.pop((session, user), None)

    @invariant()
    def holds(self) -> None:
        self.hub.check_invariants()
        for (session, user), state in self.knows.items():
            assert state == self.state[user, session[0]], "I1"


Comings.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestComings = Comings.TestCase
