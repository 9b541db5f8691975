"""The ping rounds: examples by invariant, then random comings and goings against a list of who was pinged when."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from access.core.pings import LATE_TICKS, PingRounds
from base.clock import Instant

TICK = 10
INTERVAL = 100
DEADLINE = 40
PLACES = INTERVAL // TICK


def rounds(
    *, now: int = 0, interval_ms: int = INTERVAL, deadline_ms: int = DEADLINE, members: int = 0
) -> PingRounds[str]:
    """Ping rounds with members `0`, `1`, ..., which joined in that order."""
    made: PingRounds[str] = PingRounds(Instant(now), interval_ms=interval_ms, deadline_ms=deadline_ms, tick_ms=TICK)
    for number in range(members):
        made.join(str(number))
    made.check_invariants()
    return made


def at(ms: int) -> Instant:
    return Instant(ms)


def run(pings: PingRounds[str], start: int, end: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Advance tick by tick over (start, end]; return when each member was pinged, and when it was looked at."""
    pinged: dict[str, list[int]] = {}
    looked: dict[str, list[int]] = {}
    for now in range(start + TICK, end + 1, TICK):
        ping, look = pings.advance(at(now))
        pings.check_invariants()
        for member in ping:
            pinged.setdefault(member, []).append(now)
        for member in look:
            looked.setdefault(member, []).append(now)
    return pinged, looked


# ---------------------------------------------------------------- on time


@pytest.mark.parametrize("start", [0, 1_234_560])
def test_everybody_is_pinged_once_a_round_and_looked_at_after_the_deadline(start: int):
    """I1 and I2, from whatever instant the clock starts."""
    pings = rounds(now=start, members=25)
    pinged, looked = run(pings, start, start + 3 * INTERVAL)
    assert len(pinged) == 25
    for member, times in pinged.items():
        assert len(times) == 3
        assert {later - earlier for earlier, later in itertools.pairwise(times)} == {INTERVAL}
        assert looked[member] == [time + DEADLINE for time in times if time + DEADLINE <= start + 3 * INTERVAL]


@pytest.mark.parametrize(("interval_ms", "places"), [(100, 10), (101, 11), (109, 11), (110, 11), (10, 1)])
def test_an_interval_is_rounded_up_to_ticks(interval_ms: int, places: int):
    """Nobody is pinged more often than asked for."""
    pings = rounds(interval_ms=interval_ms, deadline_ms=TICK, members=1)
    pinged, _ = run(pings, 0, 20 * places * TICK)
    assert len(pinged["0"]) == 20
    assert pinged["0"][1] - pinged["0"][0] == places * TICK


def test_a_deadline_as_long_as_the_interval_is_over_when_the_next_ping_is_due():
    """The look comes before that ping, in the same call."""
    pings = rounds(deadline_ms=INTERVAL, members=1)
    pinged, looked = run(pings, 0, 5 * INTERVAL)
    assert looked["0"] == pinged["0"][1:]


@pytest.mark.parametrize(
    ("interval_ms", "deadline_ms", "tick_ms"), [(100, 101, 10), (100, 9, 10), (100, 50, 0), (5, 5, 10)]
)
def test_times_that_make_no_sense_are_refused(interval_ms: int, deadline_ms: int, tick_ms: int):
    """0 < tick <= deadline <= interval."""
    with pytest.raises(AssertionError):
        PingRounds(at(0), interval_ms=interval_ms, deadline_ms=deadline_ms, tick_ms=tick_ms)


def test_time_that_does_not_move_or_moves_back_does_nothing():
    """And nothing is pinged twice when it goes on."""
    pings = rounds(members=PLACES)
    first, _ = pings.advance(at(50))
    assert pings.advance(at(50)) == ([], [])
    assert pings.advance(at(30)) == ([], [])
    second, _ = pings.advance(at(100))
    assert sorted(first + second) == sorted(map(str, range(PLACES)))


# ---------------------------------------------------------------- evenly


def test_those_who_join_at_once_are_spread_over_the_round():
    """I3: after a storm of reconnects no tick has more than one above any other, at any moment."""
    pings = rounds()
    places: Counter[int] = Counter()
    for number in range(1, 5 * PLACES + 1):
        places[pings.join(str(number))] += 1
        assert max(places.values()) == -(-number // PLACES)
        assert len(pings) == number


def test_whoever_joins_fills_what_others_left():
    """I3, also when there are many places and one of them is emptier than the rest."""
    pings = rounds()
    places = {str(number): pings.join(str(number)) for number in range(3 * PLACES)}
    for member in [member for member, place in places.items() if place == 7]:
        pings.leave(member, 7)
        pings.check_invariants()
    assert [pings.join(f"new {number}") for number in range(3)] == [7, 7, 7]
    assert sorted(pings.join(f"newer {number}") for number in range(PLACES)) == list(range(PLACES))


# ---------------------------------------------------------------- comings and goings


def test_whoever_left_is_neither_pinged_nor_looked_at():
    """Between its ping and the look, too; its place in the round is another's now."""
    pings = rounds()
    place = pings.join("a")
    pings.join("b")
    ping, _ = pings.advance(at(INTERVAL))
    assert sorted(ping) == ["a", "b"]
    pings.leave("a", place)
    assert pings.members() == ["b"]
    pinged, looked = run(pings, INTERVAL, 3 * INTERVAL)
    assert pinged.keys() == looked.keys() == {"b"}


def test_whoever_joined_since_the_ping_is_looked_at_all_the_same():
    """I2: it was not asked anything, and knows that itself."""
    pings: PingRounds[str] = PingRounds(at(0), interval_ms=TICK, deadline_ms=TICK, tick_ms=TICK)
    pings.join("a")
    assert pings.advance(at(10)) == (["a"], [])
    pings.join("b")
    assert pings.advance(at(20)) == (["a", "b"], ["a", "b"])


# ---------------------------------------------------------------- late


@pytest.mark.parametrize("stall", [5, 50, 99, 100, 101, 1_000, 12_345])
def test_after_a_stall_everybody_who_was_missed_is_pinged_once(stall: int):
    """I1: no more than one round is made up for."""
    pings = rounds(members=3 * PLACES)
    run(pings, 0, 200)
    ping, _ = pings.advance(at(200 + stall))
    assert len(ping) == len(set(ping)) == 3 * min(stall // TICK, PLACES)
    pinged, _ = run(pings, 200 + stall - stall % TICK, 1_000 + stall - stall % TICK)
    assert {len(times) for times in pinged.values()} == {8}, "and then as ever"


def test_nobody_is_looked_at_by_the_call_that_ends_a_stall():
    """The answers wait in the sockets' buffers until it returns; the next call looks, at those who were due before."""
    pings = rounds(members=PLACES)
    first, _ = pings.advance(at(10))
    second, look = pings.advance(at(75))
    assert (len(first), len(second), look) == (1, 6, [])
    assert pings.advance(at(80)) == (["8"], first)


def test_after_a_stall_over_a_round_everybody_is_looked_at_once_more():
    """Those whom the round comes to first are pinged twice before, and looked at after the second ping only."""
    pings = rounds(members=PLACES)
    run(pings, 0, 100)
    ping, look = pings.advance(at(500))
    assert (len(ping), look) == (PLACES, [])
    pinged, looked = run(pings, 500, 570)
    early = [member for member, times in pinged.items() if times[0] < 500 + DEADLINE]
    assert len(early) == DEADLINE // TICK - 1
    assert looked == {
        member: [pinged[member][0] + DEADLINE if member in early else 500 + DEADLINE] for member in map(str, range(10))
    }


def test_a_call_that_is_a_little_late_looks():
    """A tick or two happen all the time."""
    pings = rounds(members=PLACES)
    first, _ = pings.advance(at(10))
    assert len(first) == 1
    for now in range(20, 51 - LATE_TICKS * TICK, TICK):
        assert pings.advance(at(now))[1] == []
    _, look = pings.advance(at(50))
    assert look == first


def test_calls_that_are_late_all_the_time_look_all_the_same():
    """An overloaded node must not keep the dead for ever."""
    pings = rounds(deadline_ms=INTERVAL, members=PLACES)
    looked: Counter[str] = Counter()
    for now in range(35, 35 * 30, 35):
        looked.update(pings.advance(at(now))[1])
    assert len(looked) == PLACES


@pytest.mark.parametrize("deadline_ms", [60, 90, 100])
def test_whoever_is_pinged_again_before_the_look_has_the_whole_deadline_from_there(deadline_ms: int):
    """I2: a ping that came late is followed by one that comes on time."""
    pings = rounds(deadline_ms=deadline_ms, members=PLACES)
    ping, _ = pings.advance(at(95))
    last = dict.fromkeys(ping, 95)
    for now in range(100, 600, TICK):
        ping, look = pings.advance(at(now))
        for member in look:
            assert now - last[member] >= deadline_ms
        last |= dict.fromkeys(ping, now)


# ---------------------------------------------------------------- random histories


@dataclass(eq=False)
class Client:
    """A member, and what happened to it. `since`: the round in which it has been all the time begins after this."""

    since: int
    place: int = -1
    pinged: list[int] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)


class PingRoundsAgainstLists(RuleBasedStateMachine):
    """Every member keeps when it was pinged and looked at; the invariants are read off that."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.begin(1)

    @initialize(deadline_ticks=st.integers(1, PLACES))
    def begin(self, deadline_ticks: int) -> None:
        self.deadline = deadline_ticks * TICK
        self.pings: PingRounds[Client] = PingRounds(
            self.now, interval_ms=INTERVAL, deadline_ms=self.deadline, tick_ms=TICK
        )
        self.clients: list[Client] = []

    @rule(count=st.integers(1, 15))
    def join(self, count: int) -> None:
        for _ in range(count):
            client = Client(self.now)
            sizes = Counter(other.place for other in self.clients)
            client.place = self.pings.join(client)
            assert sizes[client.place] == min(sizes[place] for place in range(PLACES)), "I3"
            self.clients.append(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), count=st.integers(1, 8))
    def leave(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.clients))):
            client = self.clients.pop(data.draw(st.integers(0, len(self.clients) - 1)))
            self.pings.leave(client, client.place)

    def advance(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        ping, look = self.pings.advance(self.now)
        assert len(ping) == len(set(ping)), "I1: once"
        assert len(look) == len(set(look))
        assert set(ping) | set(look) <= set(self.clients), "I2: nobody who left"
        for client in look:
            if client.pinged:
                assert self.now - client.pinged[-1] >= self.deadline, "I2"
            client.looked.append(self.now)
        for client in ping:
            client.pinged.append(self.now)

    @rule(ms=st.sampled_from([1, 7, TICK, 2 * TICK, 35, 100, 333]))
    def pass_time_at_once(self, ms: int) -> None:
        self.advance(ms)

    @rule(ticks=st.integers(1, 2 * PLACES), jitter=st.integers(0, 9))
    def pass_time(self, ticks: int, jitter: int) -> None:
        """As the owner does it: a little late, never more than two ticks."""
        before = {client: len(client.pinged) for client in self.clients}
        for number in range(ticks):
            self.advance(TICK + (jitter if number % 2 else -jitter))
        for client, count in before.items():
            assert (ticks - 1) // PLACES <= len(client.pinged) - count <= -(-(ticks + 1) // PLACES), "I1"

    @rule()
    def pass_two_rounds(self) -> None:
        """Everybody who was pinged when they began was looked at when they are over."""
        began = self.now
        for _ in range(2 * PLACES + 2):
            self.advance(TICK)
        for client in self.clients:
            assert any(time > began for time in client.pinged), "I1"
            assert any(time > began for time in client.looked), "I2"

    @invariant()
    def the_rounds_are_sound(self) -> None:
        self.pings.check_invariants()
        assert len(self.pings) == len(self.clients)
        assert set(self.pings.members()) == set(self.clients)


TestPingRoundsAgainstLists = PingRoundsAgainstLists.TestCase
TestPingRoundsAgainstLists.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
