"""Who is taken in a partition that is too long already: whoever lists nobody, or no more users than before."""

from __future__ import annotations

import msgspec
import pytest

from base.clock import Timestamp
from base.errors import Overloaded
from status.api import State
from status.core import publisher as module
from status.core.publisher import Publisher
from status.core.visibility import Audience
from tests.status.core.test_publisher import new_publisher, opened


def listing(*, users: int) -> Audience:
    return Audience("listed", tuple(f"w{number:02d}" for number in range(users)))


LISTER = msgspec.structs.replace(opened("s"), audience=listing(users=10))


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A session that lists ten users takes all the room, and one that lists nobody came after it."""
    publisher = new_publisher()
    publisher.open(LISTER)
    monkeypatch.setattr(module, "LISTED_BYTES_MAX", len(publisher.sessions(0)[0]))
    publisher.open(opened("t"))
    return publisher


@pytest.mark.parametrize("users", [1, 9, 10])
@pytest.mark.parametrize("state", ["online", "invisible"])
def test_a_list_that_is_no_longer_than_before_has_room(crowded: Publisher, users: int, state: State) -> None:
    """Others can keep nobody from hiding, or from hiding from more: how long the state's name is does not count."""
    wanted = msgspec.structs.replace(LISTER, state=state, audience=listing(users=users), last_active=Timestamp(2**40))
    before = crowded.sessions(0)
    crowded.open(wanted)
    assert crowded.sessions(0)[0] != before[0]


@pytest.mark.parametrize(("session", "users"), [("s", 11), ("t", 1), ("u", 1)])
def test_a_longer_list_has_none(crowded: Publisher, session: str, users: int) -> None:
    """Whether the session listed fewer users before, nobody, or was not there."""
    before = crowded.sessions(0)
    with pytest.raises(Overloaded):
        crowded.open(msgspec.structs.replace(opened(session), audience=listing(users=users)))
    assert crowded.sessions(0) == before
