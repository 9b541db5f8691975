"""The whole ledger: random commands against a dumb twin, over crashes and forgetting; then promises one by one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec.structs import replace

from im.core import timelines
from im.core.commands import (
    Appended,
    Cause,
    ChangeGroup,
    Command,
    GroupChanged,
    KeyConflict,
    Outcome,
    Outgoing,
    Queued,
    Receive,
    Received,
    Refused,
    Sent,
    Trim,
    Trimmed,
)
from im.core.fan_out import FanOutPolicy
from im.core.ledger import LedgerSettings
from im.core.model import Form, Message
from im.core.shards import CID_STRIDE, shard_of_user
from tests.im.core.ledger_commands import USERS, random_batch
from tests.im.core.ledger_twin import Twin
from tests.im.core.ledger_world import AT, World, change, draft, edit, group, mark, recall, small_bounds

POLICIES = {
    "write": FanOutPolicy(single="write", write_members_max=5, members_max=5),
    "read": FanOutPolicy(single="read", write_members_max=0, members_max=5),
    "hybrid": FanOutPolicy(single="write", write_members_max=3, members_max=5),
}


def settings_of(policy: str, remembered_max: int = 100_000) -> LedgerSettings:
    return LedgerSettings(policy=POLICIES[policy], groups_of_user_max=4, remembered_max=remembered_max)


@pytest.fixture(autouse=True, scope="module")
def _small_bounds() -> Any:
    with small_bounds():
        yield


# ---------------------------------------------------------------- against the twin


def same_outcome(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, GroupChanged) and isinstance(other, GroupChanged):
        return replace(one, members=()) == replace(other, members=()) and set(one.members) == set(other.members)
    return one == other


class Checked:
    """A world and its twin, compared after every batch."""

    def __init__(self, decided_by: LedgerSettings) -> None:
        self.world = World(decided_by)
        self.twin = Twin(decided_by)
        self.trimmed: dict[str, int] = {}
        self.sent: list[Command] = []

    def run(self, *commands: Command) -> list[Outcome]:
        outcomes, expected = self.world.run(*commands), self.twin.batch(commands)
        for command, outcome, other in zip(commands, outcomes, expected, strict=True):
            if isinstance(outcome, Trimmed):  # the twin tells everybody at once
                assert isinstance(command, Trim)
                floor = max(self.trimmed.get(command.user, 0), outcome.floor)
                assert floor <= len(self.world.timelines.get(command.user, ()))
                self.trimmed[command.user] = floor
            else:
                assert same_outcome(outcome, other), (command, outcome, other)
        self.compare()
        self.compare_deliveries()
        return outcomes

    def drain(self) -> None:
        while self.world.ledger.has_work:
            self.run()

    def compare(self) -> None:
        world, twin = self.world, self.twin
        for name in ("logs", "conversations", "members", "views", "overlays", "keys", "mentions"):
            assert getattr(world, name) == getattr(twin, name), name
        assert {floor for floor in world.floors.values() if floor} <= set(self.trimmed.values())
        assert world.floors == {user: floor for user, floor in self.trimmed.items() if user in world.floors}
        going = {pending.cid for pending in world.pendings.values()}
        assert world.ledger.has_work == bool(going or twin.queue)
        for user in USERS:
            told, meant = (by_conversation(one.timelines.get(user, [])) for one in (world, twin))
            for cid, entries in meant.items():
                reached = told.pop(cid, [])
                assert reached == (entries[: len(reached)] if cid in going else entries), (user, cid)
            assert not told

    def compare_deliveries(self) -> None:
        """Each entry of a timeline is told once, each message begun once, and who has no entry is told directly."""
        changes = self.world.changes
        stored = [(user, offset, message.n) for message, given in changes.messages for user, offset in given]
        stored += [(user, offset, message.n) for user, offset, message in changes.entries]
        told = [(user, offset, one.message.n) for one in changes.deliveries for user, offset in one.positions]
        assert Counter(stored) == Counter(told)
        first = [one for one in changes.deliveries if one.is_first]
        assert [one.message for one in first] == [message for message, _ in changes.messages]
        assert all(set(one.members) == self.twin.directly.get(one.message.n, set()) for one in first)


def by_conversation(timeline: list[Message]) -> dict[int, list[Message]]:
    """Notes are 0's."""
    found: dict[int, list[Message]] = {}
    for message in timeline:
        found.setdefault(0 if message.form == Form.NOTE else message.cid, []).append(message)
    return found


class LedgerMachine(RuleBasedStateMachine):
    """Batches of any size, with crashes between them."""

    @initialize(policy=st.sampled_from(list(POLICIES)), remembered_max=st.sampled_from((0, 2, 100_000)))
    def begin(self, policy: str, remembered_max: int) -> None:
        self.checked = Checked(settings_of(policy, remembered_max))
        self.checked.run(group("a", ["b", "c"], "g1"), draft("a", "b", "d1"), group("b", ["c", "d", "e", "f"], "g2"))

    @rule(seed=st.integers(0, 2**32), size=st.integers(1, 12))
    def batch(self, seed: int, size: int) -> None:
        self.checked.run(*random_batch(random.Random(seed), self.checked.twin, self.checked.sent, size))

    @rule()
    def crash(self) -> None:
        self.checked.world.restart()

    @precondition(lambda self: self.checked.world.ledger.has_work)
    @rule()
    def work(self) -> None:
        self.checked.run()

    def teardown(self) -> None:
        if hasattr(self, "checked"):
            self.checked.drain()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_long_histories_are_those_of_the_twin(policy: str, seed: int):
    """All invariants, deep in: outcomes of every kind, as a count shows, over crashes and forgetting."""
    draw = random.Random(seed)
    checked = Checked(settings_of(policy, draw.choice((0, 3, 100_000))))
    seen: Counter[str] = Counter()
    for _ in range(120):
        for outcome in checked.run(*random_batch(draw, checked.twin, checked.sent, draw.choice((0, 1, 3, 10)))):
            seen[outcome.cause.name if isinstance(outcome, Refused) else type(outcome).__name__] += 1
        if draw.random() < 0.2:
            checked.world.restart()
    checked.drain()
    assert {"Appended", "Queued", "KeyConflict", "Marked", "GroupChanged", "Trimmed", "NO_CONVERSATION"} <= set(seen)


# ---------------------------------------------------------------- what clients see, whatever the strategy


def concerned(world: World, cid: int) -> list[set[str]]:
    """By entry, who is in the conversation then, or leaves it by the entry: replayed from its events alone."""
    one = world.conversations[cid]
    inside, found = {one.lo, one.hi} if one.group is None else set(), []
    for entry in world.logs[cid]:
        said = msgspec.json.decode(entry.body) if entry.form == Form.EVENT else {"event": ""}
        if said["event"] in ("create", "invite", "join"):
            inside = inside | set(said["users"])
        found.append(inside)
        if said["event"] in ("leave", "kick"):
            inside = inside - set(said["users"])
        elif said["event"] == "dissolve":
            inside = set()
    return found


def received(world: World, user: str) -> dict[int, list[Message]]:
    """What a client has of each conversation: from its timeline, and of a stretch with read fan-out from the log."""
    found: dict[int, dict[int, Message]] = {}
    for message in world.timelines.get(user, []):
        if message.form != Form.NOTE:
            mine = found.setdefault(message.cid, {})
            assert message.seq > max(mine, default=0), "once, in order"
            mine[message.seq] = message
    for cid, entries in world.logs.items():
        fan_out = world.settings.policy.single
        for entry, users in zip(entries, concerned(world, cid), strict=True):
            if entry.form == Form.EVENT:
                fan_out = msgspec.json.decode(entry.body)["fan_out"]
            if user in users and fan_out == "read":
                assert entry == found.setdefault(cid, {}).setdefault(entry.seq, entry)
    return {cid: [mine[seq] for seq in sorted(mine)] for cid, mine in found.items()}


def without_strategy(message: Message) -> Message:
    """The entry but for its place among notes and what says how it is told."""
    body = message.body
    if message.form == Form.EVENT:
        body = msgspec.json.encode(msgspec.json.decode(body) | {"fan_out": ""})
    return replace(message, n=0, body=body)


def is_of_strategy(command: Command) -> bool:
    return isinstance(command, ChangeGroup) and command.action == "fan_out"


@pytest.mark.spec("FO-08")
@pytest.mark.parametrize("seed", range(6))
def test_clients_see_the_same_sequence_whatever_the_strategy(seed: int):
    """One trace under all policies: same outcomes, same logs, and each user has the same entries, once, in order."""
    draw, twin = random.Random(seed), Twin(settings_of("write"))
    batches: list[list[Command]] = [[group("a", ["b", "c", "d"], "g1"), group("b", ["c", "a"], "g2")]]
    sent: list[Command] = []
    twin.batch(batches[0])
    for _ in range(80):
        commands = [command for command in random_batch(draw, twin, sent, 4) if not is_of_strategy(command)]
        batches.append(commands)
        twin.batch(commands)
    seen = []
    for policy in POLICIES:
        world = World(settings_of(policy))
        kinds = [[type(outcome) for outcome in world.run(*commands)] for commands in batches]
        world.drain()
        logs = {cid: [without_strategy(entry) for entry in entries] for cid, entries in world.logs.items()}
        had = {
            user: {
                cid: [without_strategy(entry) for entry in entries] for cid, entries in received(world, user).items()
            }
            for user in USERS
        }
        seen.append((kinds, logs, had))
    assert seen[0] == seen[1] == seen[2]
    assert sum(len(entries) for entries in seen[0][1].values()) > 60


@pytest.mark.spec("DT-01")
@pytest.mark.parametrize("seed", range(4))
def test_a_switch_under_traffic_loses_and_repeats_nothing(seed: int):
    """What each user has of a conversation is every entry from joining to leaving, over all its lives there."""
    draw = random.Random(seed)
    checked = Checked(settings_of("hybrid"))
    checked.run(group("a", ["b", "c", "d"], "g1"), group("b", ["c", "a"], "g2"))
    for _ in range(100):
        checked.run(*random_batch(draw, checked.twin, checked.sent, 1))
        if draw.random() < 0.2:
            checked.run(change("", draw.choice((1, 2)), "fan_out", value=draw.choice(("read", "write"))))
    checked.drain()
    world = checked.world
    for user in USERS:
        meant = {
            cid: [entry for entry, users in zip(world.logs[cid], concerned(world, cid), strict=True) if user in users]
            for cid in world.logs
        }
        assert received(world, user) == {cid: entries for cid, entries in meant.items() if entries}


# ---------------------------------------------------------------- queued drafts


def test_a_queued_draft_is_carried_out_before_what_comes_later():
    """I5: by the next batch, in its sender's order."""
    world = World()
    queued, placed = world.run(draft("a", "b", "k1", is_queued=True), draft("b", "a", "k3"))
    assert queued == Queued(7, is_new=True)
    assert isinstance(placed, Appended)
    assert world.ledger.has_work
    world.restart()
    (retried,) = world.run(draft("a", "b", "k1"))
    assert retried == Appended(world.logs[1][1], is_new=False)
    assert [entry.client_msg_id for entry in world.logs[1]] == ["k3", "k1"]
    assert not world.ledger.has_work
    assert not world.queued


@pytest.mark.parametrize(
    "later",
    [
        draft("a", "b", "k2"),
        edit("a", 1, 1, "k2"),
        mark("a", 1, read_seq=9),
        group("a", ["b"], "k2"),
        change("a", 2, "rename", value="other"),
        Trim("a", 1),
    ],
)
def test_nothing_of_a_sender_overtakes_what_it_queued(later: Command):
    """In the same batch it is carried out first, and is answered as queued all the same."""
    world = World()
    world.run(draft("a", "b", "k0"), group("a", ["b"], "g"))
    queued, other, done = world.run(draft("a", "b", "k1", is_queued=True), draft("b", "a", "k3"), later)
    assert queued == Queued(7, is_new=True)
    assert not isinstance(other, Refused | Queued)
    assert not isinstance(done, Refused | Queued)
    assert [entry.client_msg_id for entry in world.logs[1]][:3] == ["k0", "k3", "k1"]
    assert not world.queued
    assert not world.ledger.has_work


def test_drafts_for_users_and_for_conversations_keep_their_order():
    """They need different things, and are placed as they came."""
    world = World()
    world.run(group("a", ["b"]), draft("a", "b", "k0"))
    world.run(*(draft("a", to, f"q{n}", is_queued=True) for n, to in enumerate(("b", 1, "z", 9, 1, "b"))))
    world.restart()
    world.run()
    entries = [(message.client_msg_id, message.form) for message in world.log[2:]]
    assert entries == [(f"q{n}", Form.NOTE if n == 3 else Form.MESSAGE) for n in range(6)]
    assert [one.position for one in world.queued] == []


def test_positions_of_the_queue_go_on():
    """Also after a crash."""
    world = World()
    world.run(draft("a", "b", "k1", is_queued=True), draft("a", "b", "k2", is_queued=True))
    world.restart()
    world.run(draft("a", "b", "k3", is_queued=True))
    assert world.changes.dequeued_through == 2
    assert [one.position for one in world.queued] == [3]


def test_a_key_in_the_queue_is_used():
    """I2: before anybody knows what becomes of it, and after."""
    world = World()
    world.run(draft("a", "b", "k1"))
    outcomes = world.run(
        draft("a", "b", "k2", is_queued=True), draft("a", "b", "k2", is_queued=True),
        draft("a", "b", "k2", "2", is_queued=True), draft("b", "a", "k2"),
    )  # fmt: skip
    assert outcomes == [
        Queued(7, is_new=True), Queued(7, is_new=False), KeyConflict(None),
        Appended(world.keys["b", "k2"], is_new=True),
    ]  # fmt: skip
    outcomes = world.run(
        draft("a", "b", "k2"), draft("a", "b", "k2", "2"), edit("a", 1, 1, "k2"), recall("a", 1, 1, "k2"),
        group("a", ["b"], "k2"),
    )  # fmt: skip
    first = world.keys["a", "k2"]
    assert first.form == Form.MESSAGE
    assert outcomes == [Appended(first, is_new=False), *[KeyConflict(first)] * 4]


def test_a_draft_that_may_come_again_is_not_queued(monkeypatch: pytest.MonkeyPatch):
    """In the queue it would fail for good, and its key stand for that."""
    monkeypatch.setattr(timelines, "WAITING_ENTRIES_MAX", 2 * 3)
    world = World()
    world.run(group("own", ["b", "c"]))
    queued = draft("b", 1, "q", is_queued=True)
    *_, busy = world.run(draft("own", 1, "k1"), draft("own", 1, "k2"), queued)
    assert isinstance(busy, Refused)
    assert busy.cause is Cause.BUSY
    world.drain()
    assert world.one(queued) == Queued(7, is_new=True)
    world.drain()
    assert [message.client_msg_id for message in world.logs[1]] == ["g", "k1", "k2", "q"]


def test_a_queued_retry_of_what_was_stored_is_answered_with_its_place():
    """It is not stored again."""
    world = World()
    (first,) = world.run(draft("a", "b", "k1"))
    assert isinstance(first, Appended)
    assert world.one(draft("a", "b", "k1", is_queued=True)) == Appended(first.message, is_new=False)
    assert not world.queued


# ---------------------------------------------------------------- needs


def test_nothing_is_asked_twice_and_everything_that_matters_is():
    """A conversation is asked for first, then what depends on it."""
    world = World()
    world.run(group("a", ["b"]), draft("a", 1, "k1"))
    world.restart()
    world.run(mark("c", 1, read_seq=1), edit("a", 1, 2, "k2"), recall("b", 9, 1, "k3"))
    first, second = world.asked
    assert (first.keys, first.cids, first.views) == ([("a", "k2"), ("b", "k3")], [1, 9], [("c", 1)])
    assert first.messages == [(1, 2), (9, 1)]
    assert (second.members, second.messages, second.users) == ([(1, "c")], [(1, 1)], ["a", "b"])
    assert (second.keys, second.cids) == ([], [])


@pytest.mark.spec("FO-01")
def test_members_of_a_large_group_are_not_looked_up_for_a_message():
    """With read fan-out only its sender may be told anything."""
    world = World(settings_of("read"))
    world.run(group("a", "bcde"))
    world.restart()
    world.run(draft("b", 1, "k1"), edit("b", 1, 1, "k2"))
    assert {user for needs in world.asked for user in needs.users} == {"b"}
    world.restart()
    world.run(change("", 1, "rename", value="new"))
    assert {user for needs in world.asked for user in needs.users} == {"a"}
    world.restart()
    world.run(change("", 1, "kick", "e"))  # few enough to become a small one
    assert {user for needs in world.asked for user in needs.users} == set("abcde")


def test_a_change_of_a_very_large_group_asks_for_those_it_names():
    """And the owner, who may be told."""
    world = World(LedgerSettings(policy=FanOutPolicy(single="read", write_members_max=0, members_max=99)))
    world.run(group("a", [f"u{n}" for n in range(20)]))
    world.restart()
    world.run(change("", 1, "kick", "u7"), mark("u1", 1, read_seq=1))
    assert {user for needs in world.asked for user in needs.users} == {"a", "u7", "u1"}


# ---------------------------------------------------------------- trimming


def test_timelines_are_trimmed_to_their_end_at_most():
    """And never grow back: of several trims in a batch the furthest counts."""
    world = World()
    world.run(*(draft("a", "b", f"k{n}") for n in range(5)))
    assert world.run(Trim("a", 3), Trim("a", 2), Trim("b", 99), Trim("x", 4)) == [
        Trimmed(3), Trimmed(3), Trimmed(5), Trimmed(0),
    ]  # fmt: skip
    assert world.floors == {"a": 3, "b": 5, "x": 0}
    world.run(draft("a", "b", "k9"))
    assert world.told("a")[-1] == (1, 6)


# ---------------------------------------------------------------- refusals


def test_what_is_refused_changes_nothing():
    """I3: nothing is written, no number is used, and the next commands find everything as it was."""
    world = World(settings_of("hybrid"))
    world.run(group("a", ["b"], "g1", name="1"), draft("a", "b", "k1"))
    refused = world.run(
        draft("x", 1, "k1"), draft("x", "y", "k2", ref=1), edit("b", 2, 1, "k3"), recall("x", 2, 1, "k4"),
        mark("x", 1, is_muted=True), group("x", "abcdef", "k5"), change("b", 1, "kick", "a"), change("x", 1, "join"),
        change("a", 1, "role", "x", value="admin"), change("b", 9, "leave"), mark("a", 9, is_hidden=True),
    )  # fmt: skip
    assert [outcome.cause for outcome in refused if isinstance(outcome, Refused)] == [
        Cause.NO_CONVERSATION, Cause.NO_MESSAGE, Cause.NOT_YOURS, Cause.NO_CONVERSATION, Cause.NO_CONVERSATION,
        Cause.GROUP_FULL, Cause.NOT_ALLOWED, Cause.NOT_ALLOWED, Cause.NO_MEMBER, Cause.NO_CONVERSATION,
        Cause.NO_CONVERSATION,
    ]  # fmt: skip
    assert not world.changes
    (appended,) = world.run(draft("x", "y", "k6"))
    assert isinstance(appended, Appended)
    assert (appended.message.cid, appended.message.n) == (3, 3)


def test_what_comes_from_another_shard_is_taken_over_beside_what_is_said_here():
    """I6: in one batch, in which what somebody queued is not carried out the sooner for it."""
    near = [name for name in map(str, range(99)) if shard_of_user(name, 2) == 0][:2]
    away = next(name for name in map(str, range(99)) if shard_of_user(name, 2) == 1)
    world = World(LedgerSettings(shards=2))
    cid = CID_STRIDE + 1
    entry = Message(5, cid, 1, 1, 7, away, "phone", near[0], "k1", Form.MESSAGE, "text", 0, b"1", b"", AT)
    outcomes = world.run(
        draft(near[0], near[1], "k1", is_queued=True),
        Receive(1, (Outgoing(4, 0, entry, (near[0],)),)),
        draft(near[1], near[0], "k1"),
        Sent(1, 9),
    )
    assert outcomes[1:2] + outcomes[3:] == [Received(4), Received(9)]
    world.drain()
    assert sorted(world.told(near[0])) == [(CID_STRIDE, 1), (CID_STRIDE, 2), (cid, 1)]
    assert [one.sender for one in world.timelines[near[1]]] == [near[1], near[0]], "the queued one came later"
    assert (world.received, world.sent) == ({1: 4}, {1: 9})


def test_a_ledger_goes_on_with_the_positions_of_the_one_before():
    """I6: neither is one given twice, nor is anything taken over twice."""
    users = list(map(str, range(20)))
    worlds = [World(LedgerSettings(shard=shard, shards=2)) for shard in (0, 1)]
    owner = next(user for user in users if shard_of_user(user, 2) == 0)
    worlds[0].run(group(owner, users))
    positions = []
    for n in range(4):
        worlds[0].restart()
        worlds[1].restart()
        worlds[0].run(draft(owner, CID_STRIDE, f"k{n}"))
        worlds[0].drain()
        positions = [one.position for one in worlds[0].outbox]
        worlds[1].run(Receive(0, tuple(worlds[0].outbox)))
    assert positions == list(range(1, len(positions) + 1))
    for user in users:
        world = worlds[shard_of_user(user, 2)]
        assert world.told(user) == [(CID_STRIDE, seq) for seq in range(1, 6)]


def test_invariants_see_a_queue_out_of_order():
    """I5."""
    world = World()
    world.run(draft("a", "b", "k1", is_queued=True), draft("b", "a", "k2", is_queued=True))
    queue = world.ledger._queue
    queue["a", "k1"] = queue.pop(("a", "k1"))
    with pytest.raises(AssertionError, match="I5"):
        world.ledger.check_invariants()
