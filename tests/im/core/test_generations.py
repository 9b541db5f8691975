"""What is not indexed: examples, then random histories against lists that are scanned."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.generations import ConversationTail, Generations, Tail, pair_of, size_of
from im.core.model import Form, Message, Overlay

USERS = ("ann", "bob", "cleo")


def message(
    seq: int, sender: str = "ann", recipient: str = "bob", *, cid: int = 1, key: str | None = None, n: int = 0
) -> Message:
    key = f"{cid}-{seq}" if key is None else key
    return Message(n, cid, seq, seq, 7, sender, "phone", recipient, key, 0, "text", 0, b"{}", b"", Timestamp(1_000))


def messages(count: int) -> list[Message]:
    return [message(seq) for seq in range(1, count + 1)]


def split(stored: list[Message], at: int) -> Generations:
    """Commit messages of one conversation, `at` of them into a generation that is frozen then."""
    generations = Generations()
    generations.commit([(one, (("ann", one.seq), ("bob", one.seq))) for one in stored[:at]])
    generations.freeze()
    generations.commit([(one, (("ann", one.seq), ("bob", one.seq))) for one in stored[at:]])
    generations.check_invariants()
    return generations


def test_a_tail_spans_both_generations():
    """I1: one merging, one collecting, no seam between them."""
    stored = messages(3)
    generations = split(stored, 2)
    entries = list(enumerate(stored, 1))
    for since, limit, expected in [(0, 9, entries), (0, 2, entries[:2]), (1, 2, entries[1:]), (3, 9, [])]:
        assert generations.newest.tail("bob", since=since, limit=limit) == Tail(1, 3, 0, expected)
        tail = ConversationTail(1, 3, [one for _, one in expected])
        assert generations.newest.conversation_tail(1, since=since, limit=limit) == tail
    generations.retire()
    assert generations.newest.tail("bob", since=0, limit=9) == Tail(3, 3, 0, entries[2:])
    assert generations.newest.conversation_tail(1, since=0, limit=9) == ConversationTail(3, 3, stored[2:])
    assert generations.newest.first("bob") == 3


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_reading_back_takes_the_last_ones(at: int):
    """I1, wherever the seam is, and below what is here."""
    stored = messages(5)
    newest = split(stored, at).newest
    for before in range(8):
        for limit in range(1, 7):
            expected = stored[: max(0, before - 1)][-limit:]
            tail = newest.conversation_before(1, before=before, limit=limit)
            assert tail == ConversationTail(1, 5, expected)


def test_what_came_from_another_shard_is_in_timelines_alone():
    """I2: its log, its key and its users are found where its log is."""
    generations = Generations()
    foreign = replace(message(1, n=3), origin=2)
    overlay = Overlay(1, 1, 2, False, 0, b"2", b"")
    generations.commit([(foreign, (("bob", 4),))], overlays={(1, 1): overlay})
    generations.check_invariants()
    newest = generations.newest
    assert newest.tail("bob", since=0, limit=9) == Tail(4, 4, 0, [(4, foreign)])
    assert newest.overlays([foreign]) == {(1, 1): overlay}
    assert newest.conversation_tail(1, since=0, limit=9) is newest.conversation_end(1) is newest.message(1, 1) is None
    assert newest.by_keys([("ann", "1-1")]) == {}
    assert newest.by_pair(("ann", "bob")) is newest.users_of(1) is newest.sent("ann", 1) is None
    assert newest.singles("bob") == []
    assert len(generations) == 1


@pytest.mark.parametrize(("length", "size"), [(0, 1), (1_023, 1), (1_024, 2), (65_536, 65)])
def test_a_long_message_is_as_large_as_several(length: int, size: int):
    """In memory it is; entries that were stored beside it share it."""
    long = replace(message(1), body=b"x" * length)
    entries = [("cleo", 1, long), ("dan", 1, long)]
    assert size_of([(long, (("ann", 1),))], entries) == size + 2
    generations = Generations()
    generations.commit([(long, (("ann", 1),))], entries)
    assert len(generations) == size + 2


def test_nothing_is_known_of_what_is_not_here():
    """Then the indexes are asked."""
    newest = split(messages(2), 1).newest
    assert newest.tail("cleo", since=0, limit=9) is None
    assert newest.head("cleo") is None
    assert newest.first("cleo") is None
    assert newest.conversation_tail(2, since=0, limit=9) is None
    assert newest.conversation_before(2, before=9, limit=9) is None
    assert newest.conversation_end(2) is None
    assert newest.message(1, 3) is None
    assert newest.message(1, 0) is None
    assert newest.by_keys([("ann", "?")]) == {}
    assert newest.by_pair(("ann", "cleo")) is None
    assert newest.sent("bob", 1) is None
    assert newest.users_of(2) is None
    assert newest.singles("cleo") == []
    assert newest.overlays(messages(2)) == {}


def test_what_was_taken_stays_as_it_was():
    """A read that waits for the disk still has what was merged in the meantime."""
    generations = split(messages(3), 2)
    taken = generations.newest
    generations.retire()
    generations.freeze()
    generations.retire()
    assert generations.newest.head("bob") is None
    assert taken.tail("bob", since=0, limit=9) == Tail(1, 3, 0, list(enumerate(messages(3), 1)))


def test_entries_of_a_timeline_may_come_from_both_lists():
    """I1: a fan-out that goes on gives entries beside those that are stored with new messages."""
    generations = Generations()
    older = message(1, "cleo", "", cid=9)
    stored = [message(1), message(2)]
    generations.commit(
        [(stored[0], (("bob", 2),)), (stored[1], (("bob", 4),))],
        [("bob", 5, older), ("bob", 3, older), ("bob", 1, older)],
    )
    generations.check_invariants()
    assert len(generations) == 5
    tail = generations.newest.tail("bob", since=0, limit=9)
    assert tail is not None
    assert tail.entries == [(1, older), (2, stored[0]), (3, older), (4, stored[1]), (5, older)]
    assert generations.newest.conversation_end(9) is None, "its message is not here"


def test_what_became_of_a_message_is_here_with_it():
    """I3: of the newest generation that says something."""
    generations = split(messages(3), 3)
    edit = Overlay(1, 2, 4, is_recalled=False, cseq=2, body=b"1", mentions=b"")
    generations.commit([(replace(message(4), form=Form.EDIT), ())], overlays={(1, 2): edit})
    assert generations.newest.overlays(messages(3)) == {(1, 2): edit}
    generations.retire()
    generations.freeze()
    recall = replace(edit, version=5, is_recalled=True)
    generations.commit([(replace(message(5), form=Form.RECALL), ())], overlays={(1, 2): recall, (1, 7): edit})
    assert generations.newest.overlays(messages(3)) == {(1, 2): recall}
    assert generations.newest.sent("ann", 1) is None, "an edit is not sent"


def test_what_was_trimmed_is_not_shown():
    """I3: the greatest floor counts; one below all that is here changes nothing."""
    generations = split(messages(6), 3)
    generations.commit([], floors={"bob": 4, "cleo": 9})
    generations.commit([], floors={"bob": 2})
    entries = list(enumerate(messages(6), 1))
    assert generations.newest.tail("bob", since=0, limit=2) == Tail(1, 6, 4, entries[4:6])
    assert generations.newest.tail("bob", since=5, limit=2) == Tail(1, 6, 4, entries[5:])
    assert generations.newest.tail("ann", since=0, limit=1) == Tail(1, 6, 0, entries[:1])
    assert generations.newest.head("bob") == 6


def test_single_conversations_are_found_by_their_users():
    """I2: by those that began here; a group never is one, nor is what the services say of it."""
    generations = Generations()
    with_oneself = message(1, "ann", "ann", cid=2)
    of_group = message(1, "ann", "", cid=3)
    by_operator = message(8, "", "bob", cid=4, key="")
    generations.commit([(one, ()) for one in (message(1), with_oneself, of_group, by_operator)])
    generations.freeze()
    generations.commit([(message(9, "bob", "ann", cid=4), ())])
    newest = generations.newest
    assert newest.singles("ann") == [message(1), with_oneself]
    assert newest.singles("bob") == [message(1)]
    assert [newest.users_of(cid) for cid in (1, 2, 3, 4)] == [("ann", "bob"), ("ann", "ann"), None, ("ann", "bob")]
    assert newest.by_pair(("ann", "ann")) == 2
    assert newest.by_keys([("", ""), ("ann", "1-1")]) == {("ann", "1-1"): message(1)}
    only_operator = Generations()
    only_operator.commit([(by_operator, ())])
    assert only_operator.newest.users_of(4) is None


def test_senders_are_those_who_sent_since_then():
    """Not those who only edited, nor those before."""
    stored = [message(1), message(2, "bob", "ann"), replace(message(3, "cleo", ""), form=Form.EDIT), message(4, "dan")]
    newest = split(stored, 2).newest
    assert [newest.senders(1, since=seq) for seq in (0, 2, 3, 5)] == [
        {"ann", "bob", "dan"},
        {"bob", "dan"},
        {"dan"},
        set(),
    ]


def test_merges_do_not_overlap():
    """A second freeze, or a retire without one, is a defect."""
    generations = Generations()
    with pytest.raises(AssertionError):
        generations.retire()
    generations.freeze()
    assert generations.is_merging
    with pytest.raises(AssertionError):
        generations.freeze()


class Histories(RuleBasedStateMachine):
    """Entries of all forms, merges and restarts, against lists that are scanned."""

    def __init__(self) -> None:
        super().__init__()
        self.generations = Generations()
        self.log: list[Message] = []
        self.timelines: dict[str, list[tuple[int, Message]]] = {user: [] for user in USERS}
        """(n of the commit, message)"""
        self.indexed = self.frozen = 0

    @rule(
        batch=st.lists(
            st.tuples(st.sampled_from(USERS), st.sampled_from(USERS), st.sampled_from(list(Form)), st.booleans()),
            max_size=4,
        )
    )
    def commit(self, batch: list[tuple[str, str, Form, bool]]) -> None:
        """Half of the entries come with their messages, half of them beside."""
        stored, beside = [], []
        for sender, recipient, form, is_beside in batch:
            cid = 1 + USERS.index(sender) * USERS.index(recipient)
            is_note = form == Form.NOTE
            seq = 0 if is_note else 1 + sum(one.cid == cid and one.form != Form.NOTE for one in self.log)
            n = len(self.log) + 1
            one = replace(message(seq, sender, recipient, cid=cid, key=f"k{n}" if n % 3 else "", n=n), form=form)
            self.log.append(one)
            positions = []
            for user in dict.fromkeys((sender, recipient)):
                self.timelines[user].append((n, one))
                positions.append((user, len(self.timelines[user])))
            stored.append((one, () if is_beside else tuple(positions)))
            beside += [(user, offset, one) for user, offset in positions if is_beside]
        self.generations.commit(stored, beside[::-1])

    @rule()
    def restart(self) -> None:
        """Read what is not indexed from the log."""
        self.generations = Generations()
        self.frozen = self.indexed
        offsets = dict.fromkeys(USERS, 0)
        for user in USERS:
            offsets[user] = sum(n <= self.indexed for n, _ in self.timelines[user])
        stored = []
        for one in self.log[self.indexed :]:
            positions = []
            for user in dict.fromkeys((one.sender, one.recipient)):
                offsets[user] += 1
                positions.append((user, offsets[user]))
            stored.append((one, positions))
        self.generations.commit(stored)

    @precondition(lambda self: not self.generations.is_merging)
    @rule()
    def freeze(self) -> None:
        self.frozen = len(self.log)
        self.generations.freeze()
        assert len(self.generations) == 0

    @precondition(lambda self: self.generations.is_merging)
    @rule()
    def retire(self) -> None:
        self.indexed = self.frozen
        self.generations.retire()

    @invariant()
    def memory_has_all_that_is_not_indexed(self) -> None:
        """I1 and I2, for every user, conversation and key."""
        self.generations.check_invariants()
        newest = self.generations.newest
        for user, timeline in self.timelines.items():
            older = sum(n <= self.indexed for n, _ in timeline)
            entries = [(offset, one) for offset, (_, one) in enumerate(timeline, 1)][older:]
            expected = Tail(older + 1, len(timeline), 0, entries[1:4]) if entries else None
            assert newest.tail(user, since=older + 1, limit=3) == expected
            assert newest.head(user) == (len(timeline) if entries else None)
        recent = self.log[self.indexed :]
        for cid in (1, 2, 3, 5):
            entries_of = [one for one in recent if one.cid == cid and one.form != Form.NOTE]
            end = newest.conversation_end(cid)
            assert end == (entries_of[-1] if entries_of else None)
            if end is not None:
                first = entries_of[0].seq
                tail = newest.conversation_tail(cid, since=first, limit=3)
                assert tail == ConversationTail(first, end.seq, entries_of[1:4])
                assert newest.conversation_before(cid, before=end.seq, limit=3) == ConversationTail(
                    first, end.seq, entries_of[:-1][-3:]
                )
            for user in USERS:
                sent = [one for one in entries_of if one.sender == user and one.form == Form.MESSAGE]
                assert newest.sent(user, cid) == (sent[-1] if sent else None)
        for one in recent:
            if one.client_msg_id:
                key = (one.sender, one.client_msg_id)
                assert newest.by_keys([key]) == {key: one}
            if one.form != Form.NOTE:
                assert newest.message(one.cid, one.seq) == one
                if one.seq == 1:
                    assert newest.by_pair(pair_of(one.sender, one.recipient)) == one.cid


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
