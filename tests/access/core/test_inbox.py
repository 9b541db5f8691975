"""The inbox hub: examples by invariant, then random deliveries against a model of the timelines."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from access.core.inbox import InboxHub, Routing

NOTHING = Routing((), ())


def written(*sessions: str) -> Routing:
    return Routing(sessions, ())


def fetching(*sessions: str) -> Routing:
    return Routing((), sessions)


@pytest.fixture
def hub() -> InboxHub:
    """A hub with session `s` of user `u`, written to up to offset 5."""
    hub = InboxHub()
    hub.attach("s", "u")
    assert not hub.loaded("s", 5)
    return hub


# ---------------------------------------------------------------- entries


def test_the_next_entry_is_written(hub: InboxHub):
    """I1."""
    assert hub.route("u", 6, has_data=True) == written("s")
    assert hub.route("u", 7, has_data=True) == written("s")
    assert hub.position("s") == 7


@pytest.mark.parametrize("has_data", [True, False])
def test_what_was_seen_is_dropped(hub: InboxHub, *, has_data: bool):
    """I1: a repeat, or an entry that a fetch brought before."""
    assert hub.route("u", 5, has_data=has_data) == NOTHING
    assert hub.route("u", 1, has_data=has_data) == NOTHING
    assert hub.position("s") == 5


def test_a_gap_is_fetched_once(hub: InboxHub):
    """I2: entries that come meanwhile are not written, since the fetch brings them."""
    assert hub.route("u", 7, has_data=True) == fetching("s")
    assert hub.route("u", 8, has_data=True) == NOTHING
    assert hub.route("u", 6, has_data=True) == NOTHING
    assert hub.position("s") == 5


def test_an_entry_without_data_is_fetched_though_it_is_the_next(hub: InboxHub):
    """It was too large to push, or only its offset was known."""
    assert hub.route("u", 6, has_data=False) == fetching("s")


def test_the_sessions_of_a_user_go_their_own_ways(hub: InboxHub):
    """One device is up to date, one is behind, one is loading."""
    hub.attach("t", "u")
    hub.loaded("t", 3)
    hub.attach("v", "u")
    assert hub.route("u", 6, has_data=True) == Routing(("s",), ("t",))


def test_an_entry_of_a_user_without_sessions_goes_nowhere(hub: InboxHub):
    """Its status was out of date."""
    assert hub.route("v", 1, has_data=True) == NOTHING


# ---------------------------------------------------------------- loading


def test_nothing_is_written_before_the_start_was_read():
    """I1: the start decides what comes next."""
    hub = InboxHub()
    hub.attach("s", "u")
    assert hub.route("u", 1, has_data=True) == NOTHING
    assert hub.position("s") == 0


def test_an_entry_that_came_by_while_loading_makes_it_load_again(hub: InboxHub):
    """I2: the reading may have been too early to see it."""
    hub.route("u", 7, has_data=True)
    hub.route("u", 9, has_data=True)
    assert hub.loaded("s", 8)
    assert hub.statistics() == {"sessions": 1, "users": 1, "loading": 1}
    assert not hub.loaded("s", 9)
    assert hub.route("u", 10, has_data=True) == written("s")


def test_a_start_that_is_behind_the_session_does_not_set_it_back(hub: InboxHub):
    """I1: a client read its own start again."""
    hub.route("u", 6, has_data=True)
    assert not hub.loaded("s", 2)
    assert hub.position("s") == 6


def test_after_a_failed_fetch_the_next_entry_fetches_again(hub: InboxHub):
    """I2."""
    hub.route("u", 8, has_data=True)
    hub.load_failed("s")
    assert hub.route("u", 9, has_data=True) == fetching("s")


def test_after_a_failed_fetch_the_missing_entry_itself_may_still_come(hub: InboxHub):
    """It was late, not lost."""
    hub.route("u", 7, has_data=True)
    hub.load_failed("s")
    assert hub.route("u", 6, has_data=True) == written("s")
    assert hub.route("u", 7, has_data=True) == written("s")


# ---------------------------------------------------------------- audits


def test_an_audit_finds_a_lost_last_entry(hub: InboxHub):
    """No later entry would ever reveal it."""
    assert hub.audit({"u": 6}) == ("s",)
    assert hub.audit({"u": 6}) == ()


def test_an_audit_leaves_alone_who_is_up_to_date_loading_or_gone(hub: InboxHub):
    """Nor does a head that was read before the last entry came."""
    hub.attach("t", "u")
    assert hub.audit({"u": 5, "v": 3}) == ()
    assert hub.audit({"u": 4}) == ()


def test_what_an_audit_saw_of_a_loading_session_makes_it_load_again(hub: InboxHub):
    """I2: its reading began before that head."""
    hub.attach("t", "u")
    assert hub.audit({"u": 5}) == ()
    assert hub.loaded("t", 4)


# ---------------------------------------------------------------- sessions


def test_a_detached_session_gets_nothing_more(hub: InboxHub):
    """I3; what is still under way for it comes to nothing, twice as well."""
    hub.attach("t", "u")
    hub.detach("s")
    hub.detach("s")
    assert not hub.loaded("s", 9)
    hub.load_failed("s")
    assert hub.route("u", 6, has_data=True) == NOTHING
    assert (hub.position("s"), hub.user("s")) == (None, None)
    assert (hub.user("t"), hub.users(), hub.has_user("u")) == ("u", ("u",), True)
    hub.detach("t")
    assert (hub.users(), hub.has_user("u")) == ((), False)


def test_a_session_is_attached_once(hub: InboxHub):
    """Its id is a fresh one."""
    with pytest.raises(AssertionError):
        hub.attach("s", "u")


# ---------------------------------------------------------------- against the timelines


@dataclass
class Client:
    """What a session's client has: where it began, and each offset as it was written."""

    user: str
    began: int | None = None
    got: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """A page of the timeline that was read and has not been given to the session yet."""

    session: str
    reached: int


USERS = st.sampled_from(["u", "v"])
PAGE = 3


class HubAgainstTimelines(RuleBasedStateMachine):
    """The model of a timeline is its head: the entries are 1 to head. Pushes get lost, repeated, late and reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = InboxHub()
        self.heads = {"u": 0, "v": 0}
        self.clients: dict[str, Client] = {}
        self.pushed: list[tuple[str, int]] = []
        self.readings: list[Reading] = []
        self.names = 0

    def read(self, session: str) -> None:
        """Read the next page for a session; a first one reads where the timeline is."""
        client = self.clients[session]
        position = self.hub.position(session)
        assert position is not None
        head = self.heads[client.user]
        self.readings.append(Reading(session, head if client.began is None else min(head, position + PAGE)))

    def finish(self, reading: Reading) -> None:
        """Give a page to its session. What the session got otherwise in the meantime is not written again."""
        self.readings.remove(reading)
        client = self.clients.get(reading.session)
        if client is not None:
            self.give(reading.session, client, reading.reached)
        if self.hub.loaded(reading.session, reading.reached):
            self.read(reading.session)

    def give(self, session: str, client: Client, reached: int) -> None:
        if client.began is None:
            client.began = reached
        else:
            position = self.hub.position(session)
            assert position is not None
            client.got += range(position + 1, reached + 1)

    def take(self, offset: int, routing: Routing) -> None:
        for session in routing.write:
            self.clients[session].got.append(offset)
        for session in routing.fetch:
            self.read(session)

    @rule(user=USERS, count=st.integers(1, 4), arrive=st.sets(st.integers(0, 3)))
    def append(self, user: str, count: int, arrive: set[int]) -> None:
        """Entries are stored; some of their pushes arrive at once, the others never or later."""
        for number in range(count):
            self.heads[user] += 1
            self.pushed.append((user, self.heads[user]))
            if number in arrive:
                self.push(user, self.heads[user], has_data=True)

    def push(self, user: str, offset: int, *, has_data: bool) -> None:
        self.take(offset, self.hub.route(user, offset, has_data=has_data))

    @precondition(lambda self: self.pushed)
    @rule(data=st.data(), has_data=st.booleans())
    def push_late_or_again(self, data: st.DataObject, *, has_data: bool) -> None:
        self.push(*data.draw(st.sampled_from(self.pushed)), has_data=has_data)

    @rule(user=USERS)
    def connect(self, user: str) -> None:
        self.names += 1
        session = f"s{self.names}"
        self.clients[session] = Client(user)
        self.hub.attach(session, user)
        self.read(session)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.clients)))
        del self.clients[session]
        self.hub.detach(session)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def read_from_the_client(self, data: st.DataObject) -> None:
        """A client subscribes by itself: all up to the head comes in the reply."""
        session = data.draw(st.sampled_from(sorted(self.clients)))
        client = self.clients[session]
        self.give(session, client, self.heads[client.user])
        if self.hub.loaded(session, self.heads[client.user]):
            self.read(session)

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def finish_reading(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(self.readings)))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def fail_reading(self, data: st.DataObject) -> None:
        """A first one that fails ends its connect."""
        reading = data.draw(st.sampled_from(self.readings))
        self.readings.remove(reading)
        client = self.clients.get(reading.session)
        if client is not None and client.began is None:
            del self.clients[reading.session]
            self.hub.detach(reading.session)
        else:
            self.hub.load_failed(reading.session)

    @rule()
    def audit(self) -> None:
        """Nobody is behind when all that an audit began is done."""
        for session in self.hub.audit({user: self.heads[user] for user in self.hub.users()}):
            self.read(session)
        while self.readings:
            self.finish(self.readings[0])
        for session, client in self.clients.items():
            assert self.hub.position(session) == self.heads[client.user]
        assert self.hub.statistics()["loading"] == 0

    @invariant()
    def the_hub_is_sound(self) -> None:
        self.hub.check_invariants()
        assert set(self.hub.users()) == {client.user for client in self.clients.values()}

    @invariant()
    def every_client_got_each_offset_once_and_in_order(self) -> None:
        """I1."""
        for session, client in self.clients.items():
            began = client.began or 0
            assert client.got == list(range(began + 1, began + 1 + len(client.got)))
            assert self.hub.position(session) == began + len(client.got)

    @invariant()
    def who_is_loading_has_a_reading_under_way(self) -> None:
        """I2: else it would be loading forever."""
        assert self.hub.statistics()["loading"] <= len({reading.session for reading in self.readings})

    def teardown(self) -> None:
        self.audit()


TestHubAgainstTimelines = HubAgainstTimelines.TestCase
TestHubAgainstTimelines.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
