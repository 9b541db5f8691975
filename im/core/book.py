"""What the ledger works on: the conversations and timelines that it remembers, and the batch that it carries out.

The parts of the ledger (`sending`, `viewing`, `grouping`) are functions that take a book and a command and return an
outcome. Whatever they write goes through the methods here, which give every entry its number.

Invariants:
    I1  A conversation that is remembered is as the store has it, with what the batch added: none is remembered that
        the store will not have after the batch.
    I2  The users of a log are in order and each there once; a group's are its present members.
    I3  A single conversation is found by its number and by its users, or by neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from base.clock import Timestamp
from im.core.commands import Delivery, Draft
from im.core.facts import Changes, ConversationFacts, Facts, Pair
from im.core.fan_out import PRESETS, FanOutPolicy
from im.core.model import EVERYBODY, Conversation, Form, Member, Message, Pending
from im.core.pair_ids import COUNTED_MAX, pair_cid
from im.core.shards import CID_STRIDE
from im.core.timelines import Timelines

__all__ = ["DIRECT_MAX", "Book", "LedgerSettings", "Log"]

DIRECT_MAX = 100
"""Members that a conversation with read fan-out may have for its messages to be pushed to each member directly."""


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger's decisions depend on, beside the commands."""

    policy: FanOutPolicy = PRESETS["hybrid"]
    conversation_ids: Literal["counted", "special"] = "counted"
    recall_window_ms: int = 120_000
    edit_window_ms: int = 900_000
    groups_of_user_max: int = 1_000
    remembered_max: int = 100_000
    """Conversations, and half of the users, of which the ends stay in memory: about 400 bytes each."""
    shard: int = 0
    shards: int = 1

    @property
    def counted_max(self) -> int:
        """The greatest cid that is counted: of one shard those above may be computed."""
        return COUNTED_MAX if self.shards == 1 else (1 << 63) - 1

    @property
    def has_direct(self) -> bool:
        """Whether the messages of small conversations with read fan-out are pushed to each member.

        Their users would find what was lost by their sync version, which nobody knows who has one shard alone.
        """
        return self.shards == 1


@dataclass(slots=True)
class Log:
    """A conversation and where its log ends. `users`: who is in it now, in order."""

    conversation: Conversation
    max_seq: int
    max_cseq: int
    users: tuple[str, ...]
    members: dict[str, Member] = field(default_factory=dict)
    """Of a group."""

    def other(self, user: str) -> str:
        """Return with whom the user is in a single conversation; "" in a group."""
        if self.conversation.group is not None:
            return ""
        return self.users[0] if self.users[-1] == user else self.users[-1]

    def has(self, user: str) -> bool:
        """Return whether the user is in the conversation now, at the same cost however many are."""
        return user in (self.members if self.conversation.group is not None else self.users)

    def first_seq(self, user: str) -> int:
        """Return the first entry that a present user may see."""
        return self.members[user].first_seq if self.members else 1


class Book:
    """See the module. `facts`, `changes` and `fresh` are the batch's."""

    def __init__(
        self,
        settings: LedgerSettings,
        *,
        last_n: int,
        last_cid: int,
        pendings: Iterable[tuple[Pending, Message]],
        last_out: int,
        received: Mapping[int, int],
    ) -> None:
        self.settings = settings
        self.logs: dict[int, Log] = {}
        self.singles: dict[Pair, Log] = {}
        self.timelines = Timelines(pendings, shard=settings.shard, shards=settings.shards, last_out=last_out)
        self.received = dict(received)
        """By shard: the position up to which everything from it was taken over."""
        self.facts = Facts()
        self.changes = Changes()
        self.fresh: dict[tuple[int, int], Message] = {}
        """This batch's entries by (cid, seq): the store does not have them yet."""
        self._last_n = last_n
        self._last_cid = last_cid

    def begin(self) -> None:
        """Turn to a new batch; forget what can be asked for again if it has become much."""
        self.facts = Facts()
        self.changes = Changes()
        self.fresh = {}
        most = self.settings.remembered_max
        if len(self.logs) > most or self.timelines.known > 2 * most:
            self.logs.clear()
            self.singles.clear()
            self.timelines.forget()

    def learn(self, facts: Facts) -> None:
        """Take what the store knows."""
        mine = self.facts
        mine.messages_by_key.update(facts.messages_by_key)
        mine.views.update(facts.views)
        mine.members.update(facts.members)
        mine.messages.update(facts.messages)
        mine.overlays.update(facts.overlays)
        mine.groups_of.update(facts.groups_of)
        for known in facts.conversations:
            self.remember(known)
        self.timelines.heads.update(facts.heads)

    def remember(self, known: ConversationFacts) -> Log:
        """Remember a conversation that the store has, or that is made now."""
        conversation = known.conversation
        users: tuple[str, ...]
        if conversation.group is not None:
            users = tuple(sorted(member.user for member in known.members))
        elif conversation.lo == conversation.hi:
            users = (conversation.lo,)
        else:
            users = (conversation.lo, conversation.hi)
        members = {member.user: member for member in known.members}
        log = self.logs[conversation.cid] = Log(conversation, known.max_seq, known.max_cseq, users, members)
        if conversation.group is None:
            self.singles[conversation.lo, conversation.hi] = log
        return log

    def has_single(self, one: str, other: str) -> bool:
        """Return whether the two users have a single conversation."""
        return ((one, other) if one < other else (other, one)) in self.singles

    def single(self, one: str, other: str) -> Log:
        """Return the single conversation of the two users; it is made if there is none."""
        pair = (one, other) if one < other else (other, one)
        log = self.singles.get(pair)
        if log is not None:
            return log
        cid = pair_cid(*pair) if self.settings.conversation_ids == "special" else None
        conversation = Conversation(cid or self.next_cid(), "single", self.settings.policy.single, *pair)
        return self.remember(ConversationFacts(conversation, 0, 0))

    def next_cid(self) -> int:
        """Return the id of a new conversation."""
        shards = self.settings.shards
        if shards == 1:
            self._last_cid += 1
        else:
            self._last_cid = (self._last_cid // CID_STRIDE + 1) * CID_STRIDE + self.settings.shard
        assert self._last_cid <= self.settings.counted_max, "those above are computed"
        return self._last_cid

    def message(self, log: Log, draft: Draft) -> Message:
        """Return the next entry of the log, the message of the draft. What `entry` does, quicker for what is most."""
        conversation, sender = log.conversation, draft.sender
        seq = log.max_seq = log.max_seq + 1
        cseq = log.max_cseq = log.max_cseq + 1
        n = self._last_n = self._last_n + 1
        cid = conversation.cid
        message = Message(
            n,
            cid,
            seq,
            cseq,
            draft.mid,
            sender,
            draft.device,
            draft.to or log.other(sender),
            draft.client_msg_id,
            Form.MESSAGE,
            draft.kind,
            draft.ref,
            draft.body,
            draft.mentions,
            draft.at,
        )
        self.fresh[cid, seq] = self.facts.messages_by_key[sender, draft.client_msg_id] = message
        return message

    def entry(
        self,
        log: Log,
        form: Form,
        kind: str,
        *,
        mid: int | str,
        sender: str,
        device: str,
        client_msg_id: str,
        body: bytes,
        at: Timestamp,
        ref: int = 0,
        mentions: bytes = b"",
    ) -> Message:
        """Return the next entry of the log, no message; what has a key is known by it from now on."""
        assert form != Form.MESSAGE
        log.max_seq += 1
        self._last_n += 1
        cid = log.conversation.cid
        entry = self.fresh[cid, log.max_seq] = Message(
            self._last_n,
            cid,
            log.max_seq,
            log.max_cseq,
            mid,
            sender,
            device,
            log.other(sender),
            client_msg_id,
            form,
            kind,
            ref,
            body,
            mentions,
            at,
        )
        if client_msg_id:
            self.facts.messages_by_key[sender, client_msg_id] = entry
        return entry

    def tell(self, log: Log, entry: Message) -> None:
        """Store the entry and have the conversation's users told."""
        if log.conversation.fan_out == "write":
            self.timelines.spread(entry, log.users, self.changes)
            return
        members = log.users if self.is_direct(log.users) else ()
        self.changes.messages.append((entry, ()))
        self.changes.deliveries.append(Delivery(entry, (), "read", members=members))

    def is_direct(self, users: Sequence[str]) -> bool:
        """Return whether these, who are all in a conversation with read fan-out, are told its messages directly."""
        return len(users) <= DIRECT_MAX and self.settings.has_direct

    def take_over(self, source: int, message: Message, users: Sequence[str]) -> None:
        """Put an entry of another shard's log into timelines here."""
        self._last_n += 1
        message = msgspec.structs.replace(message, n=self._last_n, origin=source + 1)
        positions = self.timelines.give(message, users, self.changes)
        self.changes.messages.append((message, positions))
        self.changes.deliveries.append(Delivery(message, positions, "write", is_first=False))

    def note(self, user: str, kind: str, body: bytes, *, cid: int, device: str, at: Timestamp) -> None:
        """Tell the user, and nobody else, something about the conversation."""
        self._note(Message(0, cid, 0, 0, 0, user, device, "", "", Form.NOTE, kind, 0, body, b"", at))

    def note_failure(self, draft: Draft, body: bytes) -> None:
        """Tell the sender what became of a draft that was queued: its key stands for that from now on."""
        note = Message(
            0,
            draft.cid,
            0,
            0,
            draft.mid,
            draft.sender,
            draft.device,
            draft.to,
            draft.client_msg_id,
            Form.NOTE,
            "failure",
            0,
            body,
            b"",
            draft.at,
        )
        self.facts.messages_by_key[draft.sender, draft.client_msg_id] = self._note(note)

    def _note(self, note: Message) -> Message:
        self._last_n += 1
        note = msgspec.structs.replace(note, n=self._last_n)
        positions = self.timelines.give(note, (note.sender,), self.changes)
        self.changes.messages.append((note, positions))
        self.changes.deliveries.append(Delivery(note, positions, "write"))
        return note

    def mention(self, log: Log, entry: Message, seq: int) -> None:
        """Remember whom the entry mentions, as mentioned at `seq`; who is not there, or sends it, is not."""
        users: Sequence[str] = msgspec.json.decode(entry.mentions)
        for user in users:
            if user == EVERYBODY or (log.has(user) and user != entry.sender):
                self.changes.mentions.append((entry.cid, user, seq))

    def check_invariants(self) -> None:
        """Assert what can be read off one state."""
        self.timelines.check_invariants()
        for cid, log in self.logs.items():
            assert log.conversation.cid == cid
            assert 0 <= log.max_cseq <= log.max_seq, "I1"
            assert log.max_seq, "I1: nothing is in it"
            assert list(log.users) == sorted(set(log.users)), "I2"
            if log.conversation.group is not None:
                assert log.users == tuple(sorted(log.members)), "I2"
                assert all(member.leave_seq == 0 for member in log.members.values()), "I2"
            else:
                assert self.singles[log.conversation.lo, log.conversation.hi] is log, "I3"
        for (lo, hi), log in self.singles.items():
            assert (log.conversation.lo, log.conversation.hi) == (lo, hi), "I3"
            assert self.logs[log.conversation.cid] is log, "I3"
