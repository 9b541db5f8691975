"""What the publisher of an access node packs: a session as its readers see it, and what is left of one that hides."""

from __future__ import annotations

import msgspec
import pytest

from base.clock import Timestamp
from status.api import SessionView, State
from status.core.records import Kind, kind_of
from status.core.visibility import Audience
from tests.status.core.test_publisher import GATE, NOW, A, beat_to, closed, new_publisher, opened, reply


def test_a_session_is_packed_for_its_readers():
    """With its access node."""
    publisher = new_publisher()
    publisher.open(opened("s"))
    (entry,) = publisher.sessions(0)
    view = msgspec.msgpack.decode(entry[13:], type=SessionView)
    assert view == SessionView("s", "phone", "ios", GATE, "online", Timestamp(7), Timestamp(8))


@pytest.mark.parametrize(
    ("state", "audience", "kind"),
    [
        ("online", None, Kind.OPEN),
        ("away", Audience("everyone"), Kind.OPEN),
        ("invisible", None, Kind.HIDDEN),
        ("online", Audience("listed", ("w",)), Kind.HIDDEN),
        ("online", Audience("nobody"), Kind.HIDDEN),
    ],
)
def test_who_hides_is_packed_so_and_leaves_no_time_behind(state: State, audience: Audience | None, kind: Kind):
    """With the audience, if it names one."""
    publisher = new_publisher()
    publisher.answered(NOW, A, beat_to(publisher), reply())
    publisher.open(msgspec.structs.replace(opened("s"), state=state, audience=audience))
    (entry,) = publisher.sessions(0)
    assert kind_of(bytes(2) + entry) is kind
    view = msgspec.msgpack.decode(entry[13:], type=SessionView)
    assert (view.state, view.audience) == (state, audience)
    publisher.answered(NOW, A, beat_to(publisher), reply())
    publisher.close(closed("s"), Timestamp(99))
    (tombstone,) = beat_to(publisher).entries
    assert msgspec.msgpack.decode(tombstone[13:]) == (99 if kind is Kind.OPEN else 0)
