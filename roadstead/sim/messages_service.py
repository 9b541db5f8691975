"""The message services of a simulated history: one process, which crashes, before its disk, which does not.

The shell that a real service puts around the ledger, without asyncio: commands wait in lanes, a group of them is
carried out when the one before is durable, then their callers are answered and what is new is pushed. Each step is a
place to die at. Pushes are datagrams, which may be lost: the access nodes compare positions with heads to find out.

Whoever takes a guard away (`messages_guards`) shows that the checker would notice.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace as replaced

from base.clock import Instant, Timestamp
from im.core.commands import (
    Appended,
    ChangeGroup,
    Command,
    CreateGroup,
    Delivery,
    Draft,
    GroupChanged,
    KeyConflict,
    Mark,
    Marked,
    Outcome,
    Queued,
    Refused,
    Revise,
    Trim,
)
from im.core.facts import Changes, Facts, Needs
from im.core.lanes import Lanes
from im.core.ledger import Ledger
from im.core.model import Form, Message
from roadstead.client.rows import Publication
from roadstead.sim.host import Died, Host
from roadstead.sim.messages_guards import Guards, Presence, Pushed, Shape
from roadstead.sim.messages_link import Answer, Call, Frame, Stream
from roadstead.sim.messages_reading import READINGS, Reading
from roadstead.sim.messages_store import Rows

__all__ = ["POINTS", "Services"]

POINTS = ("decided", "committed", "answered")
"""Where the services may die: before what was decided is durable, after it, and when the callers know of it."""
DIE_PERMILLE = 12
DIE_IN_MIDST_PERMILLE = 25
"""While drafts are queued or fan-outs go on."""
FAIL_PERMILLE = 12
"""Transactions that fail although the process lives: half of them are durable all the same."""
PUSH_LOST_PERMILLE = 40
"""Pushes that are lost before the network, since nobody knew where to."""
OPERATE_MS = 1_500
MIDS_OF_LIFE = 1_000_000


Ticket = tuple[Stream, int] | None
"""Whom to answer, and which call."""


class Services:
    """One life of the message services."""

    def __init__(self, host: Host, rows: Rows, guards: Guards, shape: Shape, counts: Counter[str]) -> None:
        self._host = host
        self._rows = rows
        self._guards = guards
        self._shape = shape
        self._counts = counts
        if rows.pendings:
            counts["lives with fan-outs"] += 1
        if rows.queued:
            counts["lives with drafts"] += 1
        self._ledger = self._new_ledger()
        self._last_n = rows.last_n
        """What is newer was written in this life."""
        self._lanes: Lanes[Ticket] = Lanes("sender" if guards.lanes_by_sender else "recipient", waiting_max=1_000)
        self._links: dict[str, Stream] = {}
        self._present: dict[str, tuple[str, ...]] = {}
        self._reading = Reading(rows, guards, counts)
        self._commit_at: Instant | None = None
        self._operate_at = Instant(0)
        self._mid = host.incarnation * MIDS_OF_LIFE
        self.is_operated = True
        """Whether an operator still changes strategies."""

    # ------------------------------------------------------------ the actor

    def start(self, now: Instant) -> None:
        """Go on where the life before ended."""
        self._operate_at = Instant(now + self._host.dice.between(1, OPERATE_MS))
        self._plan(now)

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take a call, or who is where."""
        assert isinstance(message, Frame)
        link = self._links.get(source)
        if link is None or message.stream > link.number:
            link = self._links[source] = Stream(message.stream, lambda frame: self._host.send(source, frame), now)
            self._present.pop(source, None)
        if message.stream < link.number:
            return
        for body in link.take(message, now):
            if isinstance(body, Presence):
                self._present[source] = body.users
            else:
                assert isinstance(body, Call)
                self._take(body, link, now)
        self._plan(now)

    def wake(self, now: Instant) -> None:
        """Carry out the next group."""
        if self._commit_at is not None and self._commit_at <= now:
            self._commit_at = None
            self._carry_out(now)
        if self._operate_at <= now:
            self._operate_at = Instant(now + self._host.dice.between(1, 2 * OPERATE_MS))
            self._operate(now)
        self._plan(now)

    def next_deadline(self) -> Instant | None:
        """Return when a group is due, or the operator."""
        dues = [self._commit_at, self._operate_at if self.is_operated else None]
        return min((due for due in dues if due is not None), default=None)

    def is_idle(self) -> bool:
        """Return whether nothing waits."""
        return not self._lanes and not self._ledger.has_work

    def _plan(self, now: Instant) -> None:
        if self._commit_at is None and not self.is_idle():
            self._commit_at = Instant(now + self._host.dice.between(1, self._shape.commit_ms_max))

    def _operate(self, now: Instant) -> None:
        """Have an operator switch the strategy of some conversation."""
        dice, cids = self._host.dice, sorted(self._rows.conversations)
        if cids and self.is_operated:
            cid = dice.pick(cids)
            value = "read" if self._rows.conversations[cid].fan_out == "write" else "write"
            self._lanes.put(ChangeGroup(self._next_mid(), "", "", cid, "fan_out", _wall(now), value=value), None)
            self._counts["switches"] += 1

    def _next_mid(self) -> int:
        self._mid += 1
        return self._mid

    # ------------------------------------------------------------ what changes something

    def _take(self, call: Call, link: Stream, now: Instant) -> None:
        if call.method in READINGS:
            link.send(READINGS[call.method](self._reading, call))
            return
        command = self._command(call, now)
        if not self._lanes.put(command, (link, call.id)):
            link.send(Answer(call.id, error="unknown"))

    def _command(self, call: Call, now: Instant) -> Command:
        who, device, at = call.user, call.device, _wall(now)
        match call.method, call.arguments:
            case "send", (str(to), int(cid), str(key), bytes(body), bool(is_queued)):
                mid = self._next_mid()
                return Draft(mid, who, device, to, cid, key, "text", body, at, is_queued=is_queued)
            case ("edit" | "recall") as method, (int(cid), int(seq), str(key), bytes(body)):
                return Revise(self._next_mid(), who, device, cid, seq, key, method == "recall", body, at)
            case "mark", (int(cid), int(read_seq)):
                return Mark(who, device, cid, at, read_seq=read_seq)
            case "hide", (int(cid), bool(is_hidden)):
                return Mark(who, device, cid, at, is_hidden=is_hidden)
            case "create", (str(key), str(name), tuple(members), tuple(settings)):
                return CreateGroup(self._next_mid(), who, device, key, name, members, at, settings)
            case "change", (int(cid), action, tuple(users), str(value)):
                return ChangeGroup(self._next_mid(), who, device, cid, action, at, users, value)
            case _:
                raise AssertionError(call)

    def _carry_out(self, now: Instant) -> None:
        """Carry out a group of commands, one transaction, unless this life ends meanwhile."""
        group = self._lanes.take(self._shape.group_max) if self._lanes else []
        commands = [command for command, _ in group]
        changes = self._decide(commands)
        if not self._guards.commit_first:
            self._answer(group, changes)
        if self._host.dice.chance(FAIL_PERMILLE):
            self._fail(group, changes)
            return
        self._reach("decided")
        self._rows.apply(changes)
        self._reach("committed")
        self._counts["transactions"] += 1
        self._reading.committed(changes)
        if self._guards.commit_first:
            self._answer(group, changes)
        self._reach("answered")
        self._push(changes.deliveries)
        self._trim(changes.deliveries, now)

    def _reach(self, point: str) -> None:
        self._host.reach(point)
        is_in_midst = self._rows.pendings or self._rows.queued
        if self.is_operated and self._host.dice.chance(DIE_IN_MIDST_PERMILLE if is_in_midst else DIE_PERMILLE):
            raise Died(point)

    def _decide(self, commands: list[Command]) -> Changes:
        needs = self._ledger.begin(commands)
        while needs is not None:
            self._ledger.learn(self._facts(needs))
            needs = self._ledger.more()
        changes = self._ledger.execute()
        self._ledger.check_invariants()
        self._break(commands, changes)
        return changes

    def _fail(self, group: list[tuple[Command, Ticket]], changes: Changes) -> None:
        """The transaction fails: perhaps it is durable, and nobody knows."""
        if self._host.dice.chance(500):
            self._rows.apply(changes)
        self._ledger = self._new_ledger()
        self._reading = Reading(self._rows, self._guards, self._counts)
        self._counts["failed transactions"] += 1
        for _, ticket in group:
            if ticket is not None:
                ticket[0].send(Answer(ticket[1], error="unknown"))

    def _answer(self, group: list[tuple[Command, Ticket]], changes: Changes) -> None:
        for (command, ticket), outcome in zip(group, changes.outcomes, strict=True):
            if ticket is not None:
                ticket[0].send(self._answer_of(ticket[1], command, outcome))

    def _answer_of(self, call: int, command: Command, outcome: Outcome) -> Answer:
        match outcome:
            case Appended(message):
                return Answer(call, (message.cid, message.seq, message.mid))
            case Queued():
                return Answer(call, "queued")
            case Marked(view):
                # Beside the view what counts of it, which is what the list tells as `read_seq`.
                assert isinstance(command, Mark)
                return Answer(call, (view.cid, self._rows.pointers(view.cid, view.user).floor_seq))
            case GroupChanged(conversation, message):
                return Answer(call, (conversation.cid, message.seq, message.mid) if message is not None else None)
            case Refused(cause):
                self._counts[f"refused {cause.name.lower()}"] += 1
                return Answer(call, error=cause.name.lower())
            case KeyConflict():
                return Answer(call, error="conflict")
            case _:
                raise AssertionError(outcome)

    def _push(self, deliveries: list[Delivery]) -> None:
        """Tell the access nodes of who is there. What is lost is lost."""
        entries: list[tuple[str, int, Publication]] = []
        for delivery in deliveries:
            told = self._rows.told(delivery.message, is_new=True)
            entries += [(user, offset, told) for user, offset in delivery.positions]
            for user in delivery.members:
                version = self._reading.versions.changed_one(user)
                entries.append((user, 0, told if version is None else {**told, "sync_version": version}))
        for node, users in self._present.items():
            mine = tuple(entry for entry in entries if entry[0] in users)
            if mine and not self._host.dice.chance(PUSH_LOST_PERMILLE):
                self._host.send(node, Pushed(mine))

    def _trim(self, deliveries: list[Delivery], now: Instant) -> None:
        keep = self._shape.keep
        for delivery in deliveries if keep else ():
            for user, offset in delivery.positions:
                if offset > keep and offset % 5 == 0:
                    self._lanes.put(Trim(user, offset - keep), None)
                    self._counts["trims"] += 1
        self._plan(now)

    # ------------------------------------------------------------ guards

    def _new_ledger(self) -> Ledger:
        pendings = [self._rows.pendings[n] for n in sorted(self._rows.pendings)]
        if not self._guards.fan_out_resumed:
            pendings = []
        if not self._guards.fan_out_place:
            pendings = [replaced(pending, after="") for pending in pendings]
        return self._rows.ledger(pendings)

    def _facts(self, needs: Needs) -> Facts:
        facts = self._rows.facts(needs)
        if not self._guards.dedupe:
            keys = facts.messages_by_key
            facts.messages_by_key = {key: one for key, one in keys.items() if one.n > self._last_n}
        if not self._guards.seq_in_transaction:
            for known in facts.conversations:
                known.max_seq = max(known.max_seq, self._rows.reserved.get(known.conversation.cid, 0))
            for cid, seq in needs.messages:  # a hole is marked like the entry before it
                log = self._rows.logs.get(cid, {})
                before = next((log[at] for at in range(seq, 0, -1) if at in log), None)
                if before is not None:
                    facts.messages.setdefault((cid, seq), before)
        return facts

    def _break(self, commands: list[Command], changes: Changes) -> None:
        """Do what a service without a guard does."""
        if not self._guards.seq_in_transaction:
            self._rows.reserved.update((one.cid, one.seq) for one, _ in changes.messages if one.form != Form.NOTE)
        if not self._guards.dequeue_with_write:
            self._rows.dequeue(changes.dequeued_through)
        if not self._guards.failure_notes:
            changes.messages = [(_unsaid(message), positions) for message, positions in changes.messages]
            changes.deliveries = [replaced(one, message=_unsaid(one.message)) for one in changes.deliveries]
        if not self._guards.read_forward:
            for command in commands:
                place = (command.user, command.cid) if isinstance(command, Mark) else ("", 0)
                if isinstance(command, Mark) and command.read_seq is not None and place in self._rows.views:
                    read_cseq = self._rows.logs[command.cid][command.read_seq].cseq
                    view = changes.views.get(place, self._rows.views[place])
                    changes.views[place] = replaced(view, read_seq=command.read_seq, read_cseq=read_cseq)


def _unsaid(message: Message) -> Message:
    return replaced(message, kind="nothing") if message.kind == "failure" else message


def _wall(now: Instant) -> Timestamp:
    return Timestamp(1_700_000_000_000 + now)
