"""What a node holds: promises and copies by example, the bounds of all together against their definitions."""

from __future__ import annotations

from random import Random

import pytest

from access.core import holding as module
from access.core.holding import CROWDED_MS, DOUBTS_MAX, PROMISE_MS, QUIET_MS, Holding, Shelf
from access.core.stream import Draft, Entry, Stream
from access.peers import NO_BALLOT, Ballot
from base.clock import Instant, Timestamp

NOW = Instant(0)
WALL = Timestamp(0)
TTL_MS = 1_000


def ballot(number: int, node: str = "a") -> Ballot:
    return Ballot(number, node, 1)


def entry(offset: int, *, at: int = 0, size: int = 2) -> Entry:
    return Entry(offset, Timestamp(at), Draft(b"x" * size))


def held(*, count: int = 0) -> Holding:
    holding = Holding(NOW)
    holding.stream = Stream("e", offset=count, entries=[entry(offset) for offset in range(1, count + 1)])
    holding.install(ballot(3), "b")
    return holding


def shelf(*, bytes_max: int = 10_000, size: int = 5, many: int = 100) -> Shelf:
    return Shelf(keeps=lambda _channel: (size, TTL_MS), bytes_max=bytes_max, many=many)


def never(_channel: str, _holding: Holding) -> bool:
    return False


def test_promises_never_fall():
    """I1: the same one again is none."""
    holding = held()
    holding.promise(ballot(5))
    holding.promise(ballot(5))
    holding.promise(ballot(5, "b"))
    assert holding.since_term == [ballot(5), ballot(5, "b")]
    with pytest.raises(AssertionError):
        holding.promise(ballot(4))


def test_a_node_takes_back_what_it_promised_to_itself_in_vain():
    """Unless it promised more since; and it never uses the number again."""
    holding = held()
    holding.promise(ballot(5))
    holding.retract(ballot(5), ballot(3))
    assert (holding.promised, holding.since_term, holding.seen) == (ballot(3), [], 5)
    holding.promise(ballot(6))
    holding.promise(ballot(7, "b"))
    holding.retract(ballot(6), ballot(3))
    assert (holding.promised, holding.since_term) == (ballot(7, "b"), [ballot(6), ballot(7, "b")])
    empty = Holding(NOW)
    empty.promise(ballot(5))
    empty.retract(ballot(5), NO_BALLOT)
    assert empty.promised == NO_BALLOT


def test_a_promise_without_a_copy_leaves_no_doubt():
    """There is nothing that could be out of date."""
    holding = Holding(NOW)
    holding.promise(ballot(5))
    assert (holding.promised, holding.since_term, holding.copy(NO_BALLOT)) == (ballot(5), [], None)


def test_a_copy_tells_the_promises_made_since_its_term():
    """But not the one that it is given for."""
    holding = held(count=2)
    holding.promise(ballot(5))
    holding.promise(ballot(7))
    copy = holding.copy(ballot(7))
    assert copy is not None
    assert (copy.epoch, copy.term, copy.backup, copy.promised) == ("e", ballot(3), "b", [ballot(5)])
    assert (copy.offset, copy.entries) == (2, [entry(1), entry(2)])


def test_a_term_ends_all_doubts():
    """The copy is the newest there is."""
    holding = held()
    holding.promise(ballot(5))
    holding.is_doubtful = True
    holding.install(ballot(6), "c")
    copy = holding.copy(NO_BALLOT)
    assert copy is not None
    assert (copy.term, copy.backup, copy.promised) == (ballot(6), "c", [])


def test_too_many_promises_are_a_doubt_that_nobody_can_clear():
    """Nobody's ballot stands for those that are not remembered."""
    holding = held()
    for number in range(10, 10 + DOUBTS_MAX + 1):
        holding.promise(ballot(number))
    copy = holding.copy(NO_BALLOT)
    assert copy is not None
    assert len(copy.promised) == DOUBTS_MAX + 1
    assert NO_BALLOT in copy.promised


def test_who_steps_down_keeps_the_tail_in_its_copy():
    """It may survive, since nobody knows what became of it."""
    holding = held(count=2)
    holding.is_owner = holding.is_in_flight = True
    holding.tail = [entry(3), entry(4)]
    assert holding.head() == 4
    copy = holding.copy(NO_BALLOT)
    assert copy is not None
    assert [one.offset for one in copy.entries] == [1, 2, 3, 4]
    holding.step_down()
    assert (holding.is_owner, holding.is_in_flight, holding.tail, holding.head()) == (False, False, [], 4)
    assert holding.copy(NO_BALLOT) == copy


# ---------------------------------------------------------------- the shelf


def publish(some: Shelf, channel: str, *, at: int = 0, size: int = 2) -> None:
    holding = some.hold(channel, Instant(at))
    if holding.stream is None:
        some.put(channel, holding, Stream("e"))
    assert holding.stream is not None
    holding.stream.append(entry(holding.stream.offset + 1, at=at, size=size))
    some.trim(channel, holding, Timestamp(at))
    some.check_invariants()


def kept(some: Shelf) -> dict[str, int]:
    return {channel: len(holding.stream) for channel, holding in some.items() if holding.stream is not None}


def test_a_channel_is_held_once():
    """And remembers when it was used last."""
    some = shelf()
    assert some.get("c") is None
    holding = some.hold("c", NOW)
    assert some.hold("c", Instant(5)) is holding is some.get("c")
    assert (holding.touched, len(some), list(some)) == (5, 1, ["c"])


def test_a_channel_keeps_as_many_as_its_namespace_says():
    """And for as long."""
    some = shelf(size=3)
    for _ in range(5):
        publish(some, "c")
    assert kept(some) == {"c": 3}
    publish(some, "c", at=TTL_MS)
    assert kept(some) == {"c": 1}


def test_a_channel_may_keep_nothing():
    """Then it counts its publications, and no more."""
    some = shelf(size=0)
    publish(some, "c")
    assert (kept(some), some.bytes) == ({"c": 0}, 0)


def test_the_quietest_channels_lose_their_publications_first():
    """I4: and keep their positions."""
    some = shelf(bytes_max=1_000)
    for channel in "abcd":
        publish(some, channel, size=150)
    publish(some, "a", size=150)
    assert kept(some) == {"a": 2, "b": 0, "c": 1, "d": 1}
    b = some.get("b")
    assert b is not None
    assert b.stream is not None
    assert b.stream.offset == 1
    publish(some, "b", size=5_000)
    assert kept(some) == {"a": 0, "b": 1, "c": 0, "d": 0}


def test_a_stream_that_is_taken_away_costs_nothing():
    """A copy that was dropped."""
    some = shelf()
    publish(some, "c")
    holding = some.hold("c", NOW)
    some.put("c", holding, None)
    some.check_invariants()
    assert some.bytes == 0


def test_what_is_unused_for_long_is_forgotten():
    """Promises soon, positions late; what is kept, used or waited for is not."""
    some = shelf()
    some.hold("promise", NOW).promise(ballot(1))
    for channel in ("position", "used", "full"):
        publish(some, channel)
    tail = some.hold("tail", NOW)
    some.put("tail", tail, Stream("e"))
    tail.is_owner, tail.tail, tail.tail_bytes = True, [entry(1)], entry(1).size()
    assert some.sweep(Instant(PROMISE_MS - 1), Timestamp(TTL_MS - 1), never) == {}
    assert len(some.sweep(Instant(PROMISE_MS), Timestamp(TTL_MS - 1), never)) == 1
    assert sorted(some) == ["full", "position", "tail", "used"]
    publish(some, "full", at=QUIET_MS)
    forgotten = some.sweep(Instant(QUIET_MS), Timestamp(QUIET_MS), lambda channel, _: channel == "used")
    assert len(forgotten) == 1
    assert sorted(some) == ["full", "tail", "used"]
    some.check_invariants()


def test_a_sweep_drops_what_is_too_old_of_quiet_channels():
    """Nobody publishes there, so nobody else looks."""
    some = shelf()
    publish(some, "c")
    some.sweep(NOW, Timestamp(TTL_MS), never)
    assert kept(some) == {"c": 0}
    some.check_invariants()


def test_sweeps_look_at_everything_by_and_by(monkeypatch: pytest.MonkeyPatch):
    """A bounded number at a time; what went away in between does not matter."""
    monkeypatch.setattr(module, "SWEEP", 3)
    some = shelf()
    for number in range(10):
        some.hold(f"c{number}", NOW)
    seen: list[str] = []

    def look(channel: str, _holding: Holding) -> bool:
        seen.append(channel)
        return channel != "c1"

    for _ in range(4):
        some.sweep(Instant(PROMISE_MS), WALL, look)
    assert sorted(seen) == [f"c{number}" for number in range(10)]
    some.sweep(Instant(PROMISE_MS), WALL, never)
    some._unswept.append("c1")
    some.sweep(Instant(PROMISE_MS), WALL, never)
    assert len(some) < 9


def test_promises_are_forgotten_sooner_where_there_are_too_many_channels():
    """Copies are not: they are as many as other nodes own."""
    some = shelf(many=2)
    for number in range(3):
        some.hold(f"promise{number}", NOW).promise(ballot(1))
    publish(some, "copy")
    assert some.sweep(Instant(CROWDED_MS - 1), WALL, never) == {}
    assert sorted(some.sweep(Instant(CROWDED_MS), Timestamp(TTL_MS), never)) == ["promise0", "promise1", "promise2"]
    some.hold("promise", NOW).promise(ballot(1))
    assert some.sweep(Instant(CROWDED_MS), Timestamp(TTL_MS), never) == {}
    assert sorted(some) == ["copy", "promise"]


def test_a_sweep_looks_at_more_where_there_are_more(monkeypatch: pytest.MonkeyPatch):
    """So that what comes and goes fast does not pile up."""
    monkeypatch.setattr(module, "SWEEP", 1)
    monkeypatch.setattr(module, "SWEEPS", 4)
    some = shelf()
    for number in range(100):
        some.hold(f"c{number}", NOW)
    left = [100]
    for _ in range(4):
        some.sweep(Instant(PROMISE_MS), WALL, never)
        left.append(len(some))
    assert left == [100, 75, 57, 43, 33], "a quarter each"


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_hold_whatever_happens(seed: int):
    """I3 and I4, over random publications, drops and times."""
    random, some, now = Random(seed), shelf(bytes_max=3_000), 0
    for _ in range(300):
        now += random.choice((0, 1, 50))
        channel = random.choice("abcdefgh")
        if random.random() < 0.9:
            publish(some, channel, at=now, size=random.choice((2, 200, 900)))
            assert some.bytes <= 3_000 or list(filter(None, kept(some).values())) == [kept(some)[channel]]
        else:
            some.put(channel, some.hold(channel, Instant(now)), None)
        some.sweep(Instant(now), Timestamp(now), never)
        some.check_invariants()


def owned(some: Shelf, channel: str, *, count: int) -> None:
    some.hold(channel, NOW).is_owner = True
    some.put(channel, some.hold(channel, NOW), Stream("e"))
    for _ in range(count):
        publish(some, channel)


def test_owned_channels_that_keep_nothing_are_known():
    """I5: those in which nothing was ever published first, of each kind the longest unused first."""
    some = shelf()
    for channel, count in (("older", 1), ("old", 1), ("x", 0), ("y", 0)):
        owned(some, channel, count=count)
    publish(some, "copy")
    assert some.unused(9) == ["x", "y"]
    some.sweep(NOW, Timestamp(TTL_MS), never)
    assert some.unused(9) == ["x", "y", "older", "old"]
    assert some.unused(1) == ["x", "older"]
    some.used("older")
    some.used("x")
    some.used("copy")
    assert some.unused(9) == ["y", "x", "old", "older"]
    publish(some, "old")
    some.pop("y")
    holding = some.hold("x", NOW)
    holding.tail = [entry(1)]
    some.sort("x", holding)
    assert some.unused(9) == ["older"]
    some.put("older", some.hold("older", NOW), Stream("e", offset=1, entries=[entry(1)]))
    assert some.unused(9) == []


def test_a_channel_that_lost_its_publications_to_others_keeps_nothing():
    """By the bound of all together."""
    some = shelf(bytes_max=1)
    owned(some, "quiet", count=1)
    owned(some, "loud", count=1)
    assert some.unused(9) == ["quiet"]
    some.check_invariants()
