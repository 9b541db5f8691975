"""Sync versions: examples, then random users, changes and loads against a store that is a dict."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from im.core.versions import Versions


def loaded(versions: Versions, user: str, version: int) -> int | None:
    return versions.loaded(user, version, versions.begin(user))


def test_a_version_grows_with_each_thing_told():
    """Only of users who are known; others are loaded when they ask."""
    versions = Versions(is_on=True)
    assert versions.is_on
    assert versions.known("a") is None
    assert loaded(versions, "a", 7) == versions.known("a") == 7
    versions.changed(["a", "b", "a"])
    assert versions.known("a") == 9
    assert versions.changed_one("a") == 10
    assert versions.changed_one("b") is None
    assert versions.known("b") is None


def test_what_changed_while_it_was_read_is_read_again():
    """I1: the store may or may not have seen the change."""
    versions = Versions(is_on=True)
    ticket = versions.begin("a")
    versions.changed(["a"])
    assert versions.loaded("a", 7, ticket) is None
    assert versions.known("a") is None
    assert loaded(versions, "a", 8) == 8


def test_of_two_who_read_at_a_time_the_later_one_is_taken():
    """I1: the other one may have read before a change that nobody counts any more."""
    versions = Versions(is_on=True)
    early, late = versions.begin("a"), versions.begin("a")
    assert versions.loaded("a", 7, early) is None
    assert versions.loaded("a", 7, late) == 7
    versions.changed(["a"])
    assert versions.loaded("a", 7, late) is None
    assert versions.known("a") == 8


def test_reads_that_never_end_take_no_room_for_ever():
    """A read may fail."""
    versions = Versions(is_on=True, users_max=2)
    tickets = [versions.begin(user) for user in "abc"]
    answers = [versions.loaded(user, 1, ticket) for user, ticket in zip("abc", tickets, strict=True)]
    assert answers == [None, 1, 1]


def test_whose_conversations_are_other_ones_is_read_again():
    """Also if it is being read."""
    versions = Versions(is_on=True)
    loaded(versions, "a", 7)
    versions.forget("a")
    assert versions.known("a") is None
    ticket = versions.begin("a")
    versions.forget("a")
    assert versions.loaded("a", 7, ticket) is None


def test_those_who_asked_least_lately_go_first():
    """I2."""
    versions = Versions(is_on=True, users_max=2)
    for user in "ab":
        loaded(versions, user, 1)
    versions.known("a")
    loaded(versions, "c", 1)
    assert [versions.known(user) for user in "abc"] == [1, None, 1]
    assert len(versions) == 2


def test_one_who_is_loaded_again_pushes_nobody_out():
    """A user has one place."""
    versions = Versions(is_on=True, users_max=2)
    for user in "ab":
        loaded(versions, user, 1)
    assert loaded(versions, "b", 5) == 5
    assert [versions.known(user) for user in "ab"] == [1, 5]


class VersionsMachine(RuleBasedStateMachine):
    """Users change, are read (which takes a while) and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.versions = Versions(is_on=True, users_max=3)
        self.truth = dict.fromkeys("abcde", 0)
        self.reads: list[tuple[str, int, int]] = []

    @rule(user=st.sampled_from("abcde"))
    def change(self, user: str) -> None:
        self.truth[user] += 1
        self.versions.changed([user])

    @rule(user=st.sampled_from("abcde"), by=st.integers(-9, 9))
    def regroup(self, user: str, by: int) -> None:
        self.truth[user] += by
        self.versions.forget(user)

    @rule(user=st.sampled_from("abcde"))
    def begin(self, user: str) -> None:
        self.reads.append((user, self.truth[user], self.versions.begin(user)))

    @rule(place=st.integers(0, 9))
    def loaded(self, place: int) -> None:
        if self.reads:
            user, version, ticket = self.reads.pop(place % len(self.reads))
            told = self.versions.loaded(user, version, ticket)
            assert told is None or told == self.truth[user]

    @invariant()
    def what_is_known_is_true(self) -> None:
        assert len(self.versions) <= 3
        for user, version in self.truth.items():
            assert self.versions.known(user) in {None, version}


TestVersionsMachine = VersionsMachine.TestCase
TestVersionsMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
