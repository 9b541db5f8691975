"""A channel at a node: examples by rule, then an owner over a channel that loses, doubles and mixes what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from access.core import feed as module
from access.core.feed import Feed, News, Start
from access.core.stream import Draft, Entry, Stream
from access.peers import Joined, Place
from base.clock import Timestamp


def entries(*offsets: int) -> list[Entry]:
    return [Entry(offset, Timestamp(0), Draft(b"%d" % offset)) for offset in offsets]


def joined(offset: int, *, epoch: str = "e", told: tuple[int, ...] = (), is_known: bool = True) -> Joined:
    return Joined(Place(epoch, offset), entries(*told), is_known)


def at(offset: int, *, epoch: str = "e") -> Feed:
    feed = Feed()
    assert feed.joined(joined(offset, epoch=epoch)) == News()
    return feed


def told(news: News) -> list[int]:
    return [entry.offset for entry in news.deliver]


def test_the_next_publication_is_delivered():
    """One at a time, or several."""
    feed = at(5)
    assert feed.received("e", entries(6)) == News(entries(6))
    assert feed.received("e", entries(7, 8)) == News(entries(7, 8))
    assert feed.place == Place("e", 8)


def test_what_was_seen_is_dropped():
    """It came twice, or late."""
    feed = at(5)
    assert feed.received("e", entries(5)) == News()
    assert feed.received("e", entries(4, 5, 6)) == News(entries(6))


def test_a_gap_makes_the_node_join_again():
    """What came before the gap is good."""
    feed = at(5)
    assert feed.received("e", entries(6, 8)) == News(entries(6), must_join=True)
    assert not feed.is_joined
    assert feed.received("e", entries(9)) == News()
    assert feed.joined(joined(8, told=(7, 8))) == News(entries(7, 8, 9))


def test_another_epoch_makes_the_node_join_again():
    """Whatever its offsets."""
    assert at(5).received("f", entries(6)) == News(must_join=True)
    assert at(5).received("f", entries(5)) == News(must_join=True)


def test_while_the_node_joins_publications_are_kept():
    """And follow what the join told; those of another epoch are nobody's."""
    feed = Feed()
    assert feed.received("e", entries(5, 6)) == News()
    assert feed.received("d", entries(9)) == News()
    assert feed.joined(joined(5)) == News(entries(6))
    assert feed.place == Place("e", 6)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """I3: beyond, there is a gap, and the node joins once more."""
    monkeypatch.setattr(module, "HELD_MAX", 2)
    feed = at(5)
    feed.lost()
    for offset in (6, 7, 8):
        feed.received("e", entries(offset))
    assert feed.joined(joined(5)) == News(entries(6, 7))
    assert feed.received("e", entries(9)) == News(must_join=True)


def test_a_position_that_the_owner_does_not_know_is_lost():
    """Too old, of another epoch, or ahead of the owner."""
    for start in (joined(400, is_known=False), joined(5, epoch="f"), joined(4)):
        feed = at(5)
        feed.lost()
        assert feed.joined(start) == News(is_reset=True)
        assert (feed.place, feed.is_joined) == (start.place, True)


def test_after_a_reset_what_was_kept_is_delivered_to_who_stays():
    """And a gap in it makes the node join once more."""
    feed = at(5)
    feed.lost()
    feed.received("f", entries(3, 5))
    assert feed.joined(joined(2, epoch="f")) == News(entries(3), must_join=True, is_reset=True)


def test_without_a_history_everything_is_delivered_as_it_comes():
    """There are no positions."""
    feed = Feed()
    assert feed.received("", entries(0)) == News()
    assert feed.joined(joined(0, epoch="")) == News(entries(0))
    assert feed.received("", entries(0, 0)) == News(entries(0, 0))
    feed.lost()
    again = feed.joined(joined(0, epoch=""))
    assert (told(again), again.must_join, again.is_reset) == ([], False, False)


# ---------------------------------------------------------------- starts


def offsets(found: Sequence[Entry] | None) -> list[int] | None:
    return None if found is None else [entry.offset for entry in found]


def test_a_start_gets_what_was_delivered_since_it_was_asked_for():
    """From exactly where its reply ended."""
    start = Start()
    start.hold(entries(6, 7))
    start.hold(entries(8))
    assert not start.is_level(Place("e", 8))
    assert offsets(start.begun(Place("e", 6), Place("e", 8))) == [7, 8]
    assert start.is_level(Place("e", 8))


def test_a_start_may_be_ahead_of_its_node():
    """Then what its reply had is not written again, and it is level when the node has come as far."""
    start = Start()
    start.hold(entries(6))
    assert offsets(start.begun(Place("e", 8), Place("e", 6))) == []
    assert not start.is_level(Place("e", 6))
    assert offsets(start.take(entries(7))) == []
    assert offsets(start.take(entries(8, 9))) == [9]
    assert start.is_level(Place("e", 9))
    assert not start.is_level(Place("f", 9))


def test_a_start_with_a_gap_starts_over():
    """It cannot be told what is missing."""
    start = Start()
    start.hold(entries(8))
    assert start.begun(Place("e", 6), Place("e", 8)) is None
    other = Start()
    assert offsets(other.begun(Place("e", 6), Place("e", 6))) == []
    assert other.take(entries(8)) is None


def test_a_start_of_another_epoch_starts_over():
    """Its node lost the position meanwhile, or has not heard of it yet."""
    assert Start().begun(Place("e", 6), Place("f", 6)) is None
    start = Start()
    start.reset()
    assert start.begun(Place("e", 6), Place("e", 6)) is None


def test_what_a_start_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """I3: beyond, it starts over."""
    monkeypatch.setattr(module, "HELD_MAX", 2)
    start = Start()
    start.hold(entries(6, 7, 8))
    start.hold(entries(9))
    assert start.begun(Place("e", 5), Place("e", 9)) is None


def test_without_a_history_a_start_gets_whatever_it_kept():
    """And is level at once."""
    start = Start()
    start.hold(entries(0, 0))
    assert offsets(start.begun(Place(), Place())) == [0, 0]
    assert start.is_level(Place())


# ---------------------------------------------------------------- over a bad channel


class Owner:
    """Publishes, loses its stream now and then, and tells what it does over a channel that does its worst."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.epoch = 1
        self.stream = Stream("e1")
        self.under_way: list[tuple[str, list[Entry]]] = []

    def publish(self) -> None:
        entry = entries(self.stream.offset + 1)[0]
        self.stream.append(entry)
        self.stream.trim(Timestamp(0), size=8, ttl_ms=1_000)
        for _ in range(self.random.choice((0, 1, 1, 1, 1, 2))):
            self.under_way.append((self.stream.epoch, [entry]))

    def forget(self) -> None:
        self.epoch += 1
        self.stream = Stream(f"e{self.epoch}")

    def join(self, place: Place | None) -> Joined:
        here = Place(self.stream.epoch, self.stream.offset)
        found = self.stream.recover(place.epoch, place.offset) if place is not None else []
        return Joined(here, found or [], is_known=found is not None)


class Subscriber:
    def __init__(self) -> None:
        self.start = Start()
        self.reply: Place | None = None
        self.epoch, self.offset = "", 0

    def got(self, found: Sequence[Entry] | None, of_epoch: str) -> bool:
        """Take what was written. Returns whether it goes on."""
        for entry in found or ():
            assert (of_epoch, entry.offset) == (self.epoch, self.offset + 1), "I2"
            self.offset = entry.offset
        return found is not None


class Node:
    """A feed with its subscribers: those level with it, and those on the way."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.owner = Owner(random)
        self.feed = Feed()
        self.level: set[Subscriber] = set()
        self.starting: list[Subscriber] = []
        self.delivered = 0
        self.over = 0

    def step(self, kind: str) -> None:
        match kind:
            case "publish":
                self.owner.publish()
            case "arrive" if self.owner.under_way and self.feed.place is not None:
                index = self.random.choice((0, 0, 0, self.random.randrange(len(self.owner.under_way))))
                self.carry_out(self.feed.received(*self.owner.under_way.pop(index)))
            case "join" if not self.feed.is_joined:
                self.carry_out(self.feed.joined(self.owner.join(self.feed.place)))
            case "come" if self.feed.place is not None:
                self.starting.append(Subscriber())
            case "read":
                for one in self.starting:
                    if one.reply is None and self.random.random() < 0.5:
                        one.reply = Place(self.owner.stream.epoch, self.owner.stream.offset)
            case "begin":
                for one in tuple(self.starting):
                    if one.reply is not None and one.start.place is None:
                        self.begin(one, one.reply)
            case "forget" if self.random.random() < 0.05:
                self.owner.forget()
            case "quiet":
                self.owner.under_way.clear()
                self.feed.lost()
                self.carry_out(self.feed.joined(self.owner.join(self.feed.place)))

    def carry_out(self, news: News) -> None:
        place = self.feed.place
        assert place is not None
        if news.is_reset:
            self.over += len(self.level)
            self.level.clear()
            for one in self.starting:
                one.start.reset()
        for one in self.level:
            one.got(news.deliver, place.epoch)
        self.delivered += len(self.level) * len(news.deliver)
        for one in tuple(self.starting):
            if one.start.place is None:
                one.start.hold(news.deliver)
            else:
                self.written(one, one.start.take(news.deliver), place)

    def begin(self, one: Subscriber, reply: Place) -> None:
        place = self.feed.place
        assert place is not None
        one.epoch, one.offset = reply.epoch, reply.offset
        self.written(one, one.start.begun(reply, place), place)

    def written(self, one: Subscriber, found: Sequence[Entry] | None, place: Place) -> None:
        if not one.got(found, place.epoch):
            self.starting.remove(one)
            self.over += 1
        elif one.start.is_level(place):
            self.starting.remove(one)
            self.level.add(one)


KINDS = ("publish",) * 3 + ("arrive",) * 3 + ("join", "come", "read", "begin", "forget")


def test_subscribers_get_each_publication_once_and_in_order_until_they_start_over():
    """I1 and I2, and after quiet everybody stands where the owner does."""
    delivered = over = level = 0
    for seed in range(60):
        random = Random(seed)
        node = Node(random)
        for _ in range(400):
            node.step(random.choice(KINDS))
        for _ in range(3):
            node.step("quiet")
        place = node.feed.place
        assert place == Place(node.owner.stream.epoch, node.owner.stream.offset)
        assert all((one.epoch, one.offset) == (place.epoch, place.offset) for one in node.level)
        delivered, over, level = delivered + node.delivered, over + node.over, level + len(node.level)
    assert min(delivered, over, level) > 60, (delivered, over, level)
