"""Lanes: fairness and order by example, then against one queue a lane that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Timestamp
from im.core.commands import ChangeGroup, CreateGroup, Draft, Mark, Receive, Revise, Sent, Trim
from im.core.lanes import IDLE_LANES_MAX, LaneKey, Lanes, lane_of

AT = Timestamp(0)


def draft(sender: str, to: str = "", cid: int = 0) -> Draft:
    return Draft(1, sender, "phone", to, cid, "k", "text", b"{}", AT)


def tickets(group: list[tuple[Any, Any]]) -> list[Any]:
    return [ticket for _, ticket in group]


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("command", "sender", "recipient", "conversation"),
    [
        (draft("bob", to="ann"), "bob", "ann", ("ann", "bob")),
        (draft("ann", to="bob"), "ann", "bob", ("ann", "bob")),
        (draft("bob", cid=7), "bob", 7, 7),
        (Revise(1, "bob", "phone", 7, 3, "k", True, b"", AT), "bob", 7, 7),
        (Mark("bob", "phone", 7, AT, read_seq=1), "bob", 7, 7),
        (ChangeGroup(1, "bob", "phone", 7, "leave", AT), "bob", 7, 7),
        (CreateGroup(1, "bob", "phone", "k", "name", (), AT), "bob", "bob", "bob"),
        (Trim("bob", 5), "bob", "bob", "bob"),
        (Receive(3, ()), ("from", 3), ("from", 3), ("from", 3)),
        (Sent(3, 9), ("to", 3), ("to", 3), ("to", 3)),
    ],
)
def test_a_command_has_a_lane_by_each_key(command: Any, sender: Hashable, recipient: Hashable, conversation: Hashable):
    """All commands, all keys; both users of a single conversation share its lane."""
    assert lane_of(command, "sender") == sender
    assert lane_of(command, "recipient") == recipient
    assert lane_of(command, "conversation") == conversation


# ---------------------------------------------------------------- fairness


def test_who_sends_much_delays_nobody():
    """I2: a thousand commands of one sender wait, and each of the others is served in the next round."""
    lanes = Lanes[str]("sender", waiting_max=2_000)
    for number in range(1_000):
        assert lanes.put(draft("heavy", to="x"), f"heavy{number}")
    assert tickets(lanes.take(2)) == ["heavy0", "heavy1"]
    for sender in ("ann", "bob", "ann"):
        assert lanes.put(draft(sender, to="x"), sender)
    assert tickets(lanes.take(7)) == ["heavy2", "ann", "bob", "heavy3", "ann", "heavy4", "heavy5"]
    assert tickets(lanes.take(2_000)) == [f"heavy{number}" for number in range(6, 1_000)]
    assert lanes.take(10) == []
    assert len(lanes) == 0


def test_a_lane_that_waits_is_served_once_a_round():
    """I2: who comes during a round waits for the next."""
    lanes = Lanes[int]("sender", waiting_max=10)
    for ticket, sender in enumerate("abc"):
        lanes.put(draft(sender), ticket)
    assert tickets(lanes.take(1)) == [0]
    lanes.put(draft("a"), 3)
    lanes.put(draft("d"), 4)
    assert tickets(lanes.take(10)) == [1, 2, 3, 4]


def test_ever_new_senders_do_not_starve_one_who_waits_for_the_next_round():
    """I2: a round takes nobody in while it is served, so that it ends."""
    lanes = Lanes[str]("sender", waiting_max=10)
    lanes.put(draft("ann"), "ann")
    lanes.put(draft("ann"), "ann again")
    taken: list[str] = []
    for number in range(10):
        lanes.put(draft(f"new{number}"), "new")
        taken += tickets(lanes.take(1))
    assert taken[:4] == ["ann", "new", "ann again", "new"]


def test_no_more_wait_than_may():
    """I3: and there is room again when some are taken."""
    lanes = Lanes[int]("sender", waiting_max=2)
    assert [lanes.put(draft(sender), 0) for sender in "abc"] == [True, True, False]
    lanes.take(1)
    assert [lanes.put(draft(sender), 0) for sender in "cd"] == [True, False]
    lanes.check_invariants()


def test_no_lane_fills_the_room_of_all():
    """I3: who sends too much is refused alone."""
    lanes = Lanes[int]("sender", waiting_max=100, lane_max=3)
    assert [lanes.put(draft("heavy"), number) for number in range(5)] == [True, True, True, False, False]
    assert lanes.put(draft("ann"), 9)
    assert tickets(lanes.take(2)) == [0, 9]
    assert [lanes.put(draft("heavy"), 5) for number in range(2)] == [True, False]
    assert tickets(lanes.take(10)) == [1, 2, 5]


def test_lanes_that_are_empty_are_forgotten():
    """I5: though there are always some that wait."""
    lanes = Lanes[int]("sender", waiting_max=10)
    for number in range(3 * IDLE_LANES_MAX):
        lanes.put(draft(f"u{number}"), number)
        if number > 5:
            assert tickets(lanes.take(1)) == [number - 6]
            assert len(lanes._last) <= 2 * len(lanes) + IDLE_LANES_MAX
    lanes.check_invariants()


# ---------------------------------------------------------------- order


def anomalies(key: LaneKey, *, seed: int = 1) -> int:
    """How often a sender's message was taken before one that the same sender sent earlier.

    Twenty senders write to five recipients, one of whom gets most.
    """
    random = Random(seed)
    lanes = Lanes[tuple[str, int]](key, waiting_max=10_000)
    taken: list[tuple[str, int]] = []
    for number in range(2_000):
        sender = f"s{random.randrange(20)}"
        recipient = "popular" if random.random() < 0.7 else f"r{random.randrange(4)}"
        assert lanes.put(draft(sender, to=recipient), (sender, number))
        if number % 10 == 9:
            taken += tickets(lanes.take(8))
    taken += tickets(lanes.take(10_000))
    assert sorted(number for _, number in taken) == list(range(2_000))
    newest: dict[str, int] = {}
    overtaken = 0
    for sender, number in taken:
        overtaken += number < newest.get(sender, 0)
        newest[sender] = max(newest.get(sender, 0), number)
    return overtaken


@pytest.mark.spec("OR-05", "OR-06")
@pytest.mark.parametrize("key", ["recipient", "conversation"])
def test_lanes_by_another_key_than_the_sender_let_a_senders_messages_overtake_each_other(key: LaneKey):
    """OR-05, OR-06: the sender's other devices would see the second message before the first."""
    assert anomalies(key) > 0


@pytest.mark.spec("OR-01", "OR-05")
def test_two_messages_suffice_for_an_anomaly():
    """OR-05 in small: the first waits behind others for its recipient, the second does not."""
    for key, order in (("sender", ["first", "second"]), ("recipient", ["second", "first"])):
        lanes = Lanes[str](key, waiting_max=10)
        for number in range(3):
            lanes.put(draft(f"other{number}", to="popular"), "other")
        lanes.put(draft("ann", to="popular"), "first")
        lanes.put(draft("ann", to="bob"), "second")
        assert [ticket for ticket in tickets(lanes.take(10)) if ticket != "other"] == order


@pytest.mark.spec("OR-07")
@pytest.mark.parametrize("seed", range(3))
def test_lanes_by_sender_keep_every_senders_order(seed: int):
    """OR-07: no anomaly."""
    assert anomalies("sender", seed=seed) == 0


class Turns:
    """A queue a lane; those that wait when a round begins have one served each."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[int]] = {}
        self.turns: list[str] = []
        self.rounds = 0
        self.round_of: dict[int, int] = {}

    def put(self, lane: str, ticket: int) -> None:
        self.queues.setdefault(lane, deque()).append(ticket)

    def take(self, group_max: int) -> None:
        for _ in range(group_max):
            if not self.turns:
                self.turns = [lane for lane, queue in self.queues.items() if queue]
                self.rounds += 1
            if self.turns:
                self.round_of[self.queues[self.turns.pop()].popleft()] = self.rounds


@given(st.lists(st.one_of(st.sampled_from("aaabcd"), st.integers(1, 6)), max_size=80))
@settings(deadline=None, max_examples=200)
def test_lanes_take_turns_as_queues_would(steps: list[str | int]):
    """I1, I2, I4, against the dumb twin, which need not have the order within a round: senders put, numbers take."""
    lanes = Lanes[int]("sender", waiting_max=1_000)
    twin = Turns()
    taken: list[int] = []
    for ticket, step in enumerate([*steps, 1_000]):
        if isinstance(step, str):
            assert lanes.put(draft(step), ticket)
            twin.put(step, ticket)
        else:
            taken += tickets(lanes.take(step))
            twin.take(step)
        lanes.check_invariants()
    assert sorted(taken) == sorted(twin.round_of)
    rounds = [twin.round_of[ticket] for ticket in taken]
    assert rounds == sorted(rounds), "I2"
    for lane in "abcd":
        of_lane = [ticket for ticket in taken if steps[ticket] == lane]
        assert of_lane == sorted(of_lane), "I1"
