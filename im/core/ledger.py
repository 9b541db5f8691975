"""Carries out commands: gives every entry its place, and decides who may do what.

A *batch* is what one transaction does. It is begun, told what it needs to know until it needs nothing more, and
executed; the store then writes the changes, all or none:

    needs = ledger.begin(commands)
    while needs is not None:
        ledger.learn(store.facts(needs))
        needs = ledger.more()
    changes = ledger.execute()

Between batches the ledger remembers where conversations and timelines end, who is in the groups, and which fan-outs go
on. If a transaction fails, what it remembers is ahead of the truth: the store throws it away and makes another one from
what is durable.

Drafts that were queued by one batch are carried out by the next one, before its commands, or before the next thing that
their sender does in the same batch, so that nothing overtakes them; what becomes of each is an entry of a log or a note
of failure, in that transaction.

Invariants:
    I1  Seqs of a conversation and offsets of a timeline are given in order, without a hole or a repeat; `cseq` grows by
        one with each message and with nothing else.
    I2  A key is used once; whatever comes with it again gets the first one's place, or a conflict.
    I3  A refused command changes nothing.
    I4  Only who is in a conversation at that point of its log gets the entry, and nobody else, but for those whom a
        group's event removed: it is the last one that they get.
    I5  A queued draft becomes exactly one of: an entry, a note of failure.
    I6  What another shard has for timelines here is taken over once, in the order of its positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from im.core import grouping, receiving, sending, viewing
from im.core.book import DIRECT_MAX, Book, LedgerSettings
from im.core.commands import (
    ChangeGroup,
    Command,
    CreateGroup,
    Draft,
    KeyConflict,
    Mark,
    Outcome,
    Queued,
    Receive,
    Refused,
    Revise,
    Sent,
    Trim,
    Trimmed,
)
from im.core.facts import Changes, Facts, Key, Needs, Pair, QueuedDraft
from im.core.model import Message, Pending

__all__ = ["DIRECT_MAX", "Ledger", "LedgerSettings"]

_json = msgspec.json.Encoder()


class Ledger:
    """See the module."""

    def __init__(
        self,
        settings: LedgerSettings,
        *,
        last_n: int,
        last_cid: int,
        pendings: Iterable[tuple[Pending, Message]] = (),
        queued: Iterable[QueuedDraft] = (),
        last_out: int = 0,
        received: Mapping[int, int] | None = None,
    ) -> None:
        """Go on from what is durable.

        Args:
            settings: what decisions depend on.
            last_n: the greatest one given.
            last_cid: the greatest one counted.
            pendings: fan-outs that go on, in the order of their messages.
            queued: drafts, in the order of their positions.
            last_out: the greatest position of what went out.
            received: by shard, the position up to which everything from it was taken over.
        """
        self._book = Book(
            settings,
            last_n=last_n,
            last_cid=last_cid,
            pendings=pendings,
            last_out=last_out,
            received=received or {},
        )
        self._queue = {(one.draft.sender, one.draft.client_msg_id): one for one in queued}
        """In the order of positions."""
        self._queuing = {sender for sender, _ in self._queue}
        """Whose drafts are in the queue."""
        self._position = next(reversed(self._queue.values())).position if self._queue else 0
        self._commands: Sequence[Command] = ()
        self._involved: list[Command] = []
        """Those that may need more than what `begin` asks for."""
        self._looked_at: set[int] = set()
        """Conversations of which the heads of all users were asked for."""
        self._named = 0
        """At most so many users enter or leave groups in this batch."""
        self._asked = Needs()
        self._needs = Needs()
        """The last ones."""

    @property
    def has_work(self) -> bool:
        """Whether an empty batch would do something: drafts are queued, or fan-outs go on."""
        return bool(self._queue) or self._book.timelines.has_work

    # ------------------------------------------------------------ learning

    def begin(self, commands: Sequence[Command]) -> Needs | None:
        """Take the batch's commands and return what must be known first, None for nothing."""
        self._book.begin()
        self._commands = commands
        queue = [queued.draft for queued in self._queue.values()]
        self._involved = [draft for draft in queue if not draft.to]
        self._asked = Needs()
        keys: dict[Key, None] = {}
        direct = [draft for draft in queue if draft.to]
        self._looked_at.clear()
        self._named = 0
        for command in commands:
            if isinstance(command, Draft):
                keys[command.sender, command.client_msg_id] = None
                if command.to:
                    direct.append(command)
                    continue
            elif isinstance(command, Revise):
                keys[command.sender, command.client_msg_id] = None
            elif isinstance(command, CreateGroup):
                keys[command.owner, command.client_msg_id] = None
            elif isinstance(command, ChangeGroup):
                self._named += 1 + len(command.users)
            self._involved.append(command)
        needs = self._needs_of_direct(direct)
        needs.keys = list(keys)
        self._need_more(needs)
        return self._ask(needs)

    def learn(self, facts: Facts) -> None:
        """Take what the store knows about the needs; what it does not name is not there."""
        self._book.learn(facts)
        for user in self._needs.users:
            self._book.timelines.heads.setdefault(user, 0)

    def more(self) -> Needs | None:
        """Return what must be known beside what was learned, None for nothing: then `execute`."""
        if not self._involved and not self._book.timelines.has_work:
            return None
        needs = Needs()
        self._need_more(needs)
        return self._ask(needs)

    def _ask(self, needs: Needs) -> Needs | None:
        """Take out what is named twice, and what was asked before: what the store did not answer is not there."""
        for name in needs.__slots__:
            wanted = getattr(needs, name)
            if wanted:
                asked = getattr(self._asked, name)
                before = set(asked)
                new = [need for need in dict.fromkeys(wanted) if need not in before]
                setattr(needs, name, new)
                asked.extend(new)
        self._needs = needs
        return needs or None

    def _needs_of_direct(self, drafts: Iterable[Draft]) -> Needs:
        """Return what drafts to users need. Most drafts are such, and most need nothing: this is the quick way."""
        singles, timelines = self._book.singles, self._book.timelines
        heads = timelines.heads
        pairs: dict[Pair, None] = {}
        users: dict[str, None] = {}
        for draft in drafts:
            sender, to = draft.sender, draft.to
            pair = (sender, to) if sender < to else (to, sender)
            if pair not in singles:
                pairs[pair] = None
            if sender not in heads and timelines.needs(sender):
                users[sender] = None
            if to not in heads and timelines.needs(to):
                users[to] = None
        return Needs(pairs=list(pairs), users=list(users))

    def _need_more(self, needs: Needs) -> None:
        for command in self._involved:
            self._need(command, needs)
        timelines = self._book.timelines
        for cid in timelines.to_resume():
            log = self._book.logs.get(cid)
            if log is None:
                needs.cids.append(cid)
            else:
                timelines.resume(cid, log.users)
        self._need_heads(timelines.users_of_next_step(), needs)

    def _need(self, command: Command, needs: Needs) -> None:
        match command:
            case Draft():
                self._need_log(command.cid, command.sender, needs)
                self._need_heads((command.sender,), needs)  # to be told of a failure
            case Revise():
                self._need_log(command.cid, command.sender, needs)
                needs.messages.append((command.cid, command.seq))
            case Mark():
                self._need_view(command, needs)
            case CreateGroup():
                users = (command.owner, *command.members)
                self._need_heads(users, needs)
                needs.groups_of.extend(users)
                repeated = self._book.facts.messages_by_key.get((command.owner, command.client_msg_id))
                if repeated is not None and repeated.cid:
                    self._need_log(repeated.cid, command.owner, needs)
            case ChangeGroup():
                self._need_log(command.cid, command.by, needs)
                self._need_told(command, needs)
                users = (command.by, *command.users) if command.by else command.users
                self._need_heads(users, needs)
                if command.action in ("invite", "join"):
                    needs.groups_of.extend(users)
            case Receive():
                receiving.need(self._book, command, needs)
            case Sent():
                pass
            case _:
                assert isinstance(command, Trim)
                self._need_heads((command.user,), needs)

    def _need_log(self, cid: int, user: str, needs: Needs) -> None:
        """Need the conversation, and the heads of whoever may get an entry for what happens there."""
        log = self._book.logs.get(cid)
        if log is None:
            needs.cids.append(cid)
        elif log.conversation.fan_out == "write" or log.conversation.group is None:
            self._need_all_heads(cid, needs)
        elif user:
            self._need_heads((user,), needs)

    def _need_told(self, command: ChangeGroup, needs: Needs) -> None:
        """Need the heads of those whom the change of a group with read fan-out is told to, beside those it names."""
        log = self._book.logs.get(command.cid)
        if log is None or (group := log.conversation.group) is None:
            return
        # So few that the group may become small enough for direct pushes in this batch, or too large for them.
        may_cross = len(log.users) <= DIRECT_MAX + self._named
        if may_cross or command.action in ("dissolve", "fan_out"):
            self._need_all_heads(command.cid, needs)
        else:
            self._need_heads((group.owner,), needs)

    def _need_all_heads(self, cid: int, needs: Needs) -> None:
        if cid not in self._looked_at:
            self._looked_at.add(cid)
            self._need_heads(self._book.logs[cid].users, needs)

    def _need_view(self, mark: Mark, needs: Needs) -> None:
        self._need_heads((mark.user,), needs)
        needs.views.append((mark.user, mark.cid))
        log = self._book.logs.get(mark.cid)
        if log is None:
            needs.cids.append(mark.cid)
            return
        if not log.has(mark.user):
            needs.members.append((mark.cid, mark.user))
        # The end as well: it is no longer the end if the batch goes on there.
        if mark.read_seq is not None and 0 < mark.read_seq <= log.max_seq:
            needs.messages.append((mark.cid, mark.read_seq))

    def _need_heads(self, users: Iterable[str], needs: Needs) -> None:
        timelines = self._book.timelines
        needs.users.extend(user for user in users if timelines.needs(user))

    # ------------------------------------------------------------ executing

    def execute(self) -> Changes:
        """Carry out the batch. Everything that it needed must have been learned."""
        book = self._book
        changes = book.changes
        queue, self._queue = self._queue, {}
        self._queuing.clear()
        for queued in queue.values():
            self._dequeue(queued.draft)
            changes.dequeued_through = queued.position
        for command in self._commands:
            if isinstance(command, Draft):
                if command.sender in self._queuing and not command.is_queued:
                    self._catch_up()
                changes.outcomes.append(self._send(command))
            else:
                if _who(command) in self._queuing:
                    self._catch_up()
                changes.outcomes.append(self._carry_out(command))
        book.timelines.step(changes)
        return changes

    def _catch_up(self) -> None:
        """Carry out what this batch has queued: what comes next is of one of those senders, and must not overtake."""
        queue, self._queue = self._queue, {}
        self._queuing.clear()
        self._book.changes.queued.clear()
        for queued in queue.values():
            self._dequeue(queued.draft)

    def _carry_out(self, command: Command) -> Outcome:
        match command:
            case Revise():
                return sending.revise(self._book, command)
            case Mark():
                return viewing.mark(self._book, command)
            case CreateGroup():
                return grouping.create(self._book, command)
            case ChangeGroup():
                return grouping.change(self._book, command)
            case Receive():
                return receiving.receive(self._book, command)
            case Sent():
                return receiving.sent(self._book, command)
            case _:
                assert isinstance(command, Trim)
                floors = self._book.changes.floors
                floor = max(min(command.through, self._book.timelines.heads[command.user]), floors.get(command.user, 0))
                floors[command.user] = floor
                return Trimmed(floor)

    def _send(self, draft: Draft) -> Outcome:
        existing = self._book.facts.messages_by_key.get((draft.sender, draft.client_msg_id))
        if existing is not None:
            return sending.repeated(draft, existing)
        # Before it is queued: what is in the queue becomes an entry, or fails for good.
        if draft.cid and (refused := sending.busy(self._book, draft.cid, draft.sender)) is not None:
            return refused
        return self._queued(draft) if draft.is_queued else sending.place(self._book, draft)

    def _queued(self, draft: Draft) -> Outcome:
        """Queue the draft, or return what is due for one whose key is queued."""
        key = (draft.sender, draft.client_msg_id)
        earlier = self._queue.get(key)
        if earlier is not None:
            other = earlier.draft
            return Queued(other.mid, is_new=False) if _payload(other) == _payload(draft) else KeyConflict(None)
        self._position += 1
        queued = QueuedDraft(self._position, draft)
        self._queue[key] = queued
        self._queuing.add(draft.sender)
        self._book.changes.queued.append(queued)
        return Queued(draft.mid, is_new=True)

    def _dequeue(self, draft: Draft) -> None:
        outcome = sending.place(self._book, draft)
        if isinstance(outcome, Refused):
            cause = outcome.cause
            body = _json.encode({"cause": cause.name, "message": cause.value, "detail": outcome.detail})
            self._book.note_failure(draft, body)

    def check_invariants(self) -> None:
        """Assert what can be read off one state; tests call it after every batch."""
        self._book.check_invariants()
        positions = [queued.position for queued in self._queue.values()]
        assert positions == sorted(set(positions)), "I5"
        assert self._queuing == {sender for sender, _ in self._queue}


def _who(command: Command) -> str:
    """Return whose command it is."""
    match command:
        case Draft() | Revise():
            return command.sender
        case Mark() | Trim():
            return command.user
        case CreateGroup():
            return command.owner
        case Receive() | Sent():
            return ""  # nobody's: a sender has a name
        case _:
            return command.by


def _payload(draft: Draft) -> tuple[object, ...]:
    return (draft.to, draft.cid, draft.kind, draft.body, draft.ref, draft.mentions)
