"""The book: what it remembers and forgets, and the numbers that it gives."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from im.core.book import Book, LedgerSettings, Log
from im.core.commands import Delivery
from im.core.facts import ConversationFacts
from im.core.fan_out import PRESETS
from im.core.ledger import Ledger
from im.core.model import Conversation, Form, Member, Message
from im.core.pair_ids import COUNTED_MAX, pair_cid
from im.core.shards import shard_of_cid, shard_of_user
from tests.im.core.ledger_world import AT, World, change, draft, group, mark, small_bounds


def book(last_cid: int = 0) -> Book:
    return Book(LedgerSettings(), last_n=0, last_cid=last_cid, pendings=(), last_out=0, received={})


# ---------------------------------------------------------------- conversation ids


@pytest.mark.spec("ID-06", "CI-03")
def test_numbered_users_have_a_computed_id_and_others_a_counted_one():
    """Beside each other, in one column; which is whose stays so when the rule is turned off, or on."""
    world = World(LedgerSettings(conversation_ids="special"))
    world.run(draft("7", "12", "k1"), draft("7", "bob", "k2"), draft("5", "5", "k3"), group("7", ["12"], "k4"))
    assert [world.logs[cid][0].client_msg_id for cid in (pair_cid("7", "12"), 1, pair_cid("5", "5"), 2)] == [
        "k1", "k2", "k3", "k4",
    ]  # fmt: skip
    world.settings = LedgerSettings(conversation_ids="counted")
    world.restart()
    world.run(draft("12", "7", "k5"), draft("9", "7", "k6"))
    assert world.keys["12", "k5"].cid == pair_cid("7", "12")
    assert world.keys["9", "k6"].cid == 3
    world.settings = LedgerSettings(conversation_ids="special")
    world.restart()
    world.run(draft("7", "9", "k7"), draft("12", pair_cid("12", "7"), "k8"))
    assert world.keys["7", "k7"].cid == 3
    assert world.told("7")[-2:] == [(3, 2), (pair_cid("7", "12"), 3)]


def test_the_counter_never_reaches_computed_ids():
    """A number of theirs would be another conversation's."""
    one = book(COUNTED_MAX - 1)
    assert one.next_cid() == COUNTED_MAX
    with pytest.raises(AssertionError):
        one.next_cid()


@pytest.mark.spec("CI-04")
@pytest.mark.parametrize("shards", [2, 1_024])
def test_a_shard_draws_numbers_that_name_it(shards: int):
    """Each its own: no two shards draw the same, and a shard goes on behind the greatest that it drew."""
    drawn: list[int] = []
    for shard in range(2):
        settings = LedgerSettings(shard=shard, shards=shards)
        one = Book(settings, last_n=0, last_cid=0, pendings=(), last_out=0, received={})
        mine = [one.next_cid() for _ in range(3)]
        next_life = Book(settings, last_n=0, last_cid=mine[-1], pendings=(), last_out=0, received={})
        mine.append(next_life.next_cid())
        assert [shard_of_cid(cid, shards) for cid in mine] == [shard] * 4
        assert mine == sorted(mine)
        drawn += mine
    assert len(set(drawn)) == 8


def test_numbers_of_shards_may_be_larger_than_counted_ones():
    """None is computed beside them."""
    one = Book(LedgerSettings(shard=1, shards=2), last_n=0, last_cid=COUNTED_MAX, pendings=(), last_out=0, received={})
    assert one.next_cid() > COUNTED_MAX
    assert LedgerSettings(shards=2).counted_max == 2**63 - 1


# ---------------------------------------------------------------- who is there


def test_the_other_user_of_a_single_conversation():
    """One's own self in a chat with oneself, nobody in a group."""
    one = book()
    assert [one.single("a", "b").other(user) for user in "ab"] == ["b", "a"]
    assert one.single("a", "a").other("a") == "a"
    assert one.single("b", "a") is one.single("a", "b")
    assert one.has_single("b", "a")
    assert not one.has_single("a", "c")


def test_who_is_in_a_group_is_looked_up_not_searched():
    """A group may have 100,000 members: who sends in it must not wait for a search through them."""

    class Unsearchable(tuple[str, ...]):
        __slots__ = ()

        def __contains__(self, user: object) -> bool:
            raise AssertionError(user)

    world = World()
    world.run(group("a", ["b", "c"]))
    log = world.ledger._book.logs[1]
    log.users = Unsearchable(log.users)
    world.run(draft("b", 1, "k1", mentions=b'["c","x"]'), draft("x", 1, "k1"))
    assert world.told("c") == [(1, 1), (1, 2)]
    assert world.mentions == {(1, "c", 2)}


def test_first_entries_of_members():
    """All of a single conversation is seen by both."""
    world = World()
    world.run(group("a", ["b"]), draft("a", "b", "k1"), change("a", 1, "invite", "c"))
    logs = world.ledger._book.logs
    assert [logs[1].first_seq(user) for user in "abc"] == [1, 1, 2]
    assert logs[2].first_seq("a") == 1


# ---------------------------------------------------------------- forgetting


@pytest.mark.spec("AR-4")
@pytest.mark.parametrize("remembered_max", [0, 1])
def test_what_was_forgotten_is_asked_for_again(remembered_max: int):
    """Ends, members and fan-outs that go on: nothing is given twice or left out."""
    with small_bounds():
        world = World(LedgerSettings(remembered_max=remembered_max))
        world.run(group("a", ["b", "c", "d"]), draft("a", "b", "k1"), draft("x", "y", "k1"))
        world.run(draft("b", 1, "k2"), draft("c", 1, "k3"))
        while world.ledger.has_work:
            world.run(draft("a", "b", f"w{len(world.log)}"))
            assert any(needs.users for needs in world.asked)
        for user in "abcd":
            assert [seq for cid, seq in world.told(user) if cid == 1] == [1, 2, 3]


@pytest.mark.spec("CI-04", "AR-4")
def test_what_is_remembered_is_not_asked_for():
    """Most messages go where the last ones went: they need nothing."""
    world = World()
    world.run(draft("a", "b", "k1"), group("a", ["b"]))
    world.run(draft("b", "a", "k2"), draft("a", 2, "k3"))
    assert [(needs.pairs, needs.cids, needs.users) for needs in world.asked] == [([], [], [])]


def test_many_heads_are_forgotten_as_many_conversations_are():
    """A large group has many."""
    world = World(LedgerSettings(remembered_max=1))
    world.run(group("a", "bcd"))
    assert len(world.ledger._book.timelines.heads) == 4
    world.run()
    assert not world.ledger._book.timelines.heads


# ---------------------------------------------------------------- entries


def test_only_messages_count():
    """`cseq` of any other entry is that of the message before it."""
    one = book()
    log = one.remember(ConversationFacts(Conversation(1, "single", "write", "a", "b"), 5, 3))
    fields = {"mid": 7, "device": "phone", "body": b"", "at": AT}
    edit = one.entry(log, Form.EDIT, "edit", sender="a", client_msg_id="k1", ref=1, **fields)  # type: ignore[arg-type]
    event = one.entry(log, Form.EVENT, "group", sender="b", client_msg_id="", **fields)  # type: ignore[arg-type]
    message = one.message(log, draft("b", 1, "k2"))
    assert [(entry.n, entry.seq, entry.cseq, entry.recipient) for entry in (edit, event, message)] == [
        (1, 6, 3, "b"), (2, 7, 3, "a"), (3, 8, 4, "a"),
    ]  # fmt: skip
    assert one.facts.messages_by_key == {("a", "k1"): edit, ("b", "k2"): message}, "what has no key is not known by one"


def test_notes_are_for_one_user_and_in_no_log():
    """With a place in the order of commits and in the timeline; a failure has the draft's key, others have none."""
    world = World()
    world.run(draft("a", "b", "k1"), mark("a", 1, read_seq=1), draft("a", 9, "k2", is_queued=True))
    world.run()
    read, failure = world.log[1:]
    assert [(one.n, one.cid, one.seq, one.cseq, one.form) for one in (read, failure)] == [
        (2, 1, 0, 0, Form.NOTE), (3, 9, 0, 0, Form.NOTE),
    ]  # fmt: skip
    assert (read.client_msg_id, failure.client_msg_id, failure.mid) == ("", "k2", 7)
    assert world.told("a") == [(1, 1), (1, 0), (9, 0)]
    assert world.told("b") == [(1, 1)]


@pytest.mark.spec("FO-01")
def test_a_large_conversation_with_read_fan_out_is_not_told_directly():
    """And a small one is, by nobody's entry."""
    with small_bounds():
        world = World(LedgerSettings(policy=PRESETS["qq"]))
        world.run(group("a", "bc"), group("a", "bcd", "g2"))
        world.run(draft("b", 1, "k1"), draft("b", 2, "k2"), draft("a", "b", "k3"))
        assert [(one.fan_out, one.positions, one.members) for one in world.changes.deliveries] == [
            ("read", (), ("a", "b", "c")), ("read", (), ()), ("read", (), ("a", "b")),
        ]  # fmt: skip


def test_no_shard_tells_a_conversation_with_read_fan_out_directly():
    """However few are in it: nobody would find what was lost."""
    of_many = book()
    of_many.settings = LedgerSettings(shards=2)
    assert [one.is_direct(("a", "b")) for one in (book(), of_many)] == [True, False]


def test_what_is_taken_over_is_marked_and_told_to_those_it_names():
    """With this store's place in the order of commits and nobody's first telling."""
    settings = LedgerSettings(shard=0, shards=2)
    near = next(name for name in map(str, range(99)) if shard_of_user(name, 2) == 0)
    one = Book(settings, last_n=6, last_cid=0, pendings=(), last_out=0, received={1: 5})
    assert one.timelines.needs(near)
    one.timelines.heads[near] = 2
    entry = Message(90, 1_025, 8, 4, 7, "x", "phone", near, "k", Form.MESSAGE, "text", 0, b"1", b"", AT)
    one.take_over(1, entry, (near,))
    taken = msgspec.structs.replace(entry, n=7, origin=2)
    assert one.changes.messages == [(taken, ((near, 3),))]
    assert one.changes.deliveries == [Delivery(taken, ((near, 3),), "write", is_first=False)]
    assert not one.fresh
    assert not one.facts.messages_by_key


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("spoil", [
    lambda log: setattr(log, "max_cseq", 9),
    lambda log: setattr(log, "users", ("b", "a")),
    lambda log: log.members.clear(),
    lambda log: setattr(log, "conversation", Conversation(2, "single", "write", "a", "b")),
    lambda log: log.members.update(a=Member(1, "a", 0, 1, 1, 0, leave_seq=2)),
])  # fmt: skip
def test_invariants_see_what_is_wrong(spoil: Callable[[Log], object]):
    """Or they would promise nothing."""
    world = World()
    world.run(group("a", ["b"]))
    world.ledger.check_invariants()
    log: Log = world.ledger._book.logs[1]
    spoil(log)
    with pytest.raises(AssertionError):
        world.ledger.check_invariants()


def test_a_ledger_takes_its_books_settings():
    """A fresh one knows nothing and has nothing to do."""
    fresh = Ledger(LedgerSettings(), last_n=0, last_cid=0)
    assert not fresh.has_work
    assert fresh.begin(()) is None
    assert not fresh.execute()
