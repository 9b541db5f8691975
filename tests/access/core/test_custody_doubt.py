"""Copies in doubt: when a new owner goes on in the same epoch, when it begins another, and what it waits for."""

from __future__ import annotations

import pytest

from access.core.custody import FORK_AFTER_MS, Outcome
from access.core.placement import Node, View
from access.core.stream import Draft
from access.peers import Ballot, Collect, Collected, Copy
from base.clock import Instant
from tests.access.core.custody_nodes import CHANNEL, NOW, WALL, Nodes, settled

# ---------------------------------------------------------------- doubt


def test_a_copy_that_somebody_may_have_gone_on_from_begins_a_new_epoch():
    """R4: what was kept is kept, and no offset of the old epoch is given twice."""
    nodes = settled("a", "b", "c")
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    nodes.claim("b")
    number = nodes["b"].number(CHANNEL, Draft(b"lost with b and c"), WALL)
    assert number is not None
    nodes.down |= {"b", "c"}
    nodes.draining.clear()
    nodes.see("a")
    assert nodes.claim("a").is_owned
    assert nodes.texts("a") == [b"1"]
    assert nodes.epoch("a") == f"e{nodes.epochs}" != "e1"
    assert nodes.publish("a", b"2") == 2


def test_a_former_life_has_no_word():
    """A node that restarted does not know under which ballots it owned."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    nodes.claim("b")
    nodes["b"].number(CHANNEL, Draft(b"2"), WALL)
    nodes.restart("b")
    nodes.see("a", "b", "c")
    assert nodes.claim("b").is_owned
    assert nodes.epoch("b") != "e1"
    assert nodes.texts("b") == [b"1"]


def test_who_was_thought_dead_has_nothing_but_doubtful_copies():
    """R6: somebody may have done without it."""
    nodes = settled()
    nodes.see("b", "c", by="a")
    assert not nodes["a"].is_owner(CHANNEL)
    nodes.see("a", by="a")
    assert nodes.claim("a").is_owned
    assert nodes.epoch("a") != "e1"
    assert nodes.texts("a") == [b"1"]


def test_an_owner_that_is_missing_from_its_own_view_owns_no_more():
    """It is told of which channels, once; and a claim for another backup ends with that."""
    nodes = settled()
    nodes.draining = {"b"}
    nodes.see("a", "b", "c")
    nodes["a"].begin(CHANNEL, nodes.now, new_epoch="e")
    assert nodes["a"].is_claiming(CHANNEL)
    gone = View([Node("b", 1), Node("c", 1)])
    assert nodes["a"].adopt(gone, nodes.now) == [CHANNEL]
    assert not nodes["a"].is_claiming(CHANNEL)
    assert nodes["a"].adopt(gone, nodes.now) == []
    assert nodes["a"].statistics()["owned"] == 0
    nodes.check()


def test_who_does_not_answer_and_is_not_gone_holds_a_claim_up_for_a_while():
    """R5: then it is done without it, in a new epoch."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    nodes.down.add("a")
    assert nodes.claim("b") == Outcome(is_owned=False)
    nodes.now = Instant(nodes.now + FORK_AFTER_MS - 1)
    assert nodes.claim("b") == Outcome(is_owned=False)
    nodes.now = Instant(nodes.now + 1)
    assert nodes.claim("b").is_owned
    assert nodes.epoch("b") == f"e{nodes.epochs}"
    assert nodes.texts("b") == [b"1"]


def test_a_claim_long_after_one_that_failed_is_a_first_one():
    """Time in which nobody tried does not count."""
    nodes = settled()
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    nodes.down.add("a")
    assert not nodes.claim("b").is_owned
    nodes.now = Instant(nodes.now + FORK_AFTER_MS)
    assert not nodes.claim("b").is_owned


def test_the_dead_do_not_hold_a_claim_up():
    """Gone from the view meanwhile: nobody waits for it."""
    nodes = settled()
    nodes.down.add("a")
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    step = nodes["b"].begin(CHANNEL, nodes.now, new_epoch="f")
    assert step.ask == ("a", "c")
    nodes.see("b", "c", by="bc")
    nodes["b"].answered(CHANNEL, step.ballot, "a", None, nodes.now)
    reply = nodes["c"].collect(Collect(CHANNEL, step.ballot), nodes.now)
    step = nodes["b"].answered(CHANNEL, step.ballot, "c", reply, nodes.now)
    assert step.outcome == Outcome(is_owned=True)
    assert nodes.epoch("b") == "e1"


def test_of_several_copies_the_newest_is_gone_on_from():
    """By term first, and then by offset."""
    nodes = Nodes("a", "b", "c")
    step = nodes["a"].begin(CHANNEL, NOW, new_epoch="new")
    older = Copy("old", Ballot(1, "x", 1), "", [], 9, [])
    newer = Copy("e", Ballot(2, "y", 1), "", [], 4, [])
    first = nodes["a"].answered(CHANNEL, step.ballot, "b", Collected(step.ballot, "", older), NOW)
    assert first.outcome is None
    last = nodes["a"].answered(CHANNEL, step.ballot, "c", Collected(step.ballot, "", newer), NOW)
    assert last.outcome == Outcome(is_owned=True)
    stream = nodes["a"].stream(CHANNEL)
    assert stream is not None
    assert (stream.epoch, stream.offset) == ("e", 4)


@pytest.mark.parametrize("lost", range(12))
def test_a_take_over_may_be_interrupted_anywhere(lost: int):
    """Whichever message is lost, once: the next claim ends it, and every publication is there in its place."""
    nodes = settled("a", "b", "c")
    nodes.draining.add("a")
    nodes.see("a", "b", "c")
    count = 0

    def is_lost() -> bool:
        nonlocal count
        count += 1
        return count - 1 == lost

    for _ in range(3):
        step = nodes["b"].begin(CHANNEL, nodes.now, new_epoch="f")
        ask = list(step.ask)
        while step.outcome is None:
            asked = ask.pop(0)
            reply = None
            if not is_lost():
                reply = nodes[asked].collect(Collect(CHANNEL, step.ballot), nodes.now)
                reply = None if is_lost() else reply
            step = nodes["b"].answered(CHANNEL, step.ballot, asked, reply, nodes.now)
            ask.extend(step.ask)
        nodes.check()
        if step.outcome.is_owned:
            break
    for _ in range(3):
        pending = nodes["b"].pending(CHANNEL)
        if pending is not None:
            answer = None if is_lost() else nodes["c"].replicate(pending[1], nodes.now, WALL)
            nodes["b"].replicated(CHANNEL, pending[1].ballot, None if is_lost() else answer)
    assert nodes.publish("b", b"2") == 2
    assert (nodes.epoch("c"), nodes.texts("c")) == ("e1", [b"1", b"2"])
