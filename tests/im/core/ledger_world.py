"""A disk of dicts under a ledger, strict about what it is asked and given, and short ways to write commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from im.core import book, ledger, timelines, viewing
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
    Revise,
)
from im.core.facts import Changes, ConversationFacts, Facts, Needs, QueuedDraft
from im.core.ledger import Ledger, LedgerSettings
from im.core.model import Conversation, Form, Member, Message, Overlay, Pending, View

AT = Timestamp(1_000_000)


@contextmanager
def small_bounds() -> Iterator[None]:
    """Let a handful of users be many: fan-outs take steps, and small groups become large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timelines, "AT_ONCE_MAX", 2)
        patch.setattr(timelines, "TURN_MAX", 2)
        patch.setattr(timelines, "STEP_MAX", 3)
        for module in (book, ledger, viewing):
            patch.setattr(module, "DIRECT_MAX", 3)
        yield


def draft(sender: str, to: str | int, key: str, body: str = "1", **fields: Any) -> Draft:
    """A message to a user, or into the conversation with that number."""
    place = ("", to) if isinstance(to, int) else (to, 0)
    return Draft(7, sender, "phone", *place, key, "text", body.encode(), fields.pop("at", AT), **fields)


def edit(sender: str, cid: int, seq: int, key: str, body: str = "2", **fields: Any) -> Revise:
    return Revise(7, sender, "phone", cid, seq, key, False, body.encode(), fields.pop("at", AT), **fields)


def recall(sender: str, cid: int, seq: int, key: str, **fields: Any) -> Revise:
    return Revise(7, sender, "phone", cid, seq, key, True, b"", fields.pop("at", AT))


def mark(user: str, cid: int, **fields: Any) -> Mark:
    return Mark(user, "phone", cid, AT, **fields)


def group(owner: str, members: Sequence[str], key: str = "g", name: str = "club", **settings: str) -> CreateGroup:
    return CreateGroup(7, owner, "phone", key, name, tuple(members), AT, tuple(settings.items()))


def change(by: str, cid: int, action: Any, *users: str, value: str = "", **settings: str) -> ChangeGroup:
    return ChangeGroup(7, by, "phone", cid, action, AT, users, value, tuple(settings.items()))


class World:
    """A ledger and its disk. `run` is one transaction; `restart` is what a crash leaves."""

    def __init__(self, settings: LedgerSettings | None = None) -> None:
        self.settings = settings or LedgerSettings()
        self.log: list[Message] = []
        self.logs: dict[int, list[Message]] = {}
        self.timelines: dict[str, list[Message]] = {}
        self.keys: dict[tuple[str, str], Message] = {}
        self.conversations: dict[int, Conversation] = {}
        self.members: dict[tuple[int, str], Member] = {}
        self.views: dict[tuple[str, int], View] = {}
        self.overlays: dict[tuple[int, int], Overlay] = {}
        self.mentions: set[tuple[int, str, int]] = set()
        self.pendings: dict[int, Pending] = {}
        self.queued: list[QueuedDraft] = []
        self.floors: dict[str, int] = {}
        self.outbox: list[Outgoing] = []
        self.sent: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.asked: list[Needs] = []
        """Of the last batch."""
        self.changes = Changes()
        """The last ones."""
        self.restart()

    def restart(self) -> None:
        """Throw the ledger away and make another one from what is durable."""
        self.ledger = Ledger(
            self.settings,
            last_n=len(self.log),
            last_cid=max((cid for cid in self.logs if cid <= self.settings.counted_max), default=0),
            pendings=[(pending, self.log[n - 1]) for n, pending in sorted(self.pendings.items())],
            queued=self.queued,
            last_out=max([*(one.position for one in self.outbox), *self.sent.values()], default=0),
            received=self.received,
        )

    def run(self, *commands: Command) -> list[Outcome]:
        """Carry out the commands in one batch."""
        self.asked = []
        needs = self.ledger.begin(commands)
        while needs is not None:
            self.asked.append(needs)
            self.ledger.learn(self.facts(needs))
            needs = self.ledger.more()
        self._named_once()
        self.changes = self.ledger.execute()
        self.write(self.changes)
        self.ledger.check_invariants()
        assert len(self.changes.outcomes) == len(commands)
        return self.changes.outcomes

    def one(self, command: Command) -> Any:
        """Carry out one command; return its outcome."""
        (outcome,) = self.run(command)
        return outcome

    def drain(self) -> None:
        """Let the ledger finish what it has begun."""
        while self.ledger.has_work:
            self.run()

    def _named_once(self) -> None:
        for name in Needs.__slots__:
            named = [need for needs in self.asked for need in getattr(needs, name)]
            assert len(named) == len(set(named)), name

    def facts(self, needs: Needs) -> Facts:
        pairs = {(one.lo, one.hi): cid for cid, one in self.conversations.items() if one.kind == "single"}
        cids = dict.fromkeys([*(pairs[pair] for pair in needs.pairs if pair in pairs), *needs.cids])
        present = [member for member in self.members.values() if not member.leave_seq]
        places = [place for place in needs.messages if 0 < place[1] <= len(self.logs.get(place[0], ()))]
        return Facts(
            messages_by_key={key: self.keys[key] for key in needs.keys if key in self.keys},
            conversations=[
                ConversationFacts(
                    self.conversations[cid],
                    self.logs[cid][-1].seq,
                    self.logs[cid][-1].cseq,
                    [member for member in present if member.cid == cid],
                )
                for cid in cids
                if cid in self.conversations
            ],
            heads={user: len(self.timelines[user]) for user in needs.users if user in self.timelines},
            views={place: self.views[place] for place in needs.views if place in self.views},
            members={place: self.members[place] for place in needs.members if place in self.members},
            messages={place: self.logs[place[0]][place[1] - 1] for place in places},
            overlays={
                place: self.overlays[place] for place in (*needs.messages, *needs.covered) if place in self.overlays
            },
            groups_of={
                user: count for user in needs.groups_of if (count := sum(member.user == user for member in present))
            },
        )

    def write(self, changes: Changes) -> None:
        """Write the changes as a store does, and assert that they fit what is there."""
        entries = [(user, offset, message) for message, given in changes.messages for user, offset in given]
        for user, offset, message in sorted([*entries, *changes.entries], key=lambda entry: entry[1]):
            timeline = self.timelines.setdefault(user, [])
            timeline.append(message)
            assert len(timeline) == offset, "I1"
        for message, _ in changes.messages:
            self.log.append(message)
            assert len(self.log) == message.n
            if message.origin:
                continue  # of another shard's log
            if message.client_msg_id:
                key = (message.sender, message.client_msg_id)
                assert key not in self.keys, "I2"
                self.keys[key] = message
            if message.form != Form.NOTE:
                self._write_entry(message)
        self.conversations |= changes.conversations
        self.members |= changes.members
        for place, view in changes.views.items():
            assert place[1] in self.logs
            self.views[place] = replace(view, sent_seq=0, sent_cseq=0)
        self.overlays |= changes.overlays
        self.mentions |= set(changes.mentions)
        for n, pending in changes.pendings.items():
            if pending is None:
                self.pendings.pop(n, None)
            else:
                self.pendings[n] = pending
        self.queued = [one for one in self.queued if one.position > changes.dequeued_through]
        self.queued += changes.queued
        for user, floor in changes.floors.items():
            self.floors[user] = max(floor, self.floors.get(user, 0))
        self._write_between_shards(changes)
        assert bool(changes) == bool(
            changes.messages or changes.entries or changes.views or changes.queued or changes.floors
            or changes.dequeued_through or changes.outgoing or changes.sent or changes.received
        )  # fmt: skip

    def _write_between_shards(self, changes: Changes) -> None:
        for entry in changes.outgoing:
            assert entry.message == self.log[entry.message.n - 1], "what goes out is durable with it"
            assert entry.position > max([0, *(one.position for one in self.outbox), *self.sent.values()])
            self.outbox.append(entry)
        for shard, through in changes.sent.items():
            self.outbox = [one for one in self.outbox if one.shard != shard or one.position > through]
            self.sent[shard] = through
        self.received |= changes.received

    def _write_entry(self, message: Message) -> None:
        entries = self.logs.setdefault(message.cid, [])
        before = entries[-1].cseq if entries else 0
        entries.append(message)
        assert (len(entries), before + (message.form == Form.MESSAGE)) == (message.seq, message.cseq), "I1"
        if message.seq == 1 and message.form == Form.MESSAGE:
            lo, hi = sorted([message.sender, message.recipient])
            self.conversations[message.cid] = Conversation(message.cid, "single", self.settings.policy.single, lo, hi)

    # ------------------------------------------------------------ what tests ask

    def told(self, user: str) -> list[tuple[int, int]]:
        """(cid, seq) of the user's timeline."""
        return [(message.cid, message.seq) for message in self.timelines.get(user, [])]

    def notes(self, user: str) -> list[tuple[str, Any]]:
        """Kind and body of the notes in the user's timeline."""
        return [
            (message.kind, msgspec.json.decode(message.body))
            for message in self.timelines.get(user, [])
            if message.form == Form.NOTE
        ]

    def cid_of(self, outcome: Outcome) -> int:
        """The conversation that the command was about."""
        assert isinstance(outcome, Appended | GroupChanged)
        assert outcome.message is not None
        return outcome.message.cid
