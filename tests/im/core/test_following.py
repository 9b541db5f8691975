"""What message services are told of what is followed: examples, then a service at the end of a stream that fails."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant
from im.api import CONVERSATIONS_MAX, Follow
from im.core.followers import Followers
from im.core.following import RESTATE_MS, RETRY_MS, Following

NOW = Instant(1_000)


def following(*services: str, page_max: int = 2) -> Following:
    """Return one that is connected to the services, which were told all there is: nothing."""
    made = Following(page_max=page_max)
    for name in services:
        made.connected(NOW, name)
    assert made.restate(NOW) == [(name, Follow(1, [], [], is_first=True, is_last=True)) for name in services]
    return made


def after(ms: int) -> Instant:
    return Instant(NOW + ms)


def test_a_change_is_told_to_every_service():
    """At once, under each one's own number."""
    one = following("a")
    one.connected(NOW, "b")
    assert one.follow(["1", "2", "1"]) == [("a", Follow(2, ["1", "2"], [])), ("b", Follow(1, ["1", "2"], []))]
    assert one.unfollow(["2"]) == [("a", Follow(3, [], ["2"])), ("b", Follow(2, [], ["2"]))]
    assert len(one) == 1


def test_what_changes_nothing_is_not_told():
    """Nor does it cost a number."""
    one = following("a")
    one.follow(["1"])
    assert one.follow(["1"]) == one.unfollow(["2"]) == one.follow([]) == []
    assert one.follow(["2"]) == [("a", Follow(3, ["2"], []))]


def test_large_changes_are_told_in_pages():
    """In order, each of a bounded size; by default what the wire allows."""
    one = following("a")
    assert one.follow("12345") == [
        ("a", Follow(2, ["1", "2"], [])),
        ("a", Follow(3, ["3", "4"], [])),
        ("a", Follow(4, ["5"], [])),
    ]
    default = Following()
    default.connected(NOW, "a")
    sizes = [len(message.added) for _, message in default.follow(map(str, range(CONVERSATIONS_MAX + 1)))]
    assert sizes == [CONVERSATIONS_MAX, 1]


def test_without_a_service_changes_are_remembered():
    """The first stream is told them."""
    one = Following()
    assert one.due is None
    assert one.follow(["1"]) == []
    one.connected(NOW, "a")
    assert one.due == NOW
    assert one.restate(NOW) == [("a", Follow(1, ["1"], [], is_first=True, is_last=True))]
    assert one.restate(NOW) == []
    assert one.due == after(RESTATE_MS)


def test_everything_is_said_anew_in_pages():
    """Each call gives the next one; what is not wanted any more when its page comes is left out."""
    one = following("a")
    one.follow("12345")
    assert one.restate(after(RESTATE_MS - 1)) == []
    pages = one.restate(after(RESTATE_MS))
    assert one.unfollow("12") == [("a", Follow(6, [], ["1", "2"]))]
    one.check_invariants()
    assert one.follow("6") == [("a", Follow(7, ["6"], []))]
    pages += one.restate(after(RESTATE_MS)) + one.restate(after(RESTATE_MS + 5))
    assert pages == [
        ("a", Follow(5, ["4", "5"], [], is_first=True)),
        ("a", Follow(8, ["3"], [])),
        ("a", Follow(9, [], [], is_last=True)),
    ]
    assert one.restate(after(RESTATE_MS + 5)) == []
    assert one.due == after(RESTATE_MS + 5 + RESTATE_MS)


def test_a_failure_makes_everything_be_said_anew_after_a_moment():
    """Also when it comes in the middle of saying it."""
    one = following("a")
    one.follow("123")
    one.failed(NOW, "a", 2)
    one.check_invariants()
    assert one.due == after(RETRY_MS)
    assert one.restate(after(RETRY_MS)) == [("a", Follow(4, ["2", "3"], [], is_first=True))]
    one.failed(after(RETRY_MS), "a", 4)
    one.check_invariants()
    assert one.restate(after(2 * RETRY_MS)) == [("a", Follow(5, ["2", "3"], [], is_first=True))]
    assert one.restate(after(2 * RETRY_MS)) == [("a", Follow(6, ["1"], [], is_last=True))]


def test_a_failure_that_is_made_good_does_not_matter():
    """Of a message before everything was said anew, another one of the same time, or one to a service that is gone."""
    one = following("a")
    one.follow("1")
    one.failed(NOW, "a", 2)
    one.failed(after(5), "a", 1)
    assert one.due == after(RETRY_MS)
    one.restate(after(RETRY_MS))
    one.failed(after(RETRY_MS), "a", 2)
    assert one.due == after(RETRY_MS + RESTATE_MS)
    one.failed(NOW, "b", 1)
    one.keep({"b"})
    one.failed(NOW, "a", 3)
    assert one.due is None


def test_a_new_stream_is_told_everything_and_numbers_go_on():
    """I2: a failure that is told late is one of the old stream."""
    one = following("a")
    one.follow("123")
    one.connected(after(5), "a")
    one.failed(after(6), "a", 3)
    one.check_invariants()
    assert one.due == after(5)
    assert one.restate(after(6)) == [("a", Follow(4, ["2", "3"], [], is_first=True))]


def test_a_service_that_left_is_told_nothing():
    """I1: those that stay are."""
    one = following("a", "b")
    one.keep({"b", "c"})
    assert one.follow("1") == [("b", Follow(2, ["1"], []))]


class Streams(RuleBasedStateMachine):
    """One service that takes what arrives, over streams that break and messages that fail, which is always noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.following = Following(page_max=2)
        self.followers = Followers(pairs_max=1_000)
        self.now = NOW
        self.is_connected = False

    def send(self, told: list[tuple[str, Follow]], *, fails: bool = False) -> None:
        for _, message in told:
            if self.is_connected and not fails:
                taken = self.followers.told(
                    self.now,
                    "node",
                    message.number,
                    map(int, message.added),
                    map(int, message.removed),
                    is_first=message.is_first,
                    is_last=message.is_last,
                )
                if taken.is_whole:
                    continue
            self.following.failed(self.now, "a", message.number)

    @rule()
    def connect(self) -> None:
        self.is_connected = True
        self.following.connected(self.now, "a")

    @rule()
    def disconnect(self) -> None:
        self.is_connected = False

    @rule(cids=st.sets(st.sampled_from("123456789")), fails=st.booleans())
    def follow(self, cids: set[str], *, fails: bool) -> None:
        self.send(self.following.follow(cids), fails=fails)

    @rule(cids=st.sets(st.sampled_from("123456789")), fails=st.booleans())
    def unfollow(self, cids: set[str], *, fails: bool) -> None:
        self.send(self.following.unfollow(cids), fails=fails)

    @rule(fails=st.booleans())
    def page(self, *, fails: bool) -> None:
        self.send(self.following.restate(self.now), fails=fails)

    @rule(ms=st.sampled_from([1, RETRY_MS, RESTATE_MS, 3 * RESTATE_MS]))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        self.followers.expire(self.now)

    @rule()
    def settle(self) -> None:
        """I3: a while without failures is enough, and then nothing is due until the next round."""
        if not self.is_connected:
            self.connect()
        for _ in range(2):  # the second time for what the first one finds out
            self.now = Instant(self.now + RETRY_MS)
            while pages := self.following.restate(self.now):
                self.send(pages)
        assert self.following.due is not None
        assert self.following.due > self.now
        wanted = {cid for cid in "123456789" if not self.following_lacks(cid)}
        assert {cid for cid in "123456789" if self.followers.of(int(cid))} == wanted
        assert len(self.following) == len(wanted)

    def following_lacks(self, cid: str) -> bool:
        """Ask by the change that following it would be, and take that back."""
        size = len(self.following)
        self.send(self.following.follow([cid]))
        lacks = len(self.following) > size
        if lacks:
            self.send(self.following.unfollow([cid]))
        return lacks

    @invariant()
    def holds(self) -> None:
        self.following.check_invariants()


Streams.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestStreams = Streams.TestCase
