"""Who may do what in a group, and what it makes of the group and its members.

Roles are ordered: owner, admin, member. Until it is dissolved a group has one owner, who is a member of it. So the
owner leaves only after handing the group over, or as the last one, which dissolves it.

| action | who |
|---|---|
| invite | every member or admins, as `who_invites` says |
| join | whoever comes, if `who_joins` says so |
| leave | every member but the owner |
| kick, mute, role | whoever is above all whom it is about; a role is given only below one's own |
| mute_all, rename, settings | admins |
| transfer, dissolve | the owner |
| fan_out | nobody but the operator |

The operator, or a backend, is above the owner and may do all of it, but neither join nor leave, having no name. What
has its effect already is answered so before anybody's right to it is looked at: a retry must not fail because the first
try took the right away, as handing over the group does.

Growth beyond what the policy allows to write fan-out switches a group to read fan-out in the same change, though an
operator may have ordered it otherwise while it was smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.commands import Cause, ChangeGroup, CreateGroup, GroupAction, Refused
from im.core.fan_out import FanOutPolicy
from im.core.model import Conversation, FanOut, Form, Group, Member, Message, Role

__all__ = ["GroupChange", "change", "create", "may_edit", "may_recall", "may_send", "switched"]

OPERATOR: Final = 3
"""Above the owner's role."""

GIVEN_ROLES: Final = {"member": Role.MEMBER, "admin": Role.ADMIN}
"""By name. An owner is made by transfer only."""

SETTINGS: Final = {
    "who_invites": ("members", "admins"),
    "who_joins": ("invited", "anybody"),
    "history": ("joined", "all"),
}

MUTE_DIGITS_MAX: Final = 15
"""A time in ms with more digits is no time."""


class GroupChange(msgspec.Struct, frozen=True, gc=False):
    """A change that is allowed and alters something. Nobody is in two of `joined`, `left` and `altered`."""

    event: str
    """The action, or `create`."""
    group: Group | None
    """As it will be, but for `version`, which is the seq that the event gets. None in a single conversation, of which
    only the strategy changes.
    """
    fan_out: FanOut
    """As it will be."""
    joined: tuple[str, ...] = ()
    """In order; the owner of a new group first."""
    left: tuple[str, ...] = ()
    altered: tuple[Member, ...] = ()
    """Present members whose role or mute changes, as they will be."""
    users: tuple[str, ...] = ()
    """Whom the event names."""
    value: str = ""
    """What the event says: as in the command; of settings those that change, `history=all,who_joins=anybody`."""


class _Request(msgspec.Struct, frozen=True, gc=False):
    """A command with what it is about, and how high whoever gives it stands."""

    conversation: Conversation
    group: Group
    members: Mapping[str, Member]
    command: ChangeGroup
    policy: FanOutPolicy
    rank: int


Decision = GroupChange | Refused | None


def create(command: CreateGroup, policy: FanOutPolicy) -> GroupChange | Refused:
    """Return the group of the owner and the members, each once; refused if too large or for unknown settings."""
    joined = _once((command.owner, *command.members))
    if len(joined) > policy.members_max:
        return Refused(Cause.GROUP_FULL, {"limit": policy.members_max})
    settings = _settings(command.settings)
    if isinstance(settings, Refused):
        return settings
    group = Group(command.name, command.owner, command.at, 0, **settings)
    return GroupChange("create", group, policy.of_group(len(joined)), joined=joined, users=joined, value=command.name)


def change(
    conversation: Conversation, members: Mapping[str, Member], command: ChangeGroup, policy: FanOutPolicy
) -> GroupChange | Refused | None:
    """Return what the command makes of the group; None: everything is so already.

    `members`: those present, by name. A single conversation is refused: see `switched` for what can be done to it.
    """
    group = conversation.group
    if group is None:
        return Refused(Cause.BAD_CHANGE)
    if group.is_dissolved:
        return _change_dissolved(group, command)
    own = members.get(command.by)
    if own is None and command.by and command.action != "join":
        return Refused(Cause.NO_CONVERSATION)
    rank = own.role if own else Role.MEMBER if command.by else OPERATOR
    return _ACTIONS[command.action](_Request(conversation, group, members, command, policy, rank))


def switched(conversation: Conversation, by: str, value: str) -> FanOut | Refused | None:
    """Return the strategy that the conversation, of either kind, is to have; None: it has it already."""
    if value not in ("write", "read"):
        return Refused(Cause.BAD_CHANGE, {"value": value})
    fan_out: FanOut = "write" if value == "write" else "read"
    if fan_out == conversation.fan_out:
        return None
    return Refused(Cause.NOT_ALLOWED) if by else fan_out


# -------------------------------------------------------------------- messages


def may_send(conversation: Conversation, member: Member, now: Timestamp) -> Refused | None:
    """Return why the present member of the group may not send now; None: it may."""
    group = conversation.group
    assert group is not None, "two users need no leave"
    if group.is_dissolved:
        return Refused(Cause.DISSOLVED)
    if member.muted_until > now:
        return Refused(Cause.MUTED, {"until": member.muted_until})
    if group.is_muted and member.role < Role.ADMIN:
        return Refused(Cause.MUTED)
    return None


def may_recall(
    conversation: Conversation, user: str, member: Member | None, message: Message, now: Timestamp, *, window_ms: int
) -> Refused | None:
    """Return why the user may not recall the message; None: it may.

    `member`: the user as present in the group, None in a single conversation, of which the user is one of the two.
    `window_ms` after sending it a message is its sender's to recall, even if muted since then; admins and the owner
    recall anybody's at any time.
    """
    if refused := _untouchable(conversation, member, message):
        return refused
    if member is not None and member.role >= Role.ADMIN:
        return None
    return _own_and_recent(user, message, now, window_ms)


def may_edit(
    conversation: Conversation, user: str, member: Member | None, message: Message, now: Timestamp, *, window_ms: int
) -> Refused | None:
    """Return why the user may not edit the message; None: it may. Arguments as in `may_recall`.

    Only its sender edits a message, and only while sending is allowed: an edit says something too.
    """
    if refused := _untouchable(conversation, member, message):
        return refused
    if message.sender == user and member is not None and (refused := may_send(conversation, member, now)):
        return refused
    return _own_and_recent(user, message, now, window_ms)


def _untouchable(conversation: Conversation, member: Member | None, message: Message) -> Refused | None:
    is_seen = member is None or member.first_seq <= message.seq
    if message.form != Form.MESSAGE or not is_seen:
        return Refused(Cause.NO_MESSAGE)
    if conversation.group is not None and conversation.group.is_dissolved:
        return Refused(Cause.DISSOLVED)
    return None


def _own_and_recent(user: str, message: Message, now: Timestamp, window_ms: int) -> Refused | None:
    if message.sender != user:
        return Refused(Cause.NOT_YOURS)
    if now - message.at > window_ms:
        return Refused(Cause.WINDOW_CLOSED, {"window_ms": window_ms})
    return None


# --------------------------------------------------------------- who is in it


def _invite(request: _Request) -> Decision:
    users = _once(request.command.users)
    if not users:
        return Refused(Cause.BLANK)
    joined = tuple(user for user in users if user not in request.members)
    if not joined:
        return None
    if request.rank < (Role.MEMBER if request.group.who_invites == "members" else Role.ADMIN):
        return Refused(Cause.NOT_ALLOWED)
    return _grown(request, joined)


def _join(request: _Request) -> Decision:
    user = request.command.by
    if not user:
        return Refused(Cause.BAD_CHANGE)
    if user in request.members:
        return None
    if request.group.who_joins != "anybody":
        return Refused(Cause.NOT_ALLOWED)
    return _grown(request, (user,))


def _grown(request: _Request, joined: tuple[str, ...]) -> Decision:
    policy = request.policy
    size = len(request.members) + len(joined)
    if size > policy.members_max:
        return Refused(Cause.GROUP_FULL, {"limit": policy.members_max})
    fan_out = policy.of_group(size, request.conversation.fan_out)
    return GroupChange(request.command.action, request.group, fan_out, joined=joined, users=joined)


def _leave(request: _Request) -> Decision:
    user = request.command.by
    return _shrunk(request, (user,)) if user else Refused(Cause.BAD_CHANGE)


def _kick(request: _Request) -> Decision:
    users = _once(request.command.users)
    if not users:
        return Refused(Cause.BLANK)
    left = tuple(user for user in users if user in request.members)
    if not left:
        return None
    return _beneath(request, left) or _shrunk(request, left)


def _shrunk(request: _Request, left: tuple[str, ...]) -> Decision:
    is_empty = len(left) == len(request.members)
    if request.group.owner in left and not is_empty:
        return _operators_limit(request, request.group.owner)
    group = replace(request.group, is_dissolved=True) if is_empty else request.group
    return GroupChange(request.command.action, group, request.conversation.fan_out, left=left, users=left)


def _dissolve(request: _Request) -> Decision:
    if request.rank < Role.OWNER:
        return Refused(Cause.NOT_ALLOWED)
    group = replace(request.group, is_dissolved=True)
    return GroupChange("dissolve", group, request.conversation.fan_out, left=tuple(sorted(request.members)))


def _change_dissolved(group: Group, command: ChangeGroup) -> Decision:
    """Nobody is in it any more: only its owner, who may repeat, and the operator learn that there was a group."""
    if command.by and command.by != group.owner:
        return Refused(Cause.NO_CONVERSATION)
    return None if command.action == "dissolve" else Refused(Cause.DISSOLVED)


# -------------------------------------------------------------- what they are


def _role(request: _Request) -> Decision:
    role = GIVEN_ROLES.get(request.command.value)
    if role is None:
        return Refused(Cause.BAD_CHANGE, {"value": request.command.value})
    altered = _altered(request, lambda member: replace(member, role=role))
    if not isinstance(altered, tuple):
        return altered
    if request.rank <= role:
        return Refused(Cause.NOT_ALLOWED)
    if any(member.user == request.group.owner for member in altered):
        return _operators_limit(request, request.group.owner)
    return _members_changed(request, altered)


def _mute(request: _Request) -> Decision:
    value = request.command.value
    if not (value.isascii() and value.isdigit() and len(value) <= MUTE_DIGITS_MAX):
        return Refused(Cause.BAD_CHANGE, {"value": value})
    until = Timestamp(int(value))
    altered = _altered(request, lambda member: replace(member, muted_until=until))
    return _members_changed(request, altered) if isinstance(altered, tuple) else altered


def _altered(request: _Request, alter: Callable[[Member], Member]) -> tuple[Member, ...] | Refused | None:
    """Return those of the command's users whom `alter` changes, if whoever asks is above each of them."""
    users = _once(request.command.users)
    if not users:
        return Refused(Cause.BLANK)
    altered: list[Member] = []
    for user in users:
        member = request.members.get(user)
        if member is None:
            return Refused(Cause.NO_MEMBER, {"user": user})
        as_it_will_be = alter(member)
        if as_it_will_be != member:
            altered.append(as_it_will_be)
    if not altered:
        return None
    return _beneath(request, [member.user for member in altered]) or tuple(altered)


def _members_changed(request: _Request, altered: tuple[Member, ...]) -> GroupChange:
    users = tuple(member.user for member in altered)
    command = request.command
    return GroupChange(
        command.action, request.group, request.conversation.fan_out, altered=altered, users=users, value=command.value
    )


def _transfer(request: _Request) -> Decision:
    users = _once(request.command.users)
    if not users:
        return Refused(Cause.BLANK)
    if len(users) > 1:
        return Refused(Cause.BAD_CHANGE)
    heir = request.members.get(users[0])
    if heir is None:
        return Refused(Cause.NO_MEMBER, {"user": users[0]})
    if heir.user == request.group.owner:
        return None
    if request.rank < Role.OWNER:
        return Refused(Cause.NOT_ALLOWED)
    # An owner whom an admin muted once could not undo it: nobody is above.
    altered = (
        replace(request.members[request.group.owner], role=Role.ADMIN),
        replace(heir, role=Role.OWNER, muted_until=Timestamp(0)),
    )
    group = replace(request.group, owner=heir.user)
    return GroupChange("transfer", group, request.conversation.fan_out, altered=altered, users=users)


# ---------------------------------------------------------- what the group is


def _mute_all(request: _Request) -> Decision:
    value = request.command.value
    if value not in ("true", "false"):
        return Refused(Cause.BAD_CHANGE, {"value": value})
    return _group_changed(request, {"is_muted": value == "true"}, value)


def _rename(request: _Request) -> Decision:
    name = request.command.value
    return _group_changed(request, {"name": name}, name) if name else Refused(Cause.BLANK)


def _change_settings(request: _Request) -> Decision:
    settings = _settings(request.command.settings)
    if isinstance(settings, Refused):
        return settings
    if not settings:
        return Refused(Cause.BLANK)
    changed = sorted(name for name in settings if getattr(request.group, name) != settings[name])
    return _group_changed(request, settings, ",".join(f"{name}={settings[name]}" for name in changed))


def _group_changed(request: _Request, fields: dict[str, Any], value: str) -> Decision:
    group = replace(request.group, **fields)
    if group == request.group:
        return None
    if request.rank < Role.ADMIN:
        return Refused(Cause.NOT_ALLOWED)
    return GroupChange(request.command.action, group, request.conversation.fan_out, value=value)


def _fan_out(request: _Request) -> Decision:
    command = request.command
    fan_out = switched(request.conversation, command.by, command.value)
    return GroupChange("fan_out", request.group, fan_out, value=fan_out) if isinstance(fan_out, str) else fan_out


_ACTIONS: Final[dict[GroupAction, Callable[[_Request], Decision]]] = {
    "invite": _invite,
    "join": _join,
    "leave": _leave,
    "kick": _kick,
    "role": _role,
    "mute": _mute,
    "mute_all": _mute_all,
    "transfer": _transfer,
    "rename": _rename,
    "settings": _change_settings,
    "dissolve": _dissolve,
    "fan_out": _fan_out,
}


# ---------------------------------------------------------------------- shared


def _beneath(request: _Request, users: Iterable[str]) -> Refused | None:
    """Return None if whoever asks is above all of these members."""
    for user in users:
        if request.members[user].role >= request.rank:
            return Refused(Cause.NOT_ALLOWED, {"user": user})
    return None


def _operators_limit(request: _Request, owner: str) -> Refused:
    """A group is never without its owner, whoever asks for it."""
    cause = Cause.BAD_CHANGE if request.rank == OPERATOR else Cause.NOT_ALLOWED
    return Refused(cause, {"user": owner})


def _once(users: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(users))


def _settings(pairs: Iterable[tuple[str, str]]) -> dict[str, Any] | Refused:
    """Return fields of `Group`; of a name that is given twice the last."""
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if value not in SETTINGS.get(name, ()):
            return Refused(Cause.BAD_CHANGE, {"setting": name})
        settings[name] = value
    return settings
