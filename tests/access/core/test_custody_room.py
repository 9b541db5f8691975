"""What becomes of a channel that gives way to another (R7), at the nodes that had it."""

from __future__ import annotations

from access.core.holding import PROMISE_MS
from access.core.stream import Draft
from base.clock import Instant, Timestamp
from tests.access.core.custody_nodes import CHANNEL, TTL_MS, WALL, Nodes, in_order, settled

EXPIRED = Timestamp(WALL + TTL_MS)


def test_the_copies_of_a_channel_that_gave_way_are_dropped():
    """R7: or they would stay. It is claimed again as any channel that was forgotten."""
    nodes = Nodes("a", "b", "c")
    nodes.age()
    assert nodes.claim("a").is_owned
    nodes.pump("a")
    assert nodes["b"].stream(CHANNEL) is not None
    forgotten = nodes["a"].make_room(nodes.now)
    assert forgotten is not None
    assert forgotten.nodes == ("b",)
    nodes["b"].drop(CHANNEL, forgotten.ballot)
    assert nodes["b"].stream(CHANNEL) is None
    assert nodes.claim("a").is_owned
    assert nodes.publish("a", b"1") == 1
    assert nodes.epoch("a") == "e2"


def expire(nodes: Nodes, name: str) -> None:
    """Let the node find that what it keeps is too old."""
    nodes[name].sweep(nodes.now, EXPIRED)


def test_what_keeps_publications_does_not_give_way():
    """Neither while one waits for the backup nor afterwards, in whatever term, until they are too old."""
    nodes = settled()
    assert nodes["a"].make_room(nodes.now) is None
    nodes.see("b", "c", by=("b", "c"))
    assert nodes.claim("b").is_owned
    assert nodes["b"].make_room(nodes.now) is None
    expire(nodes, "b")
    assert nodes["b"].make_room(nodes.now) is None, "c has nothing yet"
    nodes.pump("b")
    assert nodes["b"].number(CHANNEL, Draft(b"2"), WALL) is not None
    assert nodes["b"].make_room(nodes.now) is None
    nodes.pump("b")
    expire(nodes, "b")
    assert nodes["b"].make_room(nodes.now) is not None
    assert nodes["b"].make_room(nodes.now) is None
    nodes.check()


def test_a_channel_whose_publications_are_too_old_gives_way_and_begins_anew():
    """Or one client could fill the table with one publication into each of many channels."""
    nodes = settled()
    expire(nodes, "a")
    later = Instant(nodes.now + PROMISE_MS)
    forgotten = nodes["a"].make_room(later)
    assert forgotten is not None
    assert (forgotten.channel, forgotten.nodes) == (CHANNEL, ("b",))
    nodes["a"].sweep(later, EXPIRED)
    assert nodes["a"].statistics() == {"known": 1, "owned": 0, "bytes": 0}, "it remembers that it owned"
    nodes["b"].drop(CHANNEL, forgotten.ballot)
    assert nodes["b"].stream(CHANNEL) is None
    assert nodes.claim("a").is_owned
    assert (nodes.publish("a", b"2"), nodes.epoch("a")) == (1, "e2")


def test_where_the_backup_was_not_told_it_goes_on():
    """Its copy is as good as the owner's was."""
    nodes = settled()
    expire(nodes, "a")
    assert nodes["a"].make_room(nodes.now) is not None
    assert nodes.claim("a").is_owned
    assert (nodes.publish("a", b"2"), nodes.epoch("a")) == (2, "e1")


def test_a_copy_of_an_earlier_term_is_in_doubt_after_the_channel_gave_way():
    """R4: the node that gave it up still knows that it owned. Offsets of the epoch would be given twice else."""
    nodes = Nodes("a", "b", "c")
    nodes.age()
    nodes.see("a", "c")
    assert nodes.claim("a").is_owned
    assert nodes.publish("a", b"1") == 1
    nodes.see("a", "b", "c")
    assert nodes.claim("a").is_owned
    (_, whole) = nodes["a"].pending(CHANNEL) or ("", None)
    assert whole is not None
    kept = nodes["b"].replicate(whole, nodes.now, WALL)
    assert nodes["a"].replicated(CHANNEL, whole.ballot, kept).drop == ("c",), "which is lost"
    assert nodes.publish("a", b"2") == 2
    expire(nodes, "a")
    forgotten = nodes["a"].make_room(nodes.now)
    assert forgotten is not None
    nodes["b"].drop(CHANNEL, forgotten.ballot)
    assert nodes.texts("c") == [b"1"]
    assert nodes.claim("a").is_owned
    assert (nodes.publish("a", b"other"), nodes.epoch("a")) == (2, "e3")


def test_one_in_which_nothing_was_published_comes_first():
    """Names that somebody makes up cost nobody a position, as long as there are enough of them."""
    nodes = Nodes("a")
    used, made_up, *_ = (f"c{number}" for number in range(9))
    for channel in (used, made_up):
        assert nodes.claim("a", channel).is_owned
    assert nodes.publish("a", b"1", used) == 1
    expire(nodes, "a")
    for channel in (made_up, used):
        forgotten = nodes["a"].make_room(nodes.now)
        assert forgotten is not None
        assert forgotten.channel == channel


def test_a_copy_of_the_next_owner_is_not_dropped_however_late():
    """Whose ballot is the next one after the term, whatever its name is."""
    for order in (("a", "b", "c"), ("c", "b", "a")):
        nodes, channel = Nodes(*order), in_order(*order)
        first, second, third = order
        nodes.age()
        assert nodes.claim(first, channel).is_owned
        assert nodes.publish(first, b"1", channel) == 1
        expire(nodes, first)
        forgotten = nodes[first].make_room(nodes.now)
        assert forgotten is not None
        nodes.see(second, third)
        assert nodes.claim(second, channel).is_owned
        assert nodes.publish(second, b"2", channel) == 2
        nodes[third].drop(channel, forgotten.ballot)
        assert nodes.texts(third, channel) == [b"1", b"2"]


def test_what_is_about_to_have_another_owner_does_not_give_way():
    """Its followers go there with their positions."""
    nodes = Nodes("a", "b", "c")
    nodes.age()
    assert nodes.claim("a").is_owned
    nodes.draining = {"a"}
    nodes.see("a", "b", "c")
    assert nodes["a"].make_room(nodes.now) is None
    assert nodes.claim("b").is_owned
    assert nodes.epoch("b") == "e1"
