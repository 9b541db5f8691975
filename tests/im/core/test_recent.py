"""The newest part of a message log: examples, then random histories against a store that scans one list."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.recent import Recent
from im.ports import Appended, Draft, KeyConflict, Message, TimelineEntry

USERS = ("ann", "bob", "cleo")


def draft(sender: str = "ann", recipient: str = "bob", key: str = "k1", body: bytes = b"{}") -> Draft:
    return Draft(7, sender, "phone", recipient, key, "text", body, Timestamp(1_000))


def message(sender: str = "ann", recipient: str = "bob", key: str = "k1", *, cid: int = 1, seq: int = 1) -> Message:
    return Message(cid, seq, 7, sender, "phone", recipient, key, "text", b"{}", Timestamp(1_000))


def empty(*, last_cid: int = 0, hot_max: int = 100) -> Recent:
    return Recent(last_cid=last_cid, hot_max=hot_max)


def place(recent: Recent, *drafts: Draft) -> list[Appended | KeyConflict]:
    """Place and commit drafts of which the indexes know nothing."""
    outcomes = recent.place(drafts, recent.lookup(drafts).known)
    recent.commit([outcome for outcome in outcomes if isinstance(outcome, Appended) and outcome.is_new])
    recent.check_invariants()
    return outcomes


def test_a_first_message_opens_its_conversation():
    """I1: with the next cid, seq 1, and the first entry of both timelines."""
    assert place(empty(last_cid=4), draft()) == [Appended(message(cid=5), True, (("ann", 1), ("bob", 1)))]


def test_both_directions_are_one_conversation():
    """The answer has the next seq."""
    _, answer = place(empty(), draft(), draft("bob", "ann"))
    assert answer == Appended(message("bob", "ann", seq=2), True, (("bob", 2), ("ann", 2)))


def test_a_message_to_oneself_has_one_entry():
    """The sender's timeline is the recipient's."""
    assert place(empty(), draft("ann", "ann")) == [Appended(message("ann", "ann"), True, (("ann", 1),))]


def test_counters_go_on_from_what_the_indexes_say():
    """I1 over what is no longer in memory."""
    recent = empty(last_cid=9)
    lookup = recent.lookup([draft()])
    assert (lookup.known, lookup.keys) == ({}, [("ann", "k1")])
    assert (lookup.pairs, lookup.users) == ([("ann", "bob")], ["ann", "bob"])
    recent.learn([(("ann", "bob"), 3, 41)], [("ann", 100), ("bob", 50)])
    [appended] = recent.place([draft()], {})
    assert appended == Appended(message(cid=3, seq=42), True, (("ann", 101), ("bob", 51)))


def test_what_is_known_is_not_asked_again():
    """A second message of the same pair needs no look into the indexes but for its key."""
    recent = empty()
    place(recent, draft())
    lookup = recent.lookup([draft(key="k2")])
    assert (lookup.keys, lookup.pairs, lookup.users) == ([("ann", "k2")], [], [])


@pytest.mark.parametrize("moves", ["", "f", "fr"])
def test_a_repeat_is_answered_with_the_first_place(moves: str):
    """I2, while it collects, while it is merged, and when the indexes tell."""
    recent = empty()
    place(recent, draft())
    for move in moves:
        recent.freeze() if move == "f" else recent.retire()
    lookup = recent.lookup([draft()])
    assert lookup.keys == ([("ann", "k1")] if moves == "fr" else [])
    lookup.known["ann", "k1"] = message()
    again = replace(draft(), device="laptop", at=Timestamp(9_000), mid=8)
    assert recent.place([again], lookup.known) == [Appended(message(), False, ())]
    assert recent.head("ann") == (None if moves == "fr" else 1), "nothing was added"


@pytest.mark.parametrize("changed", [{"recipient": "cleo"}, {"kind": "image"}, {"body": b"[]"}])
def test_a_key_with_another_payload_is_a_conflict(changed: dict[str, str]):
    """I2: nothing is placed, and the first message is shown."""
    recent = empty()
    place(recent, draft())
    assert place(recent, replace(draft(), **changed)) == [KeyConflict(message())]
    assert recent.head("ann") == 1


def test_a_batch_may_repeat_its_own_keys():
    """I2 within one call."""
    outcomes = place(empty(), draft(), draft(), draft(body=b"[]"))
    assert outcomes == [
        Appended(message(), True, (("ann", 1), ("bob", 1))),
        Appended(message(), False, ()),
        KeyConflict(message()),
    ]


def test_what_is_not_committed_is_not_shown():
    """I4: a place is no promise."""
    recent = empty()
    recent.place([draft()], {})
    assert recent.tail("ann", since=0, limit=10) is None
    assert recent.head("ann") is None
    assert recent.conversation_tail(1, since=0, limit=10) is None
    assert recent.conversation_end(1) is None
    assert len(recent) == 0


def test_a_tail_spans_both_generations():
    """I4: one merging, one collecting, no seam between them."""
    recent = empty()
    place(recent, draft(key="k1"), draft(key="k2"))
    recent.freeze()
    place(recent, draft(key="k3"))
    messages = [message(key=f"k{n}", seq=n) for n in (1, 2, 3)]
    entries = [TimelineEntry(n, messages[n - 1]) for n in (1, 2, 3)]
    for since, limit, expected in [(0, 9, entries), (0, 2, entries[:2]), (1, 2, entries[1:]), (2, 9, entries[2:])]:
        tail = recent.tail("bob", since=since, limit=limit)
        assert tail is not None
        assert (tail.first, tail.head, tail.entries) == (1, 3, expected)
    recent.retire()
    tail = recent.tail("bob", since=0, limit=9)
    assert tail is not None
    assert (tail.first, tail.head, tail.entries) == (3, 3, entries[2:])


def test_a_conversation_spans_both_generations():
    """I4: as timelines do, and without what others say meanwhile."""
    recent = empty()
    place(recent, draft(key="k1"), draft("ann", "cleo", key="l1"), draft(key="k2"))
    recent.freeze()
    place(recent, draft(key="k3"))
    messages = [message(key=f"k{n}", seq=n) for n in (1, 2, 3)]
    for since, limit, expected in [(0, 9, messages), (0, 2, messages[:2]), (1, 2, messages[1:]), (3, 9, [])]:
        tail = recent.conversation_tail(1, since=since, limit=limit)
        assert tail is not None
        assert (tail.first, tail.head, tail.messages) == (1, 3, expected)
    assert recent.conversation_end(1) == messages[2]
    recent.retire()
    tail = recent.conversation_tail(1, since=0, limit=9)
    assert tail is not None
    assert (tail.first, tail.head, tail.messages) == (3, 3, messages[2:])
    assert recent.conversation_tail(2, since=0, limit=9) is None
    assert recent.conversation_end(2) is None


def test_too_many_counters_are_forgotten_but_for_those_in_need():
    """I3: those of the collecting generation are not in the indexes."""
    recent = empty(hot_max=1)
    place(recent, draft("ann", "bob"), draft("ann", "cleo", key="k2"))
    recent.freeze()
    place(recent, draft("ann", "bob", key="k3"))
    recent.retire()
    recent.check_invariants()
    lookup = recent.lookup([draft("ann", "cleo", key="k4")])
    assert (lookup.pairs, lookup.users) == ([("ann", "cleo")], ["cleo"])


def test_few_counters_are_kept():
    """A merge alone makes nobody cold."""
    recent = empty()
    place(recent, draft())
    recent.freeze()
    recent.retire()
    lookup = recent.lookup([draft(key="k2")])
    assert (lookup.pairs, lookup.users) == ([], [])


def test_merges_do_not_overlap():
    """A second freeze, or a retire without one, is a defect."""
    recent = empty()
    with pytest.raises(AssertionError):
        recent.retire()
    recent.freeze()
    with pytest.raises(AssertionError):
        recent.freeze()


class Histories(RuleBasedStateMachine):
    """Batches, failed commits, restarts and merges, against one list that is scanned."""

    @initialize(hot_max=st.integers(0, 4))
    def start(self, hot_max: int) -> None:
        self.hot_max = hot_max
        self.durable: list[Appended] = []
        self.indexed = 0
        self.frozen = 0
        self.restart()

    @rule()
    def restart(self) -> None:
        """Read memory anew from what is durable."""
        cids = [appended.message.cid for appended in self.durable[: self.indexed]]
        self.recent = empty(last_cid=max(cids, default=0), hot_max=self.hot_max)
        self.recent.restore(self.durable[self.indexed :])

    @rule(
        batch=st.lists(
            st.builds(
                draft,
                sender=st.sampled_from(USERS),
                recipient=st.sampled_from(USERS),
                key=st.sampled_from(["k1", "k2", "k3", "k4"]),
                body=st.sampled_from([b"{}", b"[]"]),
            ),
            max_size=4,
        ),
        fails=st.booleans(),
    )
    def append(self, batch: list[Draft], *, fails: bool) -> None:
        lookup = self.recent.lookup(batch)
        self.answer_from_indexes(lookup.keys, lookup.pairs, lookup.users, lookup.known)
        outcomes = self.recent.place(batch, lookup.known)
        durable = list(self.durable)
        for one, outcome in zip(batch, outcomes, strict=True):
            assert outcome == self.naive(one, durable)
            if isinstance(outcome, Appended) and outcome.is_new:
                durable.append(outcome)
        if fails:
            self.restart()
        else:
            self.recent.commit(durable[len(self.durable) :])
            self.durable = durable

    def answer_from_indexes(
        self, keys: list[tuple[str, str]], pairs: list[tuple[str, str]], users: list[str], known: dict
    ) -> None:
        indexed = [appended.message for appended in self.durable[: self.indexed]]
        known |= {key: m for m in indexed if (key := (m.sender, m.client_msg_id)) in keys}
        conversations = [
            (pair, m.cid, m.seq) for m in indexed for pair in pairs if sorted(pair) == sorted((m.sender, m.recipient))
        ]
        positions = [position for appended in self.durable[: self.indexed] for position in appended.positions]
        self.recent.learn(conversations, [(user, offset) for user, offset in positions if user in users])

    @staticmethod
    def naive(one: Draft, durable: list[Appended]) -> Appended | KeyConflict:
        """Say by scanning what must become of a draft."""
        messages = [appended.message for appended in durable]
        for m in messages:
            if (m.sender, m.client_msg_id) == (one.sender, one.client_msg_id):
                same = (m.recipient, m.kind, m.body) == (one.recipient, one.kind, one.body)
                return Appended(m, is_new=False, positions=()) if same else KeyConflict(m)
        ours = [m for m in messages if {m.sender, m.recipient} == {one.sender, one.recipient}]
        cid = ours[0].cid if ours else max((m.cid for m in messages), default=0) + 1
        placed = message(one.sender, one.recipient, one.client_msg_id, cid=cid, seq=len(ours) + 1)
        users = dict.fromkeys((one.sender, one.recipient))
        positions = tuple((user, sum(user in (m.sender, m.recipient) for m in messages) + 1) for user in users)
        return Appended(replace(placed, body=one.body), is_new=True, positions=positions)

    @precondition(lambda self: not self.recent.is_merging)
    @rule()
    def freeze(self) -> None:
        self.frozen = len(self.durable)
        self.recent.freeze()

    @precondition(lambda self: self.recent.is_merging)
    @rule()
    def retire(self) -> None:
        self.indexed = self.frozen
        self.recent.retire()

    @invariant()
    def memory_has_all_that_is_not_indexed(self) -> None:
        """I4, for every user and every place to read from."""
        self.recent.check_invariants()
        for user in USERS:
            timeline = [a.message for a in self.durable if user in (a.message.sender, a.message.recipient)]
            older = sum(user in (a.message.sender, a.message.recipient) for a in self.durable[: self.indexed])
            for since in range(len(timeline) + 2):
                tail = self.recent.tail(user, since=since, limit=3)
                if len(timeline) == older:
                    assert tail is None
                    continue
                assert tail is not None
                assert (tail.first, tail.head) == (older + 1, len(timeline))
                begin = max(since, older)
                expected = [TimelineEntry(i + 1, m) for i, m in enumerate(timeline)][begin : begin + 3]
                assert tail.entries == expected
                assert self.recent.head(user) == len(timeline)
        messages = [appended.message for appended in self.durable]
        for cid in {one.cid for one in messages}:
            conversation = [one for one in messages if one.cid == cid]
            older = sum(one.cid == cid for one in messages[: self.indexed])
            for since in range(len(conversation) + 2):
                found = self.recent.conversation_tail(cid, since=since, limit=3)
                if len(conversation) == older:
                    assert found is None
                    continue
                assert found is not None
                assert (found.first, found.head) == (older + 1, len(conversation))
                begin = max(since, older)
                assert found.messages == conversation[begin : begin + 3]
                assert self.recent.conversation_end(cid) == conversation[-1]


TestHistories = Histories.TestCase
