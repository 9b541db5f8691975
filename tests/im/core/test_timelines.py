"""Fan-outs in steps: examples with the real bounds, then random ones against plain lists, over crashes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from base.clock import Timestamp
from im.core.facts import Changes
from im.core.model import Message, Pending
from im.core.shards import shard_of_user
from im.core.timelines import (
    AT_ONCE_MAX,
    STEP_MAX,
    TURN_MAX,
    WAITING_ENTRIES_MAX,
    Timelines,
)
from tests.im.core.ledger_world import small_bounds


def message(n: int, cid: int = 1, seq: int = 1) -> Message:
    return Message(n, cid, seq, seq, 7, "a", "phone", "", f"k{n}", 0, "text", 0, b"1", b"", Timestamp(1))


def names(count: int) -> tuple[str, ...]:
    return tuple(f"u{number:04}" for number in range(count))


def known(timelines: Timelines, *users: str) -> Timelines:
    timelines.heads.update(dict.fromkeys(users, 0))
    return timelines


def stepped(timelines: Timelines) -> list[tuple[int, int]]:
    """One step: (cid, entries) of each turn."""
    changes = Changes()
    timelines.step(changes)
    timelines.check_invariants()
    return [(one.message.cid, len(one.positions)) for one in changes.deliveries]


@pytest.mark.parametrize(("count", "at_once"), [(0, 0), (1, 1), (AT_ONCE_MAX, AT_ONCE_MAX), (AT_ONCE_MAX + 1, 0)])
def test_few_users_are_told_at_once_and_many_later(count: int, at_once: int):
    """A message for many is stored with where its fan-out is: at its beginning."""
    timelines, changes = known(Timelines(), *names(count)), Changes()
    timelines.spread(message(5), names(count), changes)
    assert [(len(given), one.n) for one, given in changes.messages] == [(at_once, 5)]
    assert changes.pendings == ({} if at_once == count else {5: Pending(5, 1, 1, "")})
    assert timelines.has_work == timelines.is_going(1) == (at_once != count)
    assert [(one.is_first, len(one.positions)) for one in changes.deliveries] == [(True, at_once)]


@pytest.mark.spec("FO-06")
def test_a_big_fan_out_takes_steps_and_remembers_how_far_it_is():
    """Each step is a transaction's worth; the last one says that it is finished."""
    users = names(STEP_MAX + 100)
    timelines, changes = known(Timelines(), *users), Changes()
    timelines.spread(message(5), users, changes)
    timelines.step(changes)
    assert changes.pendings == {5: Pending(5, 1, 1, users[STEP_MAX - 1])}
    assert len(changes.entries) == STEP_MAX
    assert stepped(timelines) == [(1, 100)]
    assert not timelines.has_work
    assert stepped(timelines) == []


def test_conversations_take_turns():
    """None waits for a big one longer than its turn; what a short one leaves is for the others."""
    users = names(1_000)
    timelines, changes = known(Timelines(), *users), Changes()
    for cid, count in ((1, 1_000), (2, 40), (3, 200)):
        timelines.spread(message(cid, cid), users[:count], changes)
    assert stepped(timelines) == [(1, TURN_MAX), (2, 40), (3, TURN_MAX), (1, TURN_MAX), (3, 72), (1, 16)]


def test_a_later_message_waits_behind_an_earlier_one():
    """I2: even if its own users are few."""
    users = names(AT_ONCE_MAX + 1)
    timelines, changes = known(Timelines(), *users), Changes()
    timelines.spread(message(5), users, changes)
    timelines.spread(message(6, seq=2), users[:2], changes)
    assert set(timelines.users_of_next_step()) == set(users)
    timelines.step(changes)
    assert [(user, one.n) for user, _, one in changes.entries if user == users[0]] == [(users[0], 5), (users[0], 6)]
    assert changes.pendings == {5: None, 6: None}


@pytest.mark.parametrize(("count", "most"), [(33, 993), (512, 64), (2_000, 17), (30_000, 2), (WAITING_ENTRIES_MAX, 1)])
def test_a_conversation_is_full_by_the_entries_that_wait(count: int, most: int):
    """Whoever changes its members writes all of them at once. However many it has, where nothing waits one may be told.

    So no more wait than the bound and the entries of one message.
    """
    users = names(count)
    timelines, changes = known(Timelines(), *users), Changes()
    assert not timelines.is_full(1)
    for n in range(1, most + 1):
        assert not timelines.is_full(1), n
        timelines.spread(message(n, seq=n), users, changes)
    assert timelines.is_full(1)
    assert not timelines.is_full(2)
    timelines.finish(1, changes)
    assert not timelines.is_full(1)


def test_what_is_done_of_a_fan_out_does_not_wait():
    """A huge group may be told the next message before its members have all been told the last one."""
    users = tuple(f"u{number:06}" for number in range(WAITING_ENTRIES_MAX + TURN_MAX))
    timelines, changes = known(Timelines(), *users), Changes()
    timelines.spread(message(5), users, changes)
    assert stepped(timelines) == [(1, TURN_MAX)] * (STEP_MAX // TURN_MAX)
    assert not timelines.is_full(1)
    timelines.spread(message(6, seq=2), users, changes)
    assert timelines.is_full(1)


def test_finishing_is_for_one_conversation():
    """I3: whoever changes its members brings its fan-outs to their end, and no other's."""
    users = names(200)
    timelines, changes = known(Timelines(), *users), Changes()
    timelines.spread(message(5), users, changes)
    timelines.spread(message(6, seq=2), users, changes)
    timelines.spread(message(7, cid=2), users, changes)
    timelines.finish(1, changes)
    timelines.finish(9, changes)  # nothing goes on there
    assert not timelines.is_going(1)
    assert timelines.is_going(2)
    assert changes.pendings == {5: None, 6: None, 7: Pending(7, 2, 1, "")}
    assert Timelines().to_resume() == ()


def test_what_follows_in_the_same_step_knows_its_users_after_a_crash():
    """The first fan-out was nearly done: the second one begins with users whom the first one does not name."""
    users = names(6)
    with small_bounds():
        before = [(Pending(5, 1, 1, users[4]), message(5)), (Pending(6, 1, 2, ""), message(6, seq=2))]
        timelines = Timelines(before)
        assert timelines.has_work
        assert timelines.to_resume() == (1,)
        timelines.resume(1, users)
        known(timelines, *timelines.users_of_next_step())
        assert stepped(timelines) == [(1, 1), (1, 2)]


def test_forgotten_heads_are_asked_for_again():
    """Also those of users who have the first of the entries that go on."""
    users = names(6)
    with small_bounds():
        timelines, changes = known(Timelines(), *users), Changes()
        timelines.spread(message(5), users, changes)
        timelines.spread(message(6, seq=2), users, changes)
        assert stepped(timelines) == [(1, 2), (1, 1)]
        timelines.forget()
        assert not timelines.heads
        known(timelines, *timelines.users_of_next_step())
        assert stepped(timelines) == [(1, 2), (1, 1)]
        assert stepped(timelines) == [(1, 2), (1, 1)]


# ---------------------------------------------------------------- other shards' timelines

SHARDS = 3
NEAR = [name for name in names(40) if shard_of_user(name, SHARDS) == 1]
AWAY = [name for name in names(40) if shard_of_user(name, SHARDS) != 1]


def test_what_is_for_other_shards_goes_out_by_shard_under_positions_of_its_own():
    """In the order of names within each; nobody there is asked for, nor given an offset."""
    timelines, changes = Timelines(shard=1, shards=SHARDS, last_out=7), Changes()
    assert [user for user in names(40) if timelines.needs(user)] == NEAR
    known(timelines, *NEAR)
    users = [AWAY[0], NEAR[0], *AWAY[1:], NEAR[1]]
    assert timelines.give(message(5), users, changes) == ((NEAR[0], 1), (NEAR[1], 1))
    timelines.check_invariants()
    assert sorted(one.shard for one in changes.outgoing) == [0, 2]
    assert [one.position for one in changes.outgoing] == [8, 9]
    for one in changes.outgoing:
        assert one.users == tuple(user for user in AWAY if shard_of_user(user, SHARDS) == one.shard)
    timelines.give(message(6), AWAY[:1], changes)
    assert changes.outgoing[2].position == 10


def test_positions_go_on_behind_what_others_know_of():
    """Whatever this store remembers."""
    timelines, changes = Timelines(shard=1, shards=SHARDS, last_out=7), Changes()
    assert not timelines.needs(AWAY[0])
    for known_there in (3, 20, 12):
        timelines.gave(known_there)
        timelines.give(message(5), AWAY[:1], changes)
    assert [one.position for one in changes.outgoing] == [8, 21, 22]


def test_of_whom_something_is_remembered_is_counted_and_forgotten():
    """Those of other shards take room as well."""
    timelines = Timelines(shard=1, shards=SHARDS)
    for user in names(40):
        if timelines.needs(user):
            timelines.heads[user] = 0
        assert not timelines.needs(user)
    assert timelines.known == 40
    timelines.forget()
    assert timelines.known == 0
    assert [user for user in names(40) if timelines.needs(user)] == NEAR


def test_who_is_here_and_there_is_seen():
    """I4."""
    timelines = Timelines(shard=1, shards=SHARDS)
    assert not timelines.needs(AWAY[0])
    timelines.heads[AWAY[0]] = 1
    with pytest.raises(AssertionError, match="I4"):
        timelines.check_invariants()


class TimelinesMachine(RuleBasedStateMachine):
    """Messages to three conversations of which the members change, and what each user is told."""

    @initialize(shards=st.sampled_from((1, SHARDS)))
    def begin(self, shards: int) -> None:
        self.shards = shards
        self.timelines = Timelines(shard=0, shards=shards)
        self.last_out = 0
        self.n = 0
        self.members = {1: names(4), 2: names(7), 3: names(2)}
        self.told: dict[str, list[Message]] = {}
        self.meant: dict[tuple[str, int], list[Message]] = {}
        self.pendings: dict[int, tuple[Pending, Message]] = {}
        self.messages: dict[int, Message] = {}

    def know(self) -> None:
        for cid in self.timelines.to_resume():
            self.timelines.resume(cid, self.members[cid])
        self.learn((*names(8), *self.timelines.users_of_next_step()))

    def learn(self, users: Iterable[str]) -> None:
        for user in users:
            if self.timelines.needs(user):
                self.timelines.heads[user] = len(self.told.get(user, ()))

    def write(self, changes: Changes) -> None:
        given = [(user, offset, one) for one, positions in changes.messages for user, offset in positions]
        for user, offset, one in sorted([*given, *changes.entries], key=lambda entry: entry[1]):
            self.told.setdefault(user, []).append(one)
            assert len(self.told[user]) == offset, "I1"
        for out in changes.outgoing:
            self.last_out += 1
            assert out.position == self.last_out
            for user in out.users:
                assert shard_of_user(user, self.shards) == out.shard != 0
                self.told.setdefault(user, []).append(out.message)
        for n, pending in changes.pendings.items():
            self.pendings.pop(n, None)
            if pending is not None:
                self.pendings[n] = (pending, self.messages[n])

    @rule(cid=st.sampled_from((1, 2, 3)))
    def send(self, cid: int) -> None:
        self.n += 1
        one = self.messages[self.n] = message(self.n, cid, self.n)
        for user in self.members[cid]:
            self.meant.setdefault((user, cid), []).append(one)
        self.know()
        changes = Changes()
        self.timelines.spread(one, self.members[cid], changes)
        self.write(changes)

    @rule(cid=st.sampled_from((1, 2, 3)), count=st.integers(1, 8))
    def change(self, cid: int, count: int) -> None:
        self.know()
        changes = Changes()
        self.timelines.finish(cid, changes)
        self.write(changes)
        self.members[cid] = names(count)

    @precondition(lambda self: self.timelines.has_work)
    @rule()
    def step(self) -> None:
        for cid in self.timelines.to_resume():
            self.timelines.resume(cid, self.members[cid])
        self.learn(self.timelines.users_of_next_step())  # and nobody else
        changes = Changes()
        self.timelines.step(changes)
        assert 0 < len(changes.entries) + sum(len(out.users) for out in changes.outgoing) <= 3
        self.write(changes)

    @rule()
    def crash(self) -> None:
        pendings = [self.pendings[n] for n in sorted(self.pendings)]
        self.timelines = Timelines(pendings, shard=0, shards=self.shards, last_out=self.last_out)

    @rule()
    def forget(self) -> None:
        self.timelines.forget()

    @invariant()
    def users_are_told_in_order_and_once(self) -> None:
        self.timelines.check_invariants()
        going = {one.cid for _, one in self.pendings.values()}
        assert {cid for cid in self.members if self.timelines.is_going(cid)} <= going
        for (user, cid), meant in self.meant.items():
            told = [one for one in self.told.get(user, []) if one.cid == cid]
            assert told == (meant[: len(told)] if cid in going else meant)

    def teardown(self) -> None:
        if not hasattr(self, "timelines"):
            return
        while self.timelines.has_work:
            self.step()
        self.users_are_told_in_order_and_once()
        assert not self.pendings


TestTimelinesMachine = TimelinesMachine.TestCase
TestTimelinesMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.fixture(autouse=True)
def _small_bounds_for_the_machine(request: pytest.FixtureRequest) -> Any:
    if request.node.name != "runTest":
        yield
        return
    with small_bounds():
        yield
