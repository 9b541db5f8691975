"""Groups are made and changed: what `groups` decides becomes an entry of the log, and rows.

An event is told to whom it is about by an entry in the timeline, whatever the strategy: so a client learns that it is
in a group, that it was removed, or that from now on it has to read the log itself. With write fan-out, and when the
strategy changes or how many are told directly, everybody is told so; with read fan-out the others see it in the log.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from im.core import groups
from im.core.book import Book, Log
from im.core.commands import Cause, ChangeGroup, CreateGroup, Delivery, GroupChanged, KeyConflict, Outcome, Refused
from im.core.facts import ConversationFacts
from im.core.groups import GroupChange
from im.core.model import Conversation, Form, Member, Message, Role
from im.core.sending import BUSY

__all__ = ["change", "create", "removed_by"]

OWN_SHARE = 10
"""One of so many of a user's places in groups is not for others to fill: a stranger may put anybody into groups."""

_json = msgspec.json.Encoder()


class _Left(msgspec.Struct, frozen=True, gc=False):
    """As much of an event's body as says who left."""

    event: str
    users: list[str]


_left = msgspec.json.Decoder(_Left)


def create(book: Book, command: CreateGroup) -> Outcome:
    """Make a group; its first entry says so."""
    existing = book.facts.messages_by_key.get((command.owner, command.client_msg_id))
    if existing is not None:
        return _repeated(book, command, existing)
    decided = groups.create(command, book.settings.policy)
    if isinstance(decided, Refused):
        return decided
    if (refused := _room_for(book, decided.joined, command.owner)) is not None:
        return refused
    conversation = Conversation(book.next_cid(), "group", decided.fan_out, group=decided.group)
    return _apply(book, book.remember(ConversationFacts(conversation, 0, 0)), decided, command)


def _repeated(book: Book, command: CreateGroup, existing: Message) -> Outcome:
    if existing.form != Form.EVENT:
        return KeyConflict(existing)
    made = msgspec.json.decode(existing.body)
    same = (command.name, {command.owner, *command.members}, dict(command.settings))
    if (made["name"], set(made["users"]), made.get("settings", {})) != same:
        return KeyConflict(existing)
    return GroupChanged(book.logs[existing.cid].conversation, existing, is_new=False)


def change(book: Book, command: ChangeGroup) -> Outcome:
    """Change a group, or the strategy of any conversation."""
    log = book.logs.get(command.cid)
    if log is None:
        return Refused(Cause.NO_CONVERSATION)
    if log.conversation.group is None:
        return _change_single(book, log, command)
    decided = groups.change(log.conversation, log.members, command, book.settings.policy)
    if decided is None:
        return GroupChanged(log.conversation, None, is_new=False)
    if isinstance(decided, Refused):
        return decided
    if (refused := _room_for(book, decided.joined, command.by)) is not None:
        return refused
    if _is_told_as_a_message(log, decided) and book.timelines.is_full(command.cid):
        return BUSY
    return _apply(book, log, decided, command)


def _is_told_as_a_message(log: Log, decided: GroupChange) -> bool:
    """Return whether the change is fanned out in steps: who is told of entries, and how, remains as it is."""
    return log.conversation.fan_out == decided.fan_out == "write" and not (decided.joined or decided.left)


def _change_single(book: Book, log: Log, command: ChangeGroup) -> Outcome:
    if command.by and not log.has(command.by):
        return Refused(Cause.NO_CONVERSATION)
    if command.action != "fan_out":
        return Refused(Cause.BAD_CHANGE)
    fan_out = groups.switched(log.conversation, command.by, command.value)
    if fan_out is None:
        return GroupChanged(log.conversation, None, is_new=False)
    if isinstance(fan_out, Refused):
        return fan_out
    return _apply(book, log, GroupChange("fan_out", None, fan_out, value=fan_out), command)


def _room_for(book: Book, users: Iterable[str], by: str) -> Refused | None:
    """Count one more group for each user, if none of them is in too many then.

    Other users may not fill the last places: those are for groups that the user makes or joins, or that an operator or
    a backend (`by` "") puts the user into.
    """
    most, counts = book.settings.groups_of_user_max, book.facts.groups_of
    for user in users:
        limit = most if by in {"", user} else most - most // OWN_SHARE
        if counts.get(user, 0) >= limit:
            return Refused(Cause.TOO_MANY_GROUPS, {"user": user, "limit": limit})
    for user in users:
        counts[user] = counts.get(user, 0) + 1
    return None


def _apply(book: Book, log: Log, decided: GroupChange, command: CreateGroup | ChangeGroup) -> GroupChanged:
    """Carry out what the rules decided: the event's entry, the rows, and who is told."""
    changes = book.changes
    was_written, is_written = log.conversation.fan_out == "write", decided.fan_out == "write"
    is_as_before = _is_told_as_a_message(log, decided)
    if not is_as_before:
        book.timelines.finish(log.conversation.cid, changes)
    by, key = (command.owner, command.client_msg_id) if isinstance(command, CreateGroup) else (command.by, "")
    body: dict[str, object] = {
        "event": decided.event,
        "users": decided.users,
        "value": decided.value,
        "fan_out": decided.fan_out,
        "name": decided.group.name if decided.group is not None else "",
    }
    if isinstance(command, CreateGroup) and command.settings:
        body["settings"] = dict(command.settings)  # a retry is compared with it
    event = book.entry(
        log,
        Form.EVENT,
        "group",
        mid=command.mid,
        sender=by,
        device=command.device,
        client_msg_id=key,
        body=_json.encode(body),
        at=command.at,
    )
    before = log.users
    about = _enroll(book, log, decided, event)
    if is_as_before:
        book.tell(log, event)  # as a message is told, which may take several steps
        return GroupChanged(log.conversation, event, is_new=True, members=about)
    is_small = book.is_direct(log.users)
    # A client that is not told where new messages come from now would wait for them where they used to come.
    are_all_told = was_written or is_written or is_small != book.is_direct(before)
    told = {*before, *log.users} if are_all_told else {member.user for member in about}
    positions = book.timelines.give(event, sorted(told), changes)
    directly = () if is_written or not is_small else tuple(user for user in log.users if user not in told)
    changes.messages.append((event, positions))
    changes.deliveries.append(Delivery(event, positions, decided.fan_out, members=directly, removed=decided.left))
    return GroupChanged(log.conversation, event, is_new=True, members=about)


def removed_by(entry: Message) -> list[str]:
    """Return who left by an entry of a log, by itself or not: `Delivery.removed`, from what is stored.

    Where a group is dissolved that is everybody, and nobody is named.
    """
    if entry.form != Form.EVENT:
        return []
    said = _left.decode(entry.body)
    return said.users if said.event in {"leave", "kick"} else []


def _enroll(book: Book, log: Log, decided: GroupChange, event: Message) -> tuple[Member, ...]:
    """Change the conversation and who is in it, as decided; return the members whom it is about, as they are now."""
    cid, seq, group = event.cid, event.seq, decided.group
    if group is not None:
        group = msgspec.structs.replace(group, version=seq)
    log.conversation = msgspec.structs.replace(log.conversation, fan_out=decided.fan_out, group=group)
    book.changes.conversations[cid] = log.conversation
    if group is None:
        return ()
    about: list[Member] = list(decided.altered)
    for user in decided.joined:
        role = Role.OWNER if user == group.owner else Role.MEMBER
        first_seq = 1 if group.history == "all" else seq
        about.append(Member(cid, user, role, first_seq, seq, event.cseq))
    for member in about:
        log.members[member.user] = member
    about += [msgspec.structs.replace(log.members.pop(user), leave_seq=seq) for user in decided.left]
    counts = book.facts.groups_of
    for user in decided.left:
        if user in counts:
            counts[user] -= 1
    if decided.joined or decided.left:  # else a large group would be sorted for a new name
        log.users = tuple(sorted(log.members))
    book.changes.members.update({(cid, member.user): member for member in about})
    return tuple(about)
