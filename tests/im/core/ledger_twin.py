"""A dumb model of the ledger: one command after the other, everybody told at once, everything looked up by searching.

Commands of tests have the same mid, device and time, so the twin makes whole messages. What groups allow it asks of
`im.core.groups`, whose rules are tested by tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from im.core import groups
from im.core.commands import (
    Appended,
    Cause,
    ChangeGroup,
    Command,
    CreateGroup,
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
    Trimmed,
)
from im.core.groups import GroupChange
from im.core.ledger import LedgerSettings
from im.core.model import Conversation, Form, Member, Message, Overlay, Role, View
from tests.im.core.ledger_world import AT

SMALL = 3
"""`DIRECT_MAX` of the small bounds."""


class Twin:
    """See the module."""

    def __init__(self, settings: LedgerSettings, *, small: int = SMALL) -> None:
        """`small`: the most users whom a conversation with read fan-out tells directly."""
        self.settings = settings
        self.small = small
        self.n = self.cid = 0
        self.logs: dict[int, list[Message]] = {}
        self.conversations: dict[int, Conversation] = {}
        self.members: dict[tuple[int, str], Member] = {}
        self.views: dict[tuple[str, int], View] = {}
        self.overlays: dict[tuple[int, int], Overlay] = {}
        self.keys: dict[tuple[str, str], Message] = {}
        self.mentions: set[tuple[int, str, int]] = set()
        self.queue: dict[tuple[str, str], Draft] = {}
        self.timelines: dict[str, list[Message]] = {}
        self.directly: dict[int, set[str]] = {}
        """By `n`, who is told without an entry."""

    def batch(self, commands: Iterable[Command]) -> list[Outcome]:
        self.catch_up()
        return [self.carry_out(command) for command in commands]

    def catch_up(self) -> None:
        queue, self.queue = self.queue, {}
        for key, draft in queue.items():
            outcome = self.place(draft)
            if isinstance(outcome, Refused):
                said = {"cause": outcome.cause.name, "message": outcome.cause.value, "detail": outcome.detail}
                self.keys[key] = self.note(
                    draft.sender, "failure", said, draft.cid, mid=7, recipient=draft.to, client_msg_id=key[1]
                )

    def carry_out(self, command: Command) -> Outcome:
        who = {getattr(command, name, None) for name in ("sender", "user", "owner", "by")}
        if not getattr(command, "is_queued", False) and any(sender in who for sender, _ in self.queue):
            self.catch_up()
        match command:
            case Draft():
                return self.send(command)
            case Revise():
                return self.revise(command)
            case Mark():
                return self.mark(command)
            case CreateGroup():
                return self.create(command)
            case ChangeGroup():
                return self.change(command)
            case Trim():
                return Trimmed(min(command.through, len(self.timelines.get(command.user, ()))))

    # ------------------------------------------------------------ conversations

    def present(self, cid: int) -> dict[str, Member]:
        return {user: member for (of, user), member in self.members.items() if of == cid and not member.leave_seq}

    def users(self, cid: int) -> set[str]:
        one = self.conversations.get(cid)
        if one is None:
            return set()
        return {one.lo, one.hi} if one.group is None else set(self.present(cid))

    def single(self, one: str, other: str) -> int:
        """0: there is none."""
        pair = tuple(sorted([one, other]))
        return next((cid for cid, c in self.conversations.items() if c.group is None and (c.lo, c.hi) == pair), 0)

    def add(self, cid: int, form: Form, kind: str, by: str, key: str, **fields: Any) -> Message:
        log, one = self.logs.setdefault(cid, []), self.conversations[cid]
        self.n += 1
        cseq = sum(entry.form == Form.MESSAGE for entry in log) + (form == Form.MESSAGE)
        other = "" if one.group else (one.lo if one.hi == by else one.hi)
        what = {"ref": 0, "body": b"", "mentions": b""} | fields
        entry = Message(self.n, cid, len(log) + 1, cseq, 7, by, "phone", other, key, form, kind, at=AT, **what)
        log.append(entry)
        if key:
            self.keys[by, key] = entry
        return entry

    def tell(self, entry: Message, users: Iterable[str]) -> None:
        for user in users:
            self.timelines.setdefault(user, []).append(entry)

    def tell_all(self, entry: Message) -> None:
        users = self.users(entry.cid)
        if self.conversations[entry.cid].fan_out == "write":
            self.tell(entry, users)
        elif len(users) <= self.small:
            self.directly[entry.n] = users

    def note(self, user: str, kind: str, said: object, cid: int, **fields: Any) -> Message:
        self.n += 1
        what = {"mid": 0, "recipient": "", "client_msg_id": ""} | fields
        body = msgspec.json.encode(said)
        note = Message(
            self.n, cid, 0, 0, sender=user, device="phone", form=Form.NOTE, kind=kind, ref=0, body=body, mentions=b"",
            at=AT, **what,
        )  # fmt: skip
        self.tell(note, [user])
        return note

    def mention(self, entry: Message, seq: int) -> None:
        for user in msgspec.json.decode(entry.mentions or b"[]"):
            if user == "*" or (user != entry.sender and user in self.users(entry.cid)):
                self.mentions.add((entry.cid, user, seq))

    # ------------------------------------------------------------ messages

    def send(self, draft: Draft) -> Outcome:
        key = (draft.sender, draft.client_msg_id)
        if key in self.keys:
            first = self.keys[key]
            is_there = draft.to == first.recipient if draft.to else draft.cid == first.cid
            if first.form == Form.NOTE and (draft.to, draft.cid) == (first.recipient, first.cid):
                said = msgspec.json.decode(first.body)
                return Refused(Cause[said["cause"]], said["detail"])
            said, meant = payload(first), payload(draft)
            return Appended(first, False) if is_there and first.form == 0 and said == meant else KeyConflict(first)
        if key in self.queue:
            other = self.queue[key]
            is_same = (draft.to, draft.cid, *payload(draft)) == (other.to, other.cid, *payload(other))
            return Queued(7, False) if is_same else KeyConflict(None)
        if draft.is_queued:
            self.queue[key] = draft
            return Queued(7, True)
        return self.place(draft)

    def place(self, draft: Draft) -> Outcome:
        sender, cid = draft.sender, draft.cid or self.single(draft.sender, draft.to)
        if draft.cid:
            if sender not in self.users(cid):
                return Refused(Cause.NO_CONVERSATION)
            member = self.present(cid).get(sender)
            if member and (refused := groups.may_send(self.conversations[cid], member, AT)):
                return refused
        if draft.ref:
            first = self.present(cid)[sender].first_seq if self.present(cid) else 1
            if not first <= draft.ref <= len(self.logs.get(cid, ())):
                return Refused(Cause.NO_MESSAGE)
        if not cid:
            self.cid = cid = self.cid + 1
            lo, hi = sorted([sender, draft.to])
            self.conversations[cid] = Conversation(cid, "single", self.settings.policy.single, lo, hi)
        key, kind, body = draft.client_msg_id, draft.kind, draft.body
        entry = self.add(cid, Form.MESSAGE, kind, sender, key, body=body, ref=draft.ref, mentions=draft.mentions)
        self.mention(entry, entry.seq)
        self.tell_all(entry)
        return Appended(entry, True)

    def revise(self, command: Revise) -> Outcome:
        user, cid, seq, key = command.sender, command.cid, command.seq, command.client_msg_id
        form, kind = (Form.RECALL, "recall") if command.is_recall else (Form.EDIT, "edit")
        if (user, key) in self.keys:
            first = self.keys[user, key]
            said = (first.form, first.cid, first.ref, first.body, first.mentions)
            is_same = said == (form, cid, seq, command.body, command.mentions)
            return Appended(first, False) if is_same else KeyConflict(first)
        if user not in self.users(cid):
            return Refused(Cause.NO_CONVERSATION)
        if not 0 < seq <= len(self.logs[cid]):
            return Refused(Cause.NO_MESSAGE)
        target, member = self.logs[cid][seq - 1], self.present(cid).get(user)
        may = groups.may_recall if command.is_recall else groups.may_edit
        window = self.settings.recall_window_ms if command.is_recall else self.settings.edit_window_ms
        if refused := may(self.conversations[cid], user, member, target, AT, window_ms=window):
            return refused
        if (cid, seq) in self.overlays and self.overlays[cid, seq].is_recalled:
            return Refused(Cause.RECALLED)
        body, mentions = command.body, command.mentions
        entry = self.add(cid, form, kind, user, key, ref=seq, body=body, mentions=mentions)
        if (cid, seq) in self.overlays:
            version = self.overlays[cid, seq].version
            self.overlays[cid, version] = Overlay(cid, version, entry.seq, False, target.cseq, b"", b"")
        self.overlays[cid, seq] = Overlay(cid, seq, entry.seq, command.is_recall, target.cseq, body, mentions)
        self.mention(entry, seq)
        self.tell_all(entry)
        return Appended(entry, True)

    # ------------------------------------------------------------ views

    def mark(self, command: Mark) -> Outcome:
        user, cid = command.user, command.cid
        reads = (command.read_seq, command.delivered_seq) != (None, None)
        if user not in self.users(cid) and (reads or (cid, user) not in self.members):
            return Refused(Cause.NO_CONVERSATION)
        log, view = self.logs[cid], self.views.get((user, cid), View(user, cid))
        end = len(log)
        read = max(view.read_seq, min(command.read_seq or 0, end))
        hidden = view.hidden_seq
        if command.is_hidden is not None:
            read = read if command.is_hidden else max(read, hidden)
            hidden = end if command.is_hidden else 0
        marked = view.is_marked_unread and command.read_seq is None
        after = View(
            user,
            cid,
            read_seq=read,
            read_cseq=log[read - 1].cseq if read else 0,
            delivered_seq=max(view.delivered_seq, min(command.delivered_seq or 0, end)),
            hidden_seq=hidden,
            hidden_cseq=log[hidden - 1].cseq if hidden else 0,
            is_marked_unread=marked if command.is_marked_unread is None else command.is_marked_unread,
            is_muted=view.is_muted if command.is_muted is None else command.is_muted,
            pinned_at=view.pinned_at if command.is_pinned is None else type(AT)(AT * command.is_pinned),
        )
        if after == view:
            return Marked(view, False)
        self.views[user, cid] = after
        for kind, names in (
            ("read", ("read_seq", "is_marked_unread")),
            ("settings", ("is_muted", "pinned_at", "hidden_seq")),
        ):
            said, before = ({name: getattr(one, name) for name in names} for one in (after, view))
            if said != before:
                self.note(user, kind, said, cid)
        users = self.users(cid)
        told = sorted(set(users) - {user}) if reads and len(users) <= SMALL else ()
        return Marked(after, True, tuple(told))

    # ------------------------------------------------------------ groups

    def create(self, command: CreateGroup) -> Outcome:
        key = (command.owner, command.client_msg_id)
        if key in self.keys:
            first = self.keys[key]
            said = msgspec.json.decode(first.body) if first.form == Form.EVENT else {}
            is_same = (said.get("name"), set(said.get("users", ())), said.get("settings", {})) == (
                command.name,
                {command.owner, *command.members},
                dict(command.settings),
            )
            return GroupChanged(self.conversations[first.cid], first, False) if is_same else KeyConflict(first)
        decided = groups.create(command, self.settings.policy)
        if isinstance(decided, Refused):
            return decided
        if refused := self.room_for(decided.joined, command.owner):
            return refused
        self.cid += 1
        self.conversations[self.cid] = Conversation(self.cid, "group", decided.fan_out, group=decided.group)
        more = {"settings": dict(command.settings)} if command.settings else {}
        return self.apply(self.cid, decided, command.owner, command.client_msg_id, more)

    def change(self, command: ChangeGroup) -> Outcome:
        cid, by = command.cid, command.by
        one = self.conversations.get(cid)
        if one is None or (by and one.group is None and by not in self.users(cid)):
            return Refused(Cause.NO_CONVERSATION)
        if one.group is None and command.action == "fan_out":
            decided = self.switched(one, command)
        else:
            decided = groups.change(one, self.present(cid), command, self.settings.policy)
        if isinstance(decided, Refused):
            return decided
        if decided is None:
            return GroupChanged(one, None, False)
        return self.room_for(decided.joined, by) or self.apply(cid, decided, by, "", {})

    def switched(self, one: Conversation, command: ChangeGroup) -> GroupChange | Refused | None:
        fan_out = groups.switched(one, command.by, command.value)
        return GroupChange("fan_out", None, fan_out, value=fan_out) if isinstance(fan_out, str) else fan_out

    def room_for(self, users: Iterable[str], by: str) -> Refused | None:
        most = self.settings.groups_of_user_max
        for user in users:
            limit = most if by in ("", user) else most - most // 10
            if sum(member.user == user and not member.leave_seq for member in self.members.values()) >= limit:
                return Refused(Cause.TOO_MANY_GROUPS, {"user": user, "limit": limit})
        return None

    def apply(self, cid: int, decided: GroupChange, by: str, key: str, more: dict[str, object]) -> GroupChanged:
        one, before = self.conversations[cid], self.users(cid)
        name = decided.group.name if decided.group else ""
        said = {"event": decided.event, "users": decided.users, "value": decided.value, "fan_out": decided.fan_out}
        event = self.add(cid, Form.EVENT, "group", by, key, body=msgspec.json.encode(said | {"name": name} | more))
        group = replace(decided.group, version=event.seq) if decided.group else None
        self.conversations[cid] = replace(one, fan_out=decided.fan_out, group=group)
        about = list(decided.altered)
        for user in decided.joined:
            assert group is not None
            role = Role.OWNER if user == group.owner else Role.MEMBER
            about.append(Member(cid, user, role, 1 if group.history == "all" else event.seq, event.seq, event.cseq))
        about += [replace(self.members[cid, user], leave_seq=event.seq) for user in decided.left]
        self.members |= {(cid, member.user): member for member in about}
        after = self.users(cid)
        told = {member.user for member in about}
        are_told_directly = [len(users) <= self.small for users in (before, after)]
        if "write" in (one.fan_out, decided.fan_out) or are_told_directly in ([True, False], [False, True]):
            told = before | after
        self.tell(event, told)
        if decided.fan_out == "read" and len(after) <= self.small:
            self.directly[event.n] = after - told
        return GroupChanged(self.conversations[cid], event, True, tuple(about))


def payload(one: Draft | Message) -> tuple[object, ...]:
    return (one.kind, one.body, one.ref, one.mentions)
