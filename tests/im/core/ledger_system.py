"""A system of several ledgers, compared with the dumb twin of a single one.

Each command is carried out by its conversation's shard. What goes out waits there until somebody brings it over, a few
entries at a time, perhaps again, perhaps long after; each shard may crash between any two batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

from msgspec.structs import replace

from im.core.commands import (
    Appended,
    ChangeGroup,
    Command,
    CreateGroup,
    Draft,
    GroupChanged,
    Mark,
    Outcome,
    Outgoing,
    Receive,
    Received,
    Refused,
    Revise,
    Sent,
    Trim,
)
from im.core.ledger import LedgerSettings
from im.core.model import Form, Message, Overlay
from im.core.shards import CID_STRIDE, shard_of_cid, shard_of_single, shard_of_user
from tests.im.core.ledger_commands import USERS, random_command
from tests.im.core.ledger_twin import Twin
from tests.im.core.ledger_world import World

__all__ = ["System"]

NO_SHARD_TELLS_DIRECTLY = -1


class System:
    """The shards of a system, and the twin of a system with one."""

    def __init__(self, settings: LedgerSettings, shards: int) -> None:
        self.shards = shards
        self.worlds = [World(replace(settings, shard=shard, shards=shards)) for shard in range(shards)]
        self.twin = Twin(settings, small=NO_SHARD_TELLS_DIRECTLY)
        self._sent: list[Command] = []
        self._cids: dict[int, int] = {0: 0}
        """By the twin's numbers, those of the shards."""

    # ------------------------------------------------------------ commands

    def send(self, draw: random.Random) -> None:
        """Carry out a random command, or one of the last ones once more.

        No key is used in two conversations: their shards would not know of each other.
        """
        command = random_command(draw, self.twin, key=f"k{len(self._sent)}")
        if self._sent and draw.random() < 0.1:
            command = draw.choice(self._sent[-20:])
        if not isinstance(command, Trim):  # the twin's timelines are ahead of these
            self._sent.append(command)
            self.run(command)

    def run(self, command: Command) -> Outcome:
        """Carry out a command of the twin's, here and there, and compare what comes of it."""
        for world in self.worlds:
            if world.queued:
                world.run()  # as the twin does: what is queued may be a conversation's beginning
        self.twin.catch_up()
        mine = self._translated(command)
        world = self.worlds[self._shard_of(mine)]
        (outcome,), (expected,) = world.run(mine), self.twin.batch([command])
        assert _essence(outcome) == _essence(expected), (mine, outcome, expected)
        if isinstance(outcome, Appended | GroupChanged) and outcome.message is not None:
            assert isinstance(expected, Appended | GroupChanged)
            assert expected.message is not None
            self._same(expected.message.cid, outcome.message.cid)
        return outcome

    def _translated(self, command: Command) -> Command:
        cid: int = getattr(command, "cid", 0)
        return replace(command, cid=self.cid(cid)) if cid else command  # type: ignore[type-var]

    def cid(self, cid: int) -> int:
        """The number here of a conversation of the twin's; of one that is in no shard, a number that is not drawn."""
        if cid not in self._cids:
            one = self.twin.conversations.get(cid)
            found = self._single(one.lo, one.hi) if one is not None and one.group is None else 0
            if not found:
                return (900 + cid) * CID_STRIDE + cid % self.shards
            self._same(cid, found)
        return self._cids[cid]

    def _single(self, lo: str, hi: str) -> int:
        world = self.worlds[shard_of_single(lo, hi, self.shards)]
        return next((cid for cid, one in world.conversations.items() if (one.lo, one.hi) == (lo, hi)), 0)

    def _same(self, of_twin: int, here: int) -> None:
        assert self._cids.setdefault(of_twin, here) == here

    def _shard_of(self, command: Command) -> int:
        match command:
            case Draft() if command.to:
                return shard_of_single(command.sender, command.to, self.shards)
            case Draft() | Revise() | Mark() | ChangeGroup():
                return shard_of_cid(command.cid, self.shards)
            case CreateGroup():
                return shard_of_user(command.owner, self.shards)
            case _:
                raise AssertionError(command)

    # ------------------------------------------------------------ between shards

    def waiting(self, source: int, target: int) -> list[Outgoing]:
        """What is in the outbox, whether or not it was taken over."""
        return [entry for entry in self.worlds[source].outbox if entry.shard == target]

    def deliver(self, source: int, target: int, draw: random.Random) -> int:
        """Bring some over, from the first one on that was not taken over, or from an earlier one; return how many."""
        waiting = self.waiting(source, target)
        if not waiting:
            return 0
        through = self.worlds[target].received.get(source, 0)
        is_new = [entry.position > through for entry in waiting]
        first = is_new.index(True) if True in is_new else len(waiting) - 1
        start = max(0, first - draw.choice((0, 0, 1, 5)))
        entries = tuple(waiting[start : first + draw.choice((1, 2, 20))])
        commands: list[Command] = [Receive(source, entries)] * draw.choice((1, 1, 2))
        reached = max(through, entries[-1].position)
        assert self.worlds[target].run(*commands) == [Received(reached)] * len(commands)
        if draw.random() < 0.5:  # else the answer was lost; or it comes late
            self.worlds[source].run(Sent(target, draw.choice((reached, entries[0].position))))
        return len(entries)

    def settle(self) -> None:
        """Let everything come to its end, and compare."""
        draw = random.Random(1)
        while any(world.ledger.has_work for world in self.worlds):
            for world in self.worlds:
                world.drain()
        self.twin.catch_up()
        for source in range(self.shards):
            for target in range(self.shards):
                while any(
                    entry.position > self.worlds[target].received.get(source, 0)
                    for entry in self.waiting(source, target)
                ):
                    self.deliver(source, target, draw)
        self.compare()

    # ------------------------------------------------------------ comparing

    def compare(self) -> None:
        """Each user has the twin's entries, each once, and of each conversation in their order."""
        for user in USERS:
            world = self.worlds[shard_of_user(user, self.shards)]
            assert all(user not in other.timelines for other in self.worlds if other is not world)
            meant = _by_conversation(self._moved(message) for message in self.twin.timelines.get(user, ()))
            assert _by_conversation(map(_placeless, world.timelines.get(user, ()))) == meant, user
        for cid, log in self.twin.logs.items():
            world = self.worlds[shard_of_cid(self.cid(cid), self.shards)]
            assert list(map(_placeless, world.logs[self.cid(cid)])) == list(map(self._moved, log))
        for world in self.worlds:
            foreign = {place: one for place, one in world.overlays.items() if place[0] not in world.logs}
            assert foreign == self._covered(world)

    def _covered(self, world: World) -> dict[tuple[int, int], Overlay]:
        """What became of other shards' messages, as the edits and recalls in timelines here say by themselves."""
        revisions: dict[tuple[int, int], dict[int, Message]] = {}
        for timeline in world.timelines.values():
            for entry in timeline:
                if entry.form in (Form.EDIT, Form.RECALL) and entry.cid not in world.logs:
                    revisions.setdefault((entry.cid, entry.ref), {})[entry.seq] = entry
        found: dict[tuple[int, int], Overlay] = {}
        for (cid, ref), by_seq in revisions.items():
            entries = [by_seq[seq] for seq in sorted(by_seq)]
            for before, after in pairwise(entries):
                found[cid, before.seq] = Overlay(cid, before.seq, after.seq, False, 0, b"", b"")
            last = entries[-1]
            is_recall = last.form == Form.RECALL
            found[cid, ref] = Overlay(cid, ref, last.seq, is_recall, 0, last.body, last.mentions)
        return found

    def _moved(self, message: Message) -> Message:
        return replace(_placeless(message), cid=self.cid(message.cid))


def _placeless(message: Message) -> Message:
    """The message as it is in any store."""
    return replace(message, n=0, origin=0)


def _by_conversation(timeline: Iterable[Message]) -> dict[tuple[int, bool], list[Message]]:
    """Notes and entries of a log apart: a note may overtake a fan-out."""
    found: dict[tuple[int, bool], list[Message]] = {}
    for message in timeline:
        found.setdefault((message.cid, message.form == Form.NOTE), []).append(message)
    return found


def _essence(outcome: Outcome) -> object:
    """What is said of a command, but for numbers."""
    is_new = getattr(outcome, "is_new", None)
    message = getattr(outcome, "message", None)
    cause = outcome.cause if isinstance(outcome, Refused) else None
    return (type(outcome), is_new, cause, message.seq if message is not None else 0)
