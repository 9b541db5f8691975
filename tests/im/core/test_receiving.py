"""Entries for timelines of other shards: a system of ledgers against one, then promises one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from im.core.commands import Outgoing, Receive, Received, Sent
from im.core.fan_out import FanOutPolicy
from im.core.ledger import LedgerSettings
from im.core.model import Form, Message, Overlay
from im.core.shards import CID_STRIDE, shard_of_user
from tests.im.core.ledger_system import System
from tests.im.core.ledger_world import AT, World, draft, edit, group, mark, recall, small_bounds

SHARDS = 3
POLICIES = {
    "write": FanOutPolicy(single="write", write_members_max=5, members_max=5),
    "hybrid": FanOutPolicy(single="write", write_members_max=3, members_max=5),
}


@pytest.fixture(autouse=True, scope="module")
def _small_bounds() -> Iterator[None]:
    with small_bounds():
        yield


def settings_of(policy: str, remembered_max: int) -> LedgerSettings:
    return LedgerSettings(policy=POLICIES[policy], remembered_max=remembered_max)


# ---------------------------------------------------------------- systems


class SystemMachine(RuleBasedStateMachine):
    """Commands, deliveries and crashes in any order."""

    @initialize(policy=st.sampled_from(list(POLICIES)), remembered_max=st.sampled_from((0, 2, 100_000)))
    def begin(self, policy: str, remembered_max: int) -> None:
        self.system = System(settings_of(policy, remembered_max), SHARDS)
        for command in (group("a", "bc", "g1"), draft("a", "b", "d1"), group("b", "cdef", "g2")):
            self.system.run(command)

    @rule(seed=st.integers(0, 2**32), size=st.integers(1, 12))
    def send(self, seed: int, size: int) -> None:
        draw = random.Random(seed)
        for _ in range(size):
            self.system.send(draw)

    @rule(shards=st.tuples(st.integers(0, SHARDS - 1), st.integers(0, SHARDS - 1)), seed=st.integers(0, 2**32))
    def deliver(self, shards: tuple[int, int], seed: int) -> None:
        self.system.deliver(*shards, random.Random(seed))

    @rule(shard=st.integers(0, SHARDS - 1))
    def crash(self, shard: int) -> None:
        self.system.worlds[shard].restart()

    @rule(shard=st.integers(0, SHARDS - 1))
    def work(self, shard: int) -> None:
        self.system.worlds[shard].run()

    def teardown(self) -> None:
        if hasattr(self, "system"):
            self.system.settle()


TestSystemMachine = SystemMachine.TestCase
TestSystemMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("seed", "shards"), [(1, 2), (2, 3), (3, 5)])
def test_users_of_many_shards_have_what_they_would_have_in_one(policy: str, seed: int, shards: int):
    """The same entries, each once, without a hole, of each conversation in order; with edits, recalls and notes."""
    draw = random.Random(seed)
    system = System(settings_of(policy, draw.choice((0, 3, 100_000))), shards)
    came: Counter[Form] = Counter()
    for _ in range(600):
        system.send(draw)
        if draw.random() < 0.5:
            system.deliver(draw.randrange(shards), draw.randrange(shards), draw)
        if draw.random() < 0.05:
            system.worlds[draw.randrange(shards)].restart()
    system.settle()
    for world in system.worlds:
        came += Counter(Form(entry.form) for entry in world.log if entry.origin)
    assert set(came) == set(Form), "of each form some came from other shards"


# ---------------------------------------------------------------- one by one

AWAY = next(name for name in map(str, range(99)) if shard_of_user(name, 2) == 1)
NEAR = next(name for name in map(str, range(99)) if shard_of_user(name, 2) == 0)
CID = CID_STRIDE + 1
"""A conversation of shard 1."""


def shard(number: int) -> World:
    return World(LedgerSettings(shard=number, shards=2))


def entry(position: int, form: Form, seq: int, *, ref: int = 0, body: bytes = b"1", user: str = NEAR) -> Outgoing:
    message = Message(9, CID, seq, 1, 7, AWAY, "phone", user, f"k{seq}", form, "x", ref, body, b'["a"]', AT)
    return Outgoing(position, 0, message, (user,))


def test_what_comes_again_is_passed_over():
    """Within a command, a batch and a later one, in this life and the next; the answer says how far all of it is."""
    world = shard(0)
    one, two, three = (entry(n, Form.MESSAGE, n) for n in (3, 4, 8))
    again = [Receive(1, (one,)), Receive(1, (one, two)), Receive(1, ())]
    assert world.run(*again) == [Received(3), Received(4), Received(4)]
    world.restart()
    assert world.one(Receive(1, (two,))) == Received(4)
    assert not world.changes, "nothing is written for it"
    assert world.one(Receive(1, (one, two, three))) == Received(8)
    assert world.received == {1: 8}
    assert world.told(NEAR) == [(CID, 3), (CID, 4), (CID, 8)]
    assert [message.origin for message in world.log] == [2, 2, 2], "each is marked as shard 1's"
    assert world.logs == world.keys == {}, "and is in no log here, and known by no key"


def test_each_shard_has_positions_of_its_own():
    """One that is far behind another is not passed over."""
    world = World(LedgerSettings(shard=0, shards=3))
    near = next(name for name in map(str, range(99)) if shard_of_user(name, 3) == 0)
    for source, position in ((1, 100), (2, 1), (1, 101), (2, 2)):
        world.one(Receive(source, (entry(position, Form.MESSAGE, position, user=near),)))
    assert world.received == {1: 101, 2: 2}
    assert len(world.told(near)) == 4


def test_an_edit_covers_the_message_and_the_edit_before_it():
    """As where the log is; but that no message is counted here."""
    world = shard(0)
    entries = (
        entry(1, Form.MESSAGE, 1),
        entry(2, Form.EDIT, 2, ref=1, body=b"2"),
        entry(3, Form.EDIT, 3, ref=1, body=b"3"),
        entry(4, Form.RECALL, 4, ref=1, body=b""),
    )
    for one in entries[:2]:
        world.run(Receive(1, (one,)))
    assert world.overlays == {(CID, 1): Overlay(CID, 1, 2, False, 0, b"2", b'["a"]')}
    world.run(Receive(1, entries[2:]))
    assert world.overlays == {
        (CID, 1): Overlay(CID, 1, 4, True, 0, b"", b'["a"]'),
        (CID, 2): Overlay(CID, 2, 3, False, 0, b"", b""),
        (CID, 3): Overlay(CID, 3, 4, False, 0, b"", b""),
    }


def test_an_edit_that_comes_in_parts_covers_once():
    """A big fan-out goes out in steps: each has the same edit, for other users."""
    world = shard(0)
    other = next(name for name in map(str, range(99)) if name != NEAR and shard_of_user(name, 2) == 0)
    edits = [entry(1, Form.EDIT, 2, ref=1), entry(2, Form.EDIT, 3, ref=1), entry(3, Form.EDIT, 2, ref=1, user=other)]
    for one in edits:
        world.run(Receive(1, (one,)))
    assert world.overlays[CID, 1].version == 3
    assert world.overlays[CID, 2].version == 3
    assert set(world.overlays) == {(CID, 1), (CID, 2)}, "an edit does not cover itself"
    assert (world.told(NEAR), world.told(other)) == ([(CID, 2), (CID, 3)], [(CID, 2)])


def test_what_was_sent_is_forgotten_and_its_positions_are_not():
    """The greatest one counts: an answer may come after a later one."""
    world = shard(0)
    world.run(group(NEAR, [AWAY]), draft(NEAR, CID_STRIDE, "k1"), draft(NEAR, CID_STRIDE, "k2"))
    assert [(one.position, one.shard, one.users) for one in world.outbox] == [(n, 1, (AWAY,)) for n in (1, 2, 3)]
    world.run(Sent(1, 2), Sent(1, 1))
    assert [one.position for one in world.outbox] == [3]
    world.run(Sent(1, 3))
    assert world.outbox == []
    world.restart()
    world.run(draft(NEAR, CID_STRIDE, "k3"))
    assert [one.position for one in world.outbox] == [4]


def test_what_a_user_does_here_is_noted_in_a_timeline_elsewhere():
    """Marks, and what became of a draft that was queued."""
    world = shard(0)
    world.run(group(NEAR, [AWAY]), mark(AWAY, CID_STRIDE, read_seq=1), draft(AWAY, 5 * CID_STRIDE, "k", is_queued=True))
    world.run()
    assert [(one.message.kind, one.users) for one in world.outbox] == [
        ("group", (AWAY,)), ("read", (AWAY,)), ("failure", (AWAY,)),
    ]  # fmt: skip
    assert AWAY not in world.timelines


def test_edits_and_recalls_go_out_with_their_bodies():
    """Whoever has the timeline elsewhere finds all that is needed in the entry."""
    world, other = shard(0), shard(1)
    world.run(group(NEAR, [AWAY]), draft(NEAR, CID_STRIDE, "k1"), edit(NEAR, CID_STRIDE, 2, "k2", "9"))
    world.run(recall(NEAR, CID_STRIDE, 2, "k3"))
    other.run(Receive(0, tuple(world.outbox)))
    assert other.told(AWAY) == [(CID_STRIDE, seq) for seq in (1, 2, 3, 4)]
    (here, there) = ({place: one.version for place, one in of.overlays.items()} for of in (world, other))
    assert here == there == {(CID_STRIDE, 2): 4, (CID_STRIDE, 3): 4}
