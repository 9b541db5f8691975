"""Rendezvous placement: against a dumb twin, and what a change of the nodes moves."""

from __future__ import annotations

import pytest
from xxhash import xxh3_64_intdigest

from access.core import placement
from access.core.placement import Node, View

NAMES = ("access-1", "access-2", "access-3", "access-4")
CHANNELS = [f"chat:{number}" for number in range(2_000)]


def view(*names: str, draining: tuple[str, ...] = ()) -> View:
    return View([Node(name, 1, name in draining) for name in names])


def weight(name: str, channel: str) -> int:
    return xxh3_64_intdigest(channel.encode(), seed=xxh3_64_intdigest(name.encode()))


def test_the_two_nodes_of_greatest_weight_are_owner_and_backup():
    """By the definition, written down in one line."""
    nodes = view(*NAMES)
    for channel in CHANNELS:
        first, second, *_ = sorted(NAMES, key=lambda name: weight(name, channel), reverse=True)
        assert nodes.order(channel) == (first, second)
        assert (nodes.owner(channel), nodes.backup(channel)) == (first, second)


def test_the_order_does_not_hang_on_the_order_of_the_registry():
    """Every node comes to the same result."""
    assert [view(*NAMES).order(one) for one in CHANNELS] == [view(*NAMES[::-1]).order(one) for one in CHANNELS]


def test_every_node_owns_its_share():
    """Within a tenth of the mean."""
    counts = [sum(view(*NAMES).owner(channel) == name for channel in CHANNELS) for name in NAMES]
    assert all(450 <= count <= 550 for count in counts), counts


def test_a_node_that_leaves_is_followed_by_its_backup_and_nothing_else_moves():
    """This is why the backup is the second of the order."""
    before, after = view(*NAMES), view(*NAMES[1:])
    for channel in CHANNELS:
        owner = before.owner(channel)
        assert after.owner(channel) == (before.backup(channel) if owner == NAMES[0] else owner)


def test_with_few_nodes_there_is_no_backup_or_no_owner():
    """One node owns all alone; without a node nobody does."""
    assert (view("a").owner("c"), view("a").backup("c")) == ("a", None)
    assert (view().owner("c"), view().backup("c")) == (None, None)


def test_a_draining_node_leaves_the_order_and_stays_near():
    """It has the channel, so whoever takes over asks it."""
    calm, draining = view(*NAMES), view(*NAMES, draining=(NAMES[0],))
    for channel in CHANNELS[:200]:
        assert draining.order(channel) == view(*NAMES[1:]).order(channel)
        assert draining.nearest(channel, 9, beside="x") == calm.nearest(channel, 9, beside="x")
    assert NAMES[0] in draining


def test_when_all_nodes_drain_the_order_is_that_of_all():
    """Somebody has to own."""
    draining = view(*NAMES, draining=NAMES)
    assert [draining.order(channel) for channel in CHANNELS] == [view(*NAMES).order(channel) for channel in CHANNELS]


def test_the_nearest_are_the_first_of_the_whole_order_without_oneself():
    """Owner and backup first."""
    nodes = view(*NAMES)
    for channel in CHANNELS[:200]:
        order = sorted(NAMES, key=lambda name: weight(name, channel), reverse=True)
        assert nodes.nearest(channel, 2, beside=order[0]) == tuple(order[1:3])
        assert nodes.nearest(channel, 9, beside=order[1]) == (order[0], *order[2:])


def test_a_view_knows_the_lives_of_its_nodes():
    """A restarted node is another one."""
    nodes = View([Node("a", 3), Node("b", 1)])
    assert nodes.lives == {"a": 3, "b": 1}
    assert "a" in nodes
    assert "c" not in nodes


def test_what_is_remembered_of_orders_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """And forgotten orders come out the same."""
    monkeypatch.setattr(placement, "_REMEMBERED_MAX", 10)
    nodes = view(*NAMES)
    assert [nodes.order(one) for one in CHANNELS[:50] * 2] == [view(*NAMES).order(one) for one in CHANNELS[:50]] * 2
    assert len(nodes._orders) <= 10
