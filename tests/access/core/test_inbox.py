"""The inbox hub: examples by invariant, then random deliveries against a model of the timelines."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from access.core.inbox import InboxHub, Reader, Routing

Hub = InboxHub[str]
NOTHING: Routing[str] = Routing([], [])


def written(*clients: str) -> Routing[str]:
    return Routing([*clients], [])


def fetching(*readers: Reader[str]) -> Routing[str]:
    return Routing([], [*readers])


@pytest.fixture
def hub() -> Hub:
    return InboxHub()


@pytest.fixture
def s(hub: Hub) -> Reader[str]:
    """The reader of client `s` of user `u`, written to up to offset 5."""
    reader = hub.attach("s", "u")
    assert not hub.loaded(reader, 5)
    return reader


# ---------------------------------------------------------------- entries


def test_the_next_entry_is_written(hub: Hub, s: Reader[str]):
    """I1."""
    assert hub.route("u", 6, has_data=True) == written("s")
    assert hub.route("u", 7, has_data=True) == written("s")
    assert s.position == 7


@pytest.mark.parametrize("has_data", [True, False])
def test_what_was_seen_is_dropped(hub: Hub, s: Reader[str], *, has_data: bool):
    """I1: a repeat, or an entry that a fetch brought before."""
    assert hub.route("u", 5, has_data=has_data) == NOTHING
    assert hub.route("u", 1, has_data=has_data) == NOTHING
    assert s.position == 5


def test_a_gap_is_fetched_once(hub: Hub, s: Reader[str]):
    """I2: entries that come meanwhile are not written, since the fetch brings them."""
    assert hub.route("u", 7, has_data=True) == fetching(s)
    assert hub.route("u", 8, has_data=True) == NOTHING
    assert hub.route("u", 6, has_data=True) == NOTHING
    assert s.position == 5


def test_an_entry_without_data_is_fetched_though_it_is_the_next(hub: Hub, s: Reader[str]):
    """It was too large to push, or only its offset was known."""
    assert hub.route("u", 6, has_data=False) == fetching(s)


def test_the_clients_of_a_user_go_their_own_ways(hub: Hub, s: Reader[str]):
    """One device is up to date, one is behind, one is loading."""
    t = hub.attach("t", "u")
    hub.loaded(t, 3)
    hub.attach("v", "u")
    assert hub.route("u", 6, has_data=True) == Routing(["s"], [t])
    assert s.position == 6


def test_an_entry_of_a_user_without_clients_goes_nowhere(hub: Hub, s: Reader[str]):
    """Its status was out of date."""
    assert hub.route("v", 6, has_data=True) == NOTHING
    assert s.position == 5


# ---------------------------------------------------------------- what is certain


def test_an_answer_proves_what_was_written_before_its_ping(hub: Hub, s: Reader[str]):
    """I4: not what was written after it, and nothing while it is missing."""
    s.stands(5)
    assert s.unproven(has_answered=True) is None
    hub.route("u", 6, has_data=True)
    assert s.unproven(has_answered=True) == 5
    s.pinged(has_answered=True)
    hub.route("u", 7, has_data=True)
    assert s.unproven(has_answered=False) == 5
    assert s.unproven(has_answered=True) == 6
    s.pinged(has_answered=False)
    assert s.unproven(has_answered=False) == 5
    s.pinged(has_answered=True)
    s.pinged(has_answered=True)
    assert s.unproven(has_answered=False) is None
    hub.check_invariants()


def test_what_was_heard_of_and_not_written_is_not_proven(hub: Hub, s: Reader[str]):
    """It is being fetched."""
    s.stands(5)
    hub.route("u", 9, has_data=True)
    assert s.unproven(has_answered=True) == 5


def test_a_sync_version_is_told_once_to_each(hub: Hub, s: Reader[str]):
    """Who is being given something else is told the next time."""
    new = hub.attach("new", "u")
    assert hub.tell("u", 7) == ["s"]
    hub.loaded(new, 5)
    assert hub.tell("u", 7) == ["new"]
    assert hub.tell("u", 7) == []
    assert hub.tell("u", 8) == ["s", "new"]
    assert hub.tell("nobody", 1) == []
    assert s.version == 8


def test_something_of_the_moment_is_for_those_who_are_being_given_nothing_else(hub: Hub, s: Reader[str]):
    """It would come before their start, or amid what they miss."""
    new = hub.attach("new", "u")
    assert hub.ready("u") == ["s"]
    hub.loaded(new, 5)
    hub.restart(s)
    assert hub.ready("u") == ["new"]
    hub.restarted(s, None)
    assert hub.ready("u") == ["s", "new"]
    assert hub.ready("nobody") == []


# ---------------------------------------------------------------- loading


def test_nothing_is_written_before_the_start_was_read(hub: Hub):
    """I1: the start decides what comes next."""
    reader = hub.attach("s", "u")
    assert hub.route("u", 1, has_data=True) == NOTHING
    assert reader.position == 0


def test_an_entry_that_came_by_while_loading_makes_it_load_again(hub: Hub, s: Reader[str]):
    """I2: the reading may have been too early to see it."""
    hub.route("u", 7, has_data=True)
    hub.route("u", 9, has_data=True)
    assert hub.loaded(s, 8)
    assert hub.statistics() == {"clients": 1, "users": 1, "loading": 1}
    assert not hub.loaded(s, 9)
    assert hub.statistics() == {"clients": 1, "users": 1, "loading": 0}
    assert hub.route("u", 10, has_data=True) == written("s")


def test_a_start_that_is_behind_the_client_does_not_set_it_back(hub: Hub, s: Reader[str]):
    """I1: a client read its own start again."""
    hub.route("u", 6, has_data=True)
    assert not hub.loaded(s, 2)
    assert s.position == 6


def test_after_a_failed_fetch_the_next_entry_fetches_again(hub: Hub, s: Reader[str]):
    """I2."""
    hub.route("u", 8, has_data=True)
    hub.load_failed(s)
    assert hub.route("u", 9, has_data=True) == fetching(s)


def test_after_a_failed_fetch_the_missing_entry_itself_may_still_come(hub: Hub, s: Reader[str]):
    """It was late, not lost."""
    hub.route("u", 7, has_data=True)
    hub.load_failed(s)
    assert hub.route("u", 6, has_data=True) == written("s")
    assert hub.route("u", 7, has_data=True) == written("s")


# ---------------------------------------------------------------- starts that are read anew


def test_nothing_is_written_while_a_start_is_read_anew(hub: Hub, s: Reader[str]):
    """I1: the reply would be overtaken."""
    hub.restart(s)
    assert hub.statistics() == {"clients": 1, "users": 1, "loading": 1}
    assert hub.route("u", 6, has_data=True) == NOTHING
    assert hub.audit({"u": 7}) == []
    assert hub.restarted(s, 6), "of the seventh it has only heard"
    assert not hub.loaded(s, 7)
    assert hub.route("u", 8, has_data=True) == written("s")


def test_a_start_read_anew_that_has_all_goes_on_from_there(hub: Hub, s: Reader[str]):
    """Also where a fetch is under way, which brings nothing that the client does not have."""
    hub.route("u", 7, has_data=True)
    hub.restart(s)
    assert not hub.restarted(s, 7)
    assert hub.route("u", 8, has_data=True) == written("s")
    assert not hub.loaded(s, 7)
    assert s.position == 8


def test_of_several_starts_the_last_one_lets_entries_through(hub: Hub, s: Reader[str]):
    """In whatever order they come to an end."""
    hub.restart(s)
    hub.restart(s)
    assert not hub.restarted(s, 6)
    assert hub.route("u", 7, has_data=True) == NOTHING
    assert hub.restarted(s, None)
    assert s.is_loading


def test_a_start_that_came_to_nothing_leaves_the_reader_as_it_was(hub: Hub, s: Reader[str]):
    """Up to date, loading, or gone."""
    hub.restart(s)
    assert not hub.restarted(s, None)
    assert hub.route("u", 6, has_data=True) == written("s")
    never = hub.attach("t", "u")
    hub.restart(never)
    hub.route("u", 7, has_data=True)
    assert not hub.restarted(never, None)
    assert never.is_loading
    hub.restart(s)
    hub.route("u", 8, has_data=True)
    hub.detach(s)
    assert not hub.restarted(s, None)
    hub.check_invariants()


# ---------------------------------------------------------------- audits


def test_an_audit_finds_a_lost_last_entry(hub: Hub, s: Reader[str]):
    """No later entry would ever reveal it."""
    assert hub.audit({"u": 6}) == [s]
    assert hub.audit({"u": 6}) == []


@pytest.mark.usefixtures("s")
def test_an_audit_leaves_alone_who_is_up_to_date_loading_or_gone(hub: Hub):
    """Nor does a head that was read before the last entry came."""
    hub.attach("t", "u")
    assert hub.audit({"u": 5, "v": 3}) == []
    assert hub.audit({"u": 4}) == []


@pytest.mark.usefixtures("s")
def test_what_an_audit_saw_of_a_loading_client_makes_it_load_again(hub: Hub):
    """I2: its reading began before that head."""
    t = hub.attach("t", "u")
    assert hub.audit({"u": 5}) == []
    assert hub.loaded(t, 4)


# ---------------------------------------------------------------- readers


def test_a_detached_reader_gets_nothing_more(hub: Hub, s: Reader[str]):
    """I3; what is still under way for it comes to nothing, twice as well, and the others notice nothing."""
    others = [hub.attach(name, "u") for name in ("t", "v", "w")]
    for reader in others:
        hub.loaded(reader, 5)
    for _ in range(2):
        hub.detach(s)
        hub.check_invariants()
    assert not hub.has(s)
    s.newest_heard = 99
    assert not hub.loaded(s, 9), "nobody fetches for it any more"
    hub.load_failed(s)
    assert hub.route("u", 6, has_data=True) == written("t", "v", "w")
    for left, reader in zip((2, 1, 0), others, strict=True):
        assert hub.has(reader)
        hub.detach(reader)
        hub.detach(s)
        hub.check_invariants()
        assert len(hub.clients_of("u")) == left
        assert hub.has_user("u") is (left > 0)
    assert hub.users() == ()


def test_a_reader_that_is_gone_takes_nobody_else_along(hub: Hub, s: Reader[str]):
    """Its user may have come back by then, on another connection."""
    hub.detach(s)
    back = hub.attach("s", "u")
    hub.detach(s)
    assert hub.has(back)
    assert hub.clients_of("u") == ["s"]


def test_everybody_can_be_named(hub: Hub, s: Reader[str]):
    """By user, and all together."""
    for client, user in (("t", "u"), ("v", "w")):
        hub.attach(client, user)
    assert hub.has(s)
    assert sorted(hub.clients()) == ["s", "t", "v"]
    assert (hub.clients_of("u"), hub.clients_of("w"), hub.clients_of("x")) == (["s", "t"], ["v"], [])
    assert (hub.users(), hub.has_user("w"), hub.has_user("x")) == (("u", "w"), True, False)


# ---------------------------------------------------------------- against the timelines


@dataclass(eq=False)
class Client:
    """What a client has: where it began, and each offset as it was written."""

    name: str
    began: int | None = None
    got: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """A page of the timeline that was read and has not been given to the client yet."""

    reader: Reader[Client]
    reached: int


USERS = st.sampled_from(["u", "v"])
PAGE = 3


class HubAgainstTimelines(RuleBasedStateMachine):
    """The model of a timeline is its head: the entries are 1 to head. Pushes get lost, repeated, late and reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.hub: InboxHub[Client] = InboxHub()
        self.heads = {"u": 0, "v": 0}
        self.readers: list[Reader[Client]] = []
        self.pushed: list[tuple[str, int]] = []
        self.readings: list[Reading] = []
        self.starts: list[Reading] = []
        self.names = 0

    def read(self, reader: Reader[Client]) -> None:
        """Read the next page for a client; a first one reads where the timeline is."""
        head = self.heads[reader.user]
        is_first = reader.client.began is None
        self.readings.append(Reading(reader, head if is_first else min(head, reader.position + PAGE)))

    def finish(self, reading: Reading) -> None:
        """Give a page to its client. What that got otherwise in the meantime is not written again."""
        self.readings.remove(reading)
        reader = reading.reader
        if reader.starts:
            self.hub.load_failed(reader)
            return
        if reader in self.readers:
            self.give(reader, reading.reached)
        if self.hub.loaded(reader, reading.reached):
            self.read(reader)

    def give(self, reader: Reader[Client], reached: int) -> None:
        if reader.client.began is None:
            reader.client.began = reached
        else:
            reader.client.got += range(reader.position + 1, reached + 1)

    def push(self, user: str, offset: int, *, has_data: bool) -> None:
        routing = self.hub.route(user, offset, has_data=has_data)
        for client in routing.write:
            client.got.append(offset)
        for reader in routing.fetch:
            self.read(reader)

    @rule(user=USERS, count=st.integers(1, 4), arrive=st.sets(st.integers(0, 3)))
    def append(self, user: str, count: int, arrive: set[int]) -> None:
        """Entries are stored; some of their pushes arrive at once, the others never or later."""
        for number in range(count):
            self.heads[user] += 1
            self.pushed.append((user, self.heads[user]))
            if number in arrive:
                self.push(user, self.heads[user], has_data=True)

    @precondition(lambda self: self.pushed)
    @rule(data=st.data(), has_data=st.booleans())
    def push_late_or_again(self, data: st.DataObject, *, has_data: bool) -> None:
        self.push(*data.draw(st.sampled_from(self.pushed)), has_data=has_data)

    @rule(user=USERS)
    def connect(self, user: str) -> None:
        self.names += 1
        client = Client(f"s{self.names}")
        reader = self.hub.attach(client, user)
        self.readers.append(reader)
        self.read(reader)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.sampled_from(self.readers)))

    def drop(self, reader: Reader[Client]) -> None:
        self.readers.remove(reader)
        self.hub.detach(reader)

    @precondition(lambda self: any(reader.client.began is not None for reader in self.readers))
    @rule(data=st.data())
    def begin_a_start_anew(self, data: st.DataObject) -> None:
        """A client subscribes by itself: all up to the head of this instant comes in the reply."""
        begun = [reader for reader in self.readers if reader.client.began is not None]
        reader = data.draw(st.sampled_from(begun))
        self.hub.restart(reader)
        self.starts.append(Reading(reader, self.heads[reader.user]))

    @precondition(lambda self: self.starts)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_start_anew(self, data: st.DataObject, *, fails: bool) -> None:
        self.end_start(data.draw(st.sampled_from(self.starts)), fails=fails)

    def end_start(self, start: Reading, *, fails: bool) -> None:
        self.starts.remove(start)
        reader, reached = start.reader, start.reached
        if reader in self.readers and not fails:
            self.give(reader, reached)
        if self.hub.restarted(reader, None if fails else reached):
            self.read(reader)

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
        if reading.reader in self.readers and reading.reader.client.began is None:
            self.drop(reading.reader)
        else:
            self.hub.load_failed(reading.reader)

    @rule()
    def audit(self) -> None:
        """Nobody is behind when all that an audit began is done."""
        while self.starts:
            self.end_start(self.starts[0], fails=False)
        for reader in self.hub.audit({user: self.heads[user] for user in self.hub.users()}):
            self.read(reader)
        while self.readings:
            self.finish(self.readings[0])
        for reader in self.readers:
            assert reader.position == self.heads[reader.user]
        assert self.hub.statistics()["loading"] == 0

    @invariant()
    def the_hub_is_sound(self) -> None:
        self.hub.check_invariants()
        assert set(self.hub.users()) == {reader.user for reader in self.readers}
        for user in self.heads:
            clients = [reader.client for reader in self.readers if reader.user == user]
            assert self.hub.clients_of(user) == clients
            assert self.hub.has_user(user) is bool(clients)
        assert all(self.hub.has(reader) for reader in self.readers)

    @invariant()
    def every_client_got_each_offset_once_and_in_order(self) -> None:
        """I1."""
        for reader in self.readers:
            began = reader.client.began or 0
            got = reader.client.got
            assert got == list(range(began + 1, began + 1 + len(got)))
            assert reader.position == began + len(got)

    @invariant()
    def who_is_loading_has_a_reading_under_way(self) -> None:
        """I2: else it would be loading forever."""
        under_way = [reading.reader for reading in self.readings]
        assert all(reader in under_way for reader in self.readers if reader.is_loading)

    def teardown(self) -> None:
        self.audit()


TestHubAgainstTimelines = HubAgainstTimelines.TestCase
TestHubAgainstTimelines.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
