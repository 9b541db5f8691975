"""In what order commands wait: fairly, by lanes, so that whoever sends much delays nobody else.

A lane is what has the same key. Commands of one lane keep their order; between lanes they take turns, one of each a
round. That needs no queue a lane: each command is given its round when it comes, its lane's next, and is served in it
in the order of coming. The round that is being served takes nobody in, so that it ends, however many new lanes come.
So a command waits for the rest of this round, and for one command of each lane for each round until its own.

Which key decides which order is kept where the messages of a conversation are in the end in the order of the log:

| key | kept | not kept |
|---|---|---|
| `sender` | of what one sender sends, to whomever | nothing that anybody could have seen before it was sent |
| `recipient` | of what is sent to one recipient | one sender's to several: its other devices see them out of order |
| `conversation` | of what is sent in one conversation | as with `recipient` |

Invariants:
    I1  Commands of a lane are taken in the order in which they were put, each once.
    I2  No lane has more than one command in a round. Rounds are served in order, each once it can grow no more.
    I3  At most `waiting_max` wait, and of a lane `lane_max`, beside one that is in its turn; others are refused.
    I4  Rounds that something waits in follow each other without a gap, from the next one on.
    I5  Lanes remembered are at most as many as twice those that wait, and some.

Source: A. Demers, S. Keshav, S. Shenker, "Analysis and Simulation of a Fair Queueing Algorithm" (SIGCOMM 1989), with
all commands of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, Literal, TypeVar

from im.core.commands import ChangeGroup, Command, CreateGroup, Draft, Mark, Receive, Sent, Trim

__all__ = ["LaneKey", "Lanes", "lane_of"]

T = TypeVar("T")
LaneKey = Literal["sender", "recipient", "conversation"]

IDLE_LANES_MAX: Final = 1_024
"""Lanes without anything waiting that are remembered, beside as many as wait."""


def lane_of(command: Command, key: LaneKey) -> Hashable:
    """Return the lane of a command. What is sent to nobody, as a mark is, goes by its conversation.

    A single conversation that is named once by its user and once by its id is in two lanes.
    """
    return _KEYS[key](command)


def _by_sender(command: Command) -> Hashable:
    if isinstance(command, Draft):  # nearly all are
        return command.sender
    if isinstance(command, Mark | Trim):
        return command.user
    if isinstance(command, CreateGroup):
        return command.owner
    if isinstance(command, Receive | Sent):
        return _between(command)
    return command.by if isinstance(command, ChangeGroup) else command.sender


def _by_recipient(command: Command) -> Hashable:
    if isinstance(command, Draft) and command.to:
        return command.to
    return _by_sender(command) if isinstance(command, CreateGroup | Trim | Receive | Sent) else command.cid


def _by_conversation(command: Command) -> Hashable:
    if isinstance(command, Draft) and command.to:
        return min(command.sender, command.to), max(command.sender, command.to)
    return _by_recipient(command)


def _between(command: Receive | Sent) -> tuple[str, int]:
    return ("from", command.source) if isinstance(command, Receive) else ("to", command.shard)


_KEYS: Final[dict[LaneKey, Callable[[Command], Hashable]]] = {
    "sender": _by_sender,
    "recipient": _by_recipient,
    "conversation": _by_conversation,
}


class Lanes(Generic[T]):
    """Commands that wait, each with what its caller is to be told by."""

    __slots__ = ("_key", "_lane_max", "_last", "_present", "_round", "_rounds", "_taken", "_waiting", "_waiting_max")

    def __init__(self, key: LaneKey, *, waiting_max: int, lane_max: int | None = None) -> None:
        """`lane_max`: commands of one lane that may wait; None: as many as of all."""
        assert waiting_max > 0
        assert lane_max is None or lane_max > 0
        self._key = _KEYS[key]
        self._waiting_max = waiting_max
        self._lane_max = waiting_max if lane_max is None else lane_max
        self._waiting = 0
        self._round = 0
        self._present: list[tuple[Command, T]] = []
        """The round that is being served, of which so many are taken."""
        self._taken = 0
        self._rounds: dict[int, list[tuple[Command, T]]] = {}
        """Those to come."""
        self._last: dict[Hashable, int] = {}
        """The round of each lane's last command; one that has gone by says no more than none."""

    def __len__(self) -> int:
        """Return how many commands wait."""
        return self._waiting

    def put(self, command: Command, ticket: T) -> bool:
        """Let a command wait. False: there are too many, of all or of its lane."""
        if self._waiting >= self._waiting_max:
            return False
        lane = self._key(command)
        now = self._round
        its_round = self._last.get(lane, 0) + 1
        if its_round <= now:
            its_round = now + 1
        elif its_round > now + self._lane_max:
            return False
        self._last[lane] = its_round
        waiting = self._rounds.get(its_round)
        if waiting is None:
            self._rounds[its_round] = [(command, ticket)]
        else:
            waiting.append((command, ticket))
        self._waiting += 1
        return True

    def take(self, group_max: int) -> list[tuple[Command, T]]:
        """Return the next commands with their tickets, at most so many, in the order in which to carry them out."""
        assert group_max > 0
        group: list[tuple[Command, T]] = []
        while self._waiting and len(group) < group_max:
            if self._taken == len(self._present):
                self._round += 1
                self._present = self._rounds.pop(self._round)
                self._taken = 0
            turn = self._present[self._taken : self._taken + group_max - len(group)]
            group += turn
            self._taken += len(turn)
            self._waiting -= len(turn)
        if len(self._last) > 2 * self._waiting + IDLE_LANES_MAX:
            # As many leave as came since the last time, or more: O(1) for each.
            self._last = {lane: last for lane, last in self._last.items() if last > self._round}
        return group

    def check_invariants(self) -> None:
        """Assert I3, I4, and what I1 and I2 follow from: no lane is twice in a round."""
        rounds = {self._round: self._present[self._taken :], **self._rounds}
        assert self._waiting == sum(map(len, rounds.values())) <= self._waiting_max, "I3"
        assert sorted(rounds) == list(range(self._round, self._round + len(rounds))), "I4"
        assert len(self._rounds) <= self._lane_max, "I3"
        last: dict[Hashable, int] = {}
        for number, waiting in sorted(rounds.items()):
            lanes = [self._key(command) for command, _ in waiting]
            assert len(set(lanes)) == len(lanes), "I2"
            last.update({lane: number for lane in lanes if number > self._round})
        assert last.items() <= self._last.items(), "I1"
