"""Groups: rights as tables, then random histories that must keep one owner and do nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.commands import Cause, ChangeGroup, CreateGroup, Refused
from im.core.fan_out import PRESETS, FanOutPolicy
from im.core.groups import GroupChange, change, create, may_edit, may_recall, may_send, switched
from im.core.model import Conversation, Form, Group, Member, Message, Role

AT = Timestamp(1_000_000)
POLICY = FanOutPolicy(single="write", write_members_max=6, members_max=8)
ROLES = {"own": 2, "adm": 1, "adm2": 1, "mem": 0, "mem2": 0}
RANKS = {"": 3, **ROLES}
GROUP = Group("old", "own", Timestamp(5), 9)


def member(user: str, role: int = 0, **fields: Any) -> Member:
    return Member(7, user, role, 1, 1, 0, **fields)


MEMBERS = {user: member(user, role) for user, role in ROLES.items()}


def conversation(group: Group | None = GROUP, fan_out: Any = "write") -> Conversation:
    return Conversation(7, "group" if group else "single", fan_out, group=group)


def ask(action: Any, by: str, *users: str, value: str = "", settings: tuple[tuple[str, str], ...] = ()) -> ChangeGroup:
    return ChangeGroup(1, by, "phone", 7, action, AT, users, value, settings)


def decide(command: ChangeGroup, members: dict[str, Member] | None = None, **fields: Any) -> Any:
    return change(conversation(replace(GROUP, **fields)), MEMBERS if members is None else members, command, POLICY)


def cause(decision: Any) -> Cause | None:
    return decision.cause if isinstance(decision, Refused) else None


# ---------------------------------------------------------------- who may do what

OK = None
NOT = Cause.NOT_ALLOWED
BAD = Cause.BAD_CHANGE
NO = Cause.NO_CONVERSATION
ACTIONS: dict[str, tuple[dict[str, Any], tuple[Cause | None, ...]]] = {
    # operator, owner, admin, member, stranger
    "invite": ({"users": ("new",)}, (OK, OK, OK, OK, NO)),
    "join": ({}, (BAD, OK, OK, OK, NOT)),
    "leave": ({}, (BAD, NOT, OK, OK, NO)),
    "kick": ({"users": ("mem2",)}, (OK, OK, OK, NOT, NO)),
    "role": ({"users": ("mem2",), "value": "admin"}, (OK, OK, NOT, NOT, NO)),
    "mute": ({"users": ("mem2",), "value": "2000000"}, (OK, OK, OK, NOT, NO)),
    "mute_all": ({"value": "true"}, (OK, OK, OK, NOT, NO)),
    "transfer": ({"users": ("mem2",)}, (OK, OK, NOT, NOT, NO)),
    "rename": ({"value": "new"}, (OK, OK, OK, NOT, NO)),
    "settings": ({"settings": (("history", "all"),)}, (OK, OK, OK, NOT, NO)),
    "dissolve": ({}, (OK, OK, NOT, NOT, NO)),
    "fan_out": ({"value": "read"}, (OK, NOT, NOT, NOT, NO)),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_is_for_some_and_not_for_others(action: str):
    """The table of the module, in full: twelve actions, five who ask."""
    arguments, expected = ACTIONS[action]
    for by, refused in zip(("", "own", "adm", "mem", "out"), expected, strict=True):
        command = replace(ask(action, by), **arguments)
        assert cause(decide(command)) == refused, by


@pytest.mark.parametrize("by", RANKS)
@pytest.mark.parametrize("target", ROLES)
def test_one_is_kicked_muted_and_given_a_role_by_those_above_only(by: str, target: str):
    """All 30 pairs. The owner is out of reach of all but the operator, who may not make the group ownerless."""
    is_above = RANKS[by] > ROLES[target]
    kicked = decide(ask("kick", by, target))
    muted = decide(ask("mute", by, target, value="2000000"))
    if not is_above:
        assert kicked == Refused(Cause.NOT_ALLOWED, {"user": target})
        assert muted == Refused(Cause.NOT_ALLOWED, {"user": target})
    elif target == "own":
        assert kicked == Refused(Cause.BAD_CHANGE, {"user": "own"})
    else:
        assert kicked == GroupChange("kick", GROUP, "write", left=(target,), users=(target,))
    if is_above:
        assert muted.altered == (replace(MEMBERS[target], muted_until=2_000_000),)
    for value, role in (("member", 0), ("admin", 1)):
        given_role = decide(ask("role", by, target, value=value))
        if ROLES[target] == role:
            assert given_role is None, "it is so already"
        elif is_above and RANKS[by] > role and target != "own":
            assert given_role.altered == (replace(MEMBERS[target], role=role),)
        else:
            refused = Cause.BAD_CHANGE if is_above and target == "own" else Cause.NOT_ALLOWED
            assert cause(given_role) == refused


@pytest.mark.parametrize("action", ["kick", "mute"])
def test_one_who_is_too_high_protects_all_that_are_named(action: str):
    """All or nobody."""
    command = ask(action, "adm", "mem", "adm2", value="2000000")
    assert decide(command) == Refused(Cause.NOT_ALLOWED, {"user": "adm2"})


@pytest.mark.parametrize("by", ["", "own", "adm", "mem"])
def test_a_group_may_leave_invitations_to_admins(by: str):
    """`who_invites`."""
    decision = decide(ask("invite", by, "new"), who_invites="admins")
    assert cause(decision) == (Cause.NOT_ALLOWED if by == "mem" else None)


def test_anybody_may_join_where_the_group_says_so():
    """And is in once, however often it is said."""
    decision = decide(ask("join", "out"), who_joins="anybody")
    assert decision == GroupChange(
        "join", replace(GROUP, who_joins="anybody"), "write", joined=("out",), users=("out",)
    )
    assert decide(ask("join", "mem"), who_joins="anybody") is None


# ---------------------------------------------------------------- what it makes


def test_a_new_group_has_its_owner_first_and_each_member_once():
    """And settings, of which those not given are as a group's are."""
    command = CreateGroup(1, "own", "phone", "k", "team", ("b", "own", "a", "b"), AT, (("who_joins", "anybody"),))
    assert create(command, POLICY) == GroupChange(
        "create",
        Group("team", "own", AT, 0, who_joins="anybody"),
        "write",
        joined=("own", "b", "a"),
        users=("own", "b", "a"),
        value="team",
    )


@pytest.mark.spec("FO-07")
@pytest.mark.parametrize(("others", "fan_out"), [(0, "write"), (5, "write"), (6, "read"), (7, "read"), (8, None)])
def test_a_new_group_has_the_strategy_of_its_size(others: int, fan_out: str | None):
    """Six are written to, eight are a group, nine are too many."""
    decision = create(CreateGroup(1, "own", "", "k", "", tuple(f"u{n}" for n in range(others)), AT), POLICY)
    if fan_out is None:
        assert decision == Refused(Cause.GROUP_FULL, {"limit": 8})
    else:
        assert isinstance(decision, GroupChange)
        assert decision.fan_out == fan_out


def test_no_group_is_made_with_settings_that_mean_nothing():
    """An unknown name, and an unknown value."""
    for setting in (("colour", "red"), ("history", "some"), ("is_muted", "true")):
        command = CreateGroup(1, "own", "", "k", "", (), AT, (setting,))
        assert create(command, POLICY) == Refused(Cause.BAD_CHANGE, {"setting": setting[0]})
        assert decide(ask("settings", "own", settings=(setting,))) == Refused(Cause.BAD_CHANGE, {"setting": setting[0]})


def test_who_is_in_is_not_invited_again():
    """Others named with them are."""
    assert decide(ask("invite", "mem", "adm", "new", "new")) == GroupChange(
        "invite", GROUP, "write", joined=("new",), users=("new",)
    )
    assert decide(ask("invite", "mem", "adm")) is None


@pytest.mark.spec("FO-07", "WX-02")
@pytest.mark.parametrize("current", ["write", "read"])
@pytest.mark.parametrize(("joining", "fan_out"), [(1, "write"), (2, "read"), (3, "read"), (4, None)])
def test_growth_switches_a_group_to_reading(current: str, joining: int, fan_out: str | None):
    """In the change that makes it too large for writing; the way back is an operator's."""
    names = tuple(f"n{n}" for n in range(joining))
    decision = change(conversation(fan_out=current), MEMBERS, ask("invite", "own", *names), POLICY)
    if fan_out is None:
        assert decision == Refused(Cause.GROUP_FULL, {"limit": 8})
    else:
        assert isinstance(decision, GroupChange)
        assert decision.fan_out == ("read" if current == "read" else fan_out)
        assert decision.joined == names


def test_shrinking_does_not_switch_back():
    """A group at the border would switch to and fro."""
    decision = change(conversation(fan_out="read"), MEMBERS, ask("leave", "mem"), POLICY)
    assert decision == GroupChange("leave", GROUP, "read", left=("mem",), users=("mem",))


@pytest.mark.parametrize("command", [ask("leave", "own"), ask("kick", "", "own")])
def test_the_last_one_to_go_dissolves_the_group(command: ChangeGroup):
    """By leaving, and by being removed."""
    decision = decide(command, {"own": MEMBERS["own"]})
    assert decision == GroupChange(
        command.action, replace(GROUP, is_dissolved=True), "write", left=("own",), users=("own",)
    )


def test_who_is_gone_is_not_kicked_again():
    """Others named with them are."""
    assert decide(ask("kick", "adm", "out", "mem", "mem")).left == ("mem",)
    assert decide(ask("kick", "adm", "out")) is None


def test_a_group_that_is_dissolved_is_left_by_all():
    """The event names nobody: it is about all."""
    assert decide(ask("dissolve", "own")) == GroupChange(
        "dissolve", replace(GROUP, is_dissolved=True), "write", left=tuple(sorted(ROLES))
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_done_in_a_dissolved_group(action: str):
    """Its owner may repeat; others do not even learn that it was there."""
    for by in ("", "own", "mem", "out"):
        command = replace(ask(action, by), **ACTIONS[action][0])
        decision = decide(command, {}, is_dissolved=True)
        if by not in ("", "own"):
            assert decision == Refused(Cause.NO_CONVERSATION)
        else:
            assert decision == (None if action == "dissolve" else Refused(Cause.DISSOLVED))


def test_a_transfer_makes_the_old_owner_an_admin():
    """Whoever becomes the owner can speak: nobody is above who could lift a mute."""
    members = {**MEMBERS, "mem": replace(MEMBERS["mem"], muted_until=Timestamp(9_000_000))}
    expected = GroupChange(
        "transfer",
        replace(GROUP, owner="mem"),
        "write",
        altered=(member("own", Role.ADMIN), member("mem", Role.OWNER)),
        users=("mem",),
    )
    assert decide(ask("transfer", "own", "mem"), members) == expected
    assert decide(ask("transfer", "", "mem"), members) == expected


def test_a_repeated_transfer_is_no_error():
    """Though the first one took the right to it away."""
    members = {**MEMBERS, "own": member("own", 1), "mem": member("mem", 2)}
    assert decide(ask("transfer", "own", "mem"), members, owner="mem") is None


def test_a_mute_names_those_whom_it_changes():
    """In the order given; 0 ends it."""
    members = {**MEMBERS, "mem2": replace(MEMBERS["mem2"], muted_until=Timestamp(2_000_000))}
    decision = decide(ask("mute", "own", "mem2", "adm", "mem", "adm", value="2000000"), members)
    assert (decision.users, decision.value) == (("adm", "mem"), "2000000")
    assert [member.muted_until for member in decision.altered] == [2_000_000, 2_000_000]
    ended = decide(ask("mute", "own", "mem", "mem2", value="0"), members)
    assert ended.altered == (MEMBERS["mem2"],)


def test_settings_say_what_changes():
    """And of a name that is given twice the last counts."""
    given_settings = (("history", "joined"), ("who_joins", "anybody"), ("who_invites", "members"), ("history", "all"))
    assert decide(ask("settings", "adm", settings=given_settings)) == GroupChange(
        "settings",
        replace(GROUP, who_joins="anybody", history="all"),
        "write",
        value="history=all,who_joins=anybody",
    )


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (ask("mute_all", "adm", value="true"), {"is_muted": True}),
        (ask("rename", "adm", value="new"), {"name": "new"}),
    ],
)
def test_what_changes_the_group_changes_nothing_else(command: ChangeGroup, fields: dict[str, Any]):
    """And nothing the second time, whoever asks."""
    assert decide(command) == GroupChange(command.action, replace(GROUP, **fields), "write", value=command.value)
    assert decide(replace(command, by="mem"), **fields) is None


def test_everybody_may_speak_again():
    """`mute_all` false."""
    assert decide(ask("mute_all", "own", value="false"), is_muted=True).group == GROUP


@pytest.mark.parametrize(
    "command",
    [
        ask(action, "own", value=value)
        for action, value in (("invite", ""), ("kick", ""), ("mute", "0"), ("role", "admin"))
    ]
    + [ask("transfer", "own"), ask("rename", "own"), ask("settings", "own")],
    ids=lambda command: str(command.action),
)
def test_what_would_change_nothing_is_refused_as_blank(command: ChangeGroup):
    """Nobody named, no name, no settings."""
    assert decide(command) == Refused(Cause.BLANK)


@pytest.mark.parametrize(
    "command",
    [
        ask("role", "own", "mem", value="owner"),
        ask("role", "own", "mem", value=""),
        ask("mute", "own", "mem", value="-1"),
        ask("mute", "own", "mem", value="1e3"),
        ask("mute", "own", "mem", value="\u0663"),
        ask("mute", "own", "mem", value="1" * 16),
        ask("mute_all", "own", value="yes"),
        ask("fan_out", "", value="both"),
    ],
)
def test_values_that_mean_nothing_are_refused(command: ChangeGroup):
    """And told."""
    assert decide(command) == Refused(Cause.BAD_CHANGE, {"value": command.value})


def test_a_group_is_handed_to_one():
    """Two heirs are a mistake."""
    assert decide(ask("transfer", "own", "adm", "mem")) == Refused(Cause.BAD_CHANGE)


@pytest.mark.parametrize(("action", "value"), [("role", "admin"), ("mute", "1"), ("transfer", "")])
def test_what_is_about_members_needs_members(action: str, value: str):
    """Whoever is not in is told."""
    assert decide(ask(action, "own", "out", value=value)) == Refused(Cause.NO_MEMBER, {"user": "out"})


# ---------------------------------------------------------------- strategies


@pytest.mark.parametrize("group", [GROUP, None])
def test_an_operator_switches_the_strategy_of_any_conversation(group: Group | None):
    """Both ways, and single ones too; members never."""
    assert switched(conversation(group), "", "read") == "read"
    assert switched(conversation(group, "read"), "", "write") == "write"
    assert switched(conversation(group), "", "write") is None
    assert switched(conversation(group), "own", "write") is None
    assert switched(conversation(group), "own", "read") == Refused(Cause.NOT_ALLOWED)
    assert switched(conversation(group), "", "") == Refused(Cause.BAD_CHANGE, {"value": ""})


def test_an_operators_switch_is_an_event_of_the_group():
    """It says which."""
    assert decide(ask("fan_out", "", value="read")) == GroupChange("fan_out", GROUP, "read", value="read")


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_of_this_is_done_to_a_single_conversation(action: str):
    """It has no members to speak of."""
    command = replace(ask(action, "own"), **ACTIONS[action][0])
    assert change(conversation(None), {}, command, POLICY) == Refused(Cause.BAD_CHANGE)


# ---------------------------------------------------------------- messages


def message(sender: str = "mem", *, seq: int = 5, at: int = 900, form: int = Form.MESSAGE) -> Message:
    return Message(1, 7, seq, seq, 1, sender, "phone", "", "k", form, "text", 0, b"{}", b"", Timestamp(at))


@pytest.mark.parametrize("role", Role)
def test_a_member_sends_unless_muted(role: Role):
    """Alone until a time, whatever the role; with everybody as a plain member only."""
    now = Timestamp(1_000)
    for until, is_muted in ((0, False), (1_000, False), (1_001, True)):
        decision = may_send(conversation(), member("u", role, muted_until=until), now)
        assert decision == (Refused(Cause.MUTED, {"until": 1_001}) if is_muted else None)
    decision = may_send(conversation(replace(GROUP, is_muted=True)), member("u", role), now)
    assert decision == (Refused(Cause.MUTED) if role == Role.MEMBER else None)
    decision = may_send(conversation(replace(GROUP, is_dissolved=True)), member("u", role), now)
    assert decision == Refused(Cause.DISSOLVED)


@pytest.mark.parametrize("role", [None, *Role])
@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("is_late", [True, False])
def test_a_message_is_its_senders_for_a_while_and_its_admins_for_ever(role: Role | None, is_own: bool, is_late: bool):  # noqa: FBT001
    """Recalls by both, edits by the sender only; in a single conversation (no role) there are no admins."""
    where = conversation(None if role is None else GROUP)
    who = None if role is None else member("u", role)
    said = message("u" if is_own else "v")
    now = Timestamp(1_001 if is_late else 1_000)
    if not is_own:
        expected = Refused(Cause.NOT_YOURS)
    else:
        expected = Refused(Cause.WINDOW_CLOSED, {"window_ms": 100}) if is_late else None
    assert may_edit(where, "u", who, said, now, window_ms=100) == expected
    if role is not None and role >= Role.ADMIN:
        expected = None
    assert may_recall(where, "u", who, said, now, window_ms=100) == expected


def test_what_is_no_message_or_not_seen_is_left_alone():
    """Events, and what was before the member came: an admin's reach ends there too."""
    newcomer = replace(member("u", Role.ADMIN), first_seq=5)
    for said, refused in (
        (message(seq=5), None),
        (message(seq=4), Refused(Cause.NO_MESSAGE)),
        (message(form=Form.EVENT), Refused(Cause.NO_MESSAGE)),
    ):
        assert may_recall(conversation(), "u", newcomer, said, Timestamp(0), window_ms=0) == refused
    refused = may_edit(conversation(), "u", newcomer, message("u", seq=4), Timestamp(0), window_ms=0)
    assert refused == Refused(Cause.NO_MESSAGE)


def test_a_muted_member_recalls_but_does_not_edit():
    """An edit says something."""
    muted = member("mem", muted_until=Timestamp(2_000))
    arguments = (conversation(), "mem", muted, message(), Timestamp(950))
    assert may_recall(*arguments, window_ms=100) is None
    assert may_edit(*arguments, window_ms=100) == Refused(Cause.MUTED, {"until": 2_000})


def test_the_log_of_a_dissolved_group_is_closed():
    """To its admins too."""
    gone = conversation(replace(GROUP, is_dissolved=True))
    for may in (may_recall, may_edit):
        decision = may(gone, "own", MEMBERS["own"], message("own"), Timestamp(900), window_ms=100)
        assert decision == Refused(Cause.DISSOLVED)


# ---------------------------------------------------------------- histories

PEOPLE = ("a", "b", "c", "d", "e")
VALUES = ("", "admin", "member", "owner", "true", "false", "0", "2000000", "read", "write", "name")
COMMANDS = st.builds(
    ask,
    st.sampled_from([*ACTIONS]),
    st.sampled_from(["", *PEOPLE]),
    value=st.sampled_from(VALUES),
    settings=st.lists(
        st.sampled_from([("history", "all"), ("who_joins", "anybody"), ("who_invites", "admins")]), max_size=2
    ).map(tuple),
)
USERS = st.lists(st.sampled_from(PEOPLE), max_size=3).map(tuple)


class Histories(RuleBasedStateMachine):
    """Random commands on one group, carried out as the ledger does."""

    @initialize(members=USERS)
    def make(self, members: tuple[str, ...]) -> None:
        self.policy = FanOutPolicy(single="write", write_members_max=3, members_max=4)
        made = create(CreateGroup(1, "a", "", "k", "name", members, AT), self.policy)
        assert isinstance(made, GroupChange)
        self.conversation = conversation(made.group, made.fan_out)
        self.members = {user: member(user, 2 if user == "a" else 0) for user in made.joined}

    @rule(command=COMMANDS, users=USERS)
    def command(self, command: ChangeGroup, users: tuple[str, ...]) -> None:
        command = replace(command, users=users)
        decision = change(self.conversation, self.members, command, self.policy)
        if not isinstance(decision, GroupChange):
            return
        assert set(decision.joined).isdisjoint(self.members)
        assert set(decision.left) <= set(self.members)
        if decision.joined:
            size = len(self.members) + len(decision.joined)
            assert decision.fan_out == self.policy.of_group(size, self.conversation.fan_out)
        before = (self.conversation, dict(self.members))
        for user in decision.joined:
            self.members[user] = member(user)
        for user in decision.left:
            del self.members[user]
        for changed in decision.altered:
            assert self.members[changed.user] != changed
            self.members[changed.user] = changed
        self.conversation = replace(self.conversation, group=decision.group, fan_out=decision.fan_out)
        assert (self.conversation, self.members) != before, "what is called a change changes something"
        again = change(self.conversation, self.members, command, self.policy)
        assert not isinstance(again, GroupChange), "nothing happens twice"
        if decision.group.is_dissolved and command.action != "dissolve":
            assert cause(again) == Cause.DISSOLVED
        elif command.action == "leave":
            assert cause(again) == Cause.NO_CONVERSATION, "who left is a stranger"
        else:
            assert again is None, "repeating is no error"

    @invariant()
    def it_has_one_owner_and_not_too_many_members(self) -> None:
        group = self.conversation.group
        assert group is not None
        assert [user for user, one in self.members.items() if one.role == 2] == [group.owner] * (not group.is_dissolved)
        assert len(self.members) <= 4
        assert bool(self.members) is not group.is_dissolved


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(COMMANDS, USERS)
@settings(max_examples=200, deadline=None)
def test_the_operator_is_refused_nothing_but_nonsense(command: ChangeGroup, users: tuple[str, ...]):
    """No right is ever missing, with the limits of a preset."""
    members = {user: member(user, 2 if user == "a" else 1) for user in PEOPLE}
    command = replace(command, by="", users=users)
    decision = change(conversation(replace(GROUP, owner="a")), members, command, PRESETS["hybrid"])
    assert cause(decision) in (None, Cause.BLANK, Cause.BAD_CHANGE)
