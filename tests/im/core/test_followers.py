"""The followers' table: examples by invariant, then random nodes that lose messages, against what they want."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from base.clock import Instant
from im.core.followers import LEASE_MS, Followers, Taken

NOW = Instant(1_000)
WHOLE = Taken(is_whole=True, refused=0)
NOT_WHOLE = Taken(is_whole=False, refused=0)


def table(pairs_max: int = 100) -> Followers:
    return Followers(pairs_max=pairs_max)


def tell(followers: Followers, number: int, added: tuple[int, ...] = (), **more: object) -> Taken:
    """Tell a message of the node `a`."""
    taken = followers.told(NOW, "a", number, added, **{"removed": (), **more})  # type: ignore[arg-type]
    followers.check_invariants()
    return taken


def test_changes_are_followed():
    """What is added is there and what is removed is not, once each, whatever is said twice."""
    followers = table()
    assert tell(followers, 1, (1, 2), is_first=True, is_last=True) == WHOLE
    assert tell(followers, 2, (2, 3), removed=(1, 1, 9)) == WHOLE
    assert [followers.of(cid) for cid in (1, 2, 3)] == [(), ("a",), ("a",)]
    assert len(followers) == 2


def test_a_conversation_may_have_several_nodes():
    """I1: in the order in which they came, and each leaves alone."""
    followers = table()
    for name in ("a", "b", "c"):
        followers.told(NOW, name, 1, [7], [], is_first=True, is_last=True)
    assert followers.of(7) == ("a", "b", "c")
    assert len(followers) == 3
    followers.told(NOW, "b", 2, [], [7])
    followers.check_invariants()
    assert followers.of(7) == ("a", "c")
    followers.forget("a")
    followers.forget("nobody")
    followers.check_invariants()
    assert (followers.of(7), followers.nodes()) == (("c",), ("b", "c"))


def test_saying_everything_anew_drops_what_was_not_named():
    """I2: at its end, not before; what is changed in between counts as named."""
    followers = table()
    tell(followers, 1, (1, 2, 3), is_first=True, is_last=True)
    assert tell(followers, 2, (1,), is_first=True) == WHOLE
    assert tell(followers, 3, (5,), removed=(2,)) == WHOLE
    assert [bool(followers.of(cid)) for cid in (1, 2, 3, 5)] == [True, False, True, True]
    assert tell(followers, 4, (6,), is_last=True) == WHOLE
    assert [bool(followers.of(cid)) for cid in (1, 2, 3, 5, 6)] == [True, False, False, True, True]


def test_nothing_is_dropped_while_a_message_is_missing():
    """I2: it may be the one that named it. What is sure to be wanted is taken in any case."""
    followers = table()
    tell(followers, 1, (1, 2), is_first=True, is_last=True)
    tell(followers, 2, is_first=True)
    assert tell(followers, 4, (3,), is_last=True) == NOT_WHOLE
    assert [bool(followers.of(cid)) for cid in (1, 2, 3)] == [True, True, True]
    assert tell(followers, 5, (4,)) == NOT_WHOLE
    assert tell(followers, 6, (2, 4), is_first=True, is_last=True) == WHOLE
    assert [bool(followers.of(cid)) for cid in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_node_that_begins_with_a_change_is_not_whole():
    """It may have said more before its lease ended; the change is taken."""
    followers = table()
    assert tell(followers, 1, (1,)) == NOT_WHOLE
    assert followers.of(1) == ("a",)


def test_a_new_life_of_a_node_counts_from_one_again():
    """What the old one followed stays until the new one has said everything."""
    followers = table()
    tell(followers, 1, (1, 2), is_first=True, is_last=True)
    tell(followers, 2)
    assert tell(followers, 1, (3,)) == NOT_WHOLE
    assert tell(followers, 2, (3,), is_first=True) == WHOLE
    assert followers.of(1) == ("a",)
    assert tell(followers, 3, (1,), is_last=True) == WHOLE
    assert [bool(followers.of(cid)) for cid in (1, 2, 3)] == [True, False, True]


def test_a_lease_ends_to_the_millisecond():
    """I3: with all that the node followed; any message renews it."""
    followers = table()
    for name in ("a", "b"):
        followers.told(NOW, name, 1, [1, 2], [], is_first=True)
    followers.told(Instant(NOW + 5), "b", 2, [], [])
    assert followers.expire(Instant(NOW + LEASE_MS - 1)) == []
    assert followers.expire(Instant(NOW + LEASE_MS)) == ["a"]
    followers.check_invariants()
    assert (followers.nodes(), followers.of(1), len(followers)) == (("b",), ("b",), 2)
    assert followers.expire(Instant(NOW + LEASE_MS + 5)) == ["b"]
    assert (followers.nodes(), followers.of(1), len(followers)) == ((), (), 0)


def test_too_many_pairs_are_refused_and_counted():
    """I4: over all nodes; what is there may be named again, and room is made by whoever leaves."""
    followers = table(pairs_max=3)
    assert tell(followers, 1, (1, 2), is_first=True) == WHOLE
    assert followers.told(NOW, "b", 1, [2, 3, 4], [], is_first=True) == Taken(is_whole=True, refused=2)
    followers.check_invariants()
    assert [followers.of(cid) for cid in (1, 2, 3, 4)] == [("a",), ("a", "b"), (), ()]
    assert tell(followers, 2, (1, 2), is_first=True, is_last=True) == WHOLE
    assert tell(followers, 3, (5,), removed=(1,)) == WHOLE
    with pytest.raises(AssertionError):
        table(pairs_max=0)


CIDS = range(1, 5)


class Nodes(RuleBasedStateMachine):
    """Two nodes that say what they want as they should, over streams that lose messages, and sometimes start over."""

    @initialize()
    def start(self) -> None:
        self.followers = table()
        self.now = NOW
        self.heard: dict[str, Instant] = {}
        self.wants: dict[str, set[int]] = {"a": set(), "b": set()}
        self.numbers = {"a": 0, "b": 0}
        self.is_told: dict[str, bool] = {"a": False, "b": False}
        """Whether a restatement arrived, and everything since then."""

    def say(self, name: str, added: set[int], removed: set[int], *, arrives: bool, **marks: bool) -> None:
        self.numbers[name] += 1
        if arrives:
            taken = self.followers.told(self.now, name, self.numbers[name], added, removed, **marks)
            self.heard[name] = self.now
            assert taken.refused == 0
            if marks.get("is_last"):
                self.is_told[name] = taken.is_whole
            assert taken.is_whole or not self.is_told[name], "a hole is seen where there is none"
        else:
            self.is_told[name] = False

    @rule(name=st.sampled_from("ab"), cid=st.sampled_from(CIDS), arrives=st.booleans())
    def add(self, name: str, cid: int, *, arrives: bool) -> None:
        self.wants[name].add(cid)
        self.say(name, {cid}, set(), arrives=arrives)

    @rule(name=st.sampled_from("ab"), cid=st.sampled_from(CIDS), arrives=st.booleans())
    def remove(self, name: str, cid: int, *, arrives: bool) -> None:
        self.wants[name].discard(cid)
        self.say(name, set(), {cid}, arrives=arrives)

    @rule(name=st.sampled_from("ab"), arrive=st.tuples(st.booleans(), st.booleans()), change=st.sampled_from(CIDS))
    def restate(self, name: str, arrive: tuple[bool, bool], change: int) -> None:
        """Two pages with a change in between."""
        wants = self.wants[name]
        first, second = {cid for cid in wants if cid % 2}, {cid for cid in wants if not cid % 2}
        self.say(name, first, set(), arrives=arrive[0], is_first=True)
        wants ^= {change}
        self.say(name, {change} & wants, {change} - wants, arrives=arrive[0])
        self.say(name, second & wants, set(), arrives=arrive[1], is_last=True)

    @rule(name=st.sampled_from("ab"), cid=st.sampled_from(CIDS))
    def start_over(self, name: str, cid: int) -> None:
        """A new life, which may begin with a change."""
        self.numbers[name] = 0
        self.wants[name] = {cid}
        self.is_told[name] = False
        self.say(name, {cid}, set(), arrives=True)

    @rule(ms=st.sampled_from([1, LEASE_MS // 2, LEASE_MS]))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        gone = {name for name, at in self.heard.items() if at + LEASE_MS <= self.now}
        assert set(self.followers.expire(self.now)) == gone
        for name in gone:
            del self.heard[name]
            self.is_told[name] = False

    @invariant()
    def who_is_told_of_everything_is_right(self) -> None:
        self.followers.check_invariants()
        assert set(self.followers.nodes()) == set(self.heard), "I3"
        for name, wants in self.wants.items():
            if self.is_told[name]:
                assert {cid for cid in CIDS if name in self.followers.of(cid)} == wants, "I2"


Nodes.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestNodes = Nodes.TestCase
