"""What becomes of a channel that gives way to another (R7), at the nodes that had it."""

from __future__ import annotations

from tests.access.core.custody_nodes import CHANNEL, Nodes, settled


def test_the_copies_of_a_channel_that_gave_way_are_dropped():
    """R7: or they would stay. It is claimed again as any channel that was forgotten."""
    nodes = Nodes("a", "b", "c")
    nodes.age()
    assert nodes.claim("a").is_owned
    nodes.pump("a")
    assert nodes["b"].stream(CHANNEL) is not None
    forgotten = nodes["a"].make_room()
    assert forgotten is not None
    assert forgotten.nodes == ("b",)
    nodes["b"].drop(CHANNEL, forgotten.ballot)
    assert nodes["b"].stream(CHANNEL) is None
    assert nodes.claim("a").is_owned
    assert nodes.publish("a", b"1") == 1
    assert nodes.epoch("a") == "e2"


def test_what_was_published_in_never_gives_way():
    """Neither while it waits for the backup nor afterwards, in whatever term."""
    nodes = settled()
    assert nodes["a"].make_room() is None
    nodes.see("b", "c", by=("b", "c"))
    assert nodes.claim("b").is_owned
    assert nodes["b"].make_room() is None


def test_what_is_about_to_have_another_owner_does_not_give_way():
    """Its followers go there with their positions."""
    nodes = Nodes("a", "b", "c")
    nodes.age()
    assert nodes.claim("a").is_owned
    nodes.draining = {"a"}
    nodes.see("a", "b", "c")
    assert nodes["a"].make_room() is None
    assert nodes.claim("b").is_owned
    assert nodes.epoch("b") == "e1"
