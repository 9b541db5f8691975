"""What one status node may say before it knows all, and when it may say nothing."""

from __future__ import annotations

from base.ids import Epoch, NodeId
from status.api import REFUSED, UNKNOWN_SHOWN, Beat, Stamp
from status.api import pack_partitions as pack
from status.core.holding import Role
from status.core.ownership import ROUND_MS, Heard
from status.core.partitions import Take, restored
from tests.status.core.status_node import (
    AWAY_AND_BACK,
    GATE,
    GRACE_MS,
    LIFE,
    OFFLINE,
    OTHER,
    TABLE,
    VOUCH_MS,
    A,
    B,
    Node,
    at,
    entry,
    serving,
    table,
)


def test_without_a_table_a_node_is_nothing_and_hears_nobody():
    """I1."""
    node = Node(A, GATE)
    assert node.role(at(0)) is Role.NONE
    assert node.beat(at(0), entry(1)) == Heard(is_heard=False)
    assert node.says(at(0)) is REFUSED
    assert node.core.left_ms(at(0), GATE, LIFE, Epoch(1)) == 0


def test_an_owner_without_data_knows_offline_only_when_all_told_all():
    """I2 and I3: who is absent is unknown before."""
    node = Node(A, GATE, OTHER)
    node.read(at(0), TABLE)
    assert (node.role(at(0)), node.says(at(0)), node.core.incomplete(at(0))) == (Role.RECOVERING, UNKNOWN_SHOWN, [0])
    assert node.beat(at(1), entry(1), has=(entry(1),)) == Heard(mismatched=(0,))
    assert node.beat(at(1), has=(entry(1),)) == Heard(mismatched=(0,))
    assert (node.says(at(1)), node.says(at(1), "v")) == (entry(1), UNKNOWN_SHOWN)
    assert node.beat(at(2), entry(1), floor=1, has=(entry(1),)) == Heard()
    assert node.role(at(2)) is Role.RECOVERING
    assert node.beat(at(3), floor=0, node=OTHER) == Heard()
    assert (node.role(at(3)), node.core.incomplete(at(3))) == (Role.SERVING, [])
    assert node.says(at(3), "v") is OFFLINE
    assert node.core.census()[0][0] == 1


def test_in_a_registry_that_started_over_access_nodes_are_awaited_that_nobody_listed():
    """They live, and register again: who began just then has heard of none of them."""
    node = Node(A)
    node.read(at(0), restored(TABLE, Epoch(9), is_refilled=True))
    assert (node.role(at(0)), node.says(at(0))) == (Role.RECOVERING, UNKNOWN_SHOWN)
    node.beat(at(1), entry(1), floor=1, epoch=9)
    node.beat(at(1), has=(entry(1),), epoch=9)
    assert (node.says(at(1)), node.says(at(1), "v")) == (entry(1), UNKNOWN_SHOWN)
    node.beat(at(GRACE_MS), has=(entry(1),), epoch=9)
    assert node.says(at(GRACE_MS), "v") is OFFLINE


def test_an_owner_keeps_what_it_has_when_its_table_is_put_back():
    """Nobody has to tell it anything anew."""
    node = serving(entry(1))
    node.read(at(1), restored(TABLE, Epoch(9), is_refilled=False))
    assert (node.role(at(1)), node.says(at(1)), node.says(at(1), "v")) == (Role.SERVING, entry(1), OFFLINE)
    assert node.core.take_turns()[1:] == []


def test_an_access_node_that_stays_silent_is_waited_for_a_leases_time():
    """I3: then it has none."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    node.step(at(GRACE_MS - 1))
    assert node.says(at(GRACE_MS - 1)) is UNKNOWN_SHOWN
    assert node.says(at(GRACE_MS)) is OFFLINE
    assert node.core.incomplete(at(GRACE_MS)) == []
    node.step(at(GRACE_MS + ROUND_MS))
    assert (node.role(at(GRACE_MS)), node.core.statistics()["recovering"]) == (Role.SERVING, 0)


def test_what_came_before_the_recovery_began_is_told_again():
    """The shell steps at each call; if it did not, the access node is asked once more and nothing is lost."""
    node = serving()
    assert node.core.adopt(at(1), table(*AWAY_AND_BACK))
    told = Beat(LIFE, Epoch(5), Stamp(), pack([0]), ["u"], [entry(1)], pack([0]), 1)
    assert node.core.heard(at(1), GATE, told).is_heard
    assert node.beat(at(1), epoch=5, has=(entry(1),)) == Heard(mismatched=(0,))
    assert node.beat(at(2), entry(1), floor=1, epoch=5) == Heard()
    assert node.role(at(2)) is Role.SERVING


def test_without_a_serving_lease_nothing_is_said_or_taken():
    """I1; and what was not heard meanwhile proves nothing, however long that was (I3)."""
    for away in (500, 50_000):
        node = serving(entry(1))
        node.is_leased = False
        assert node.beat(at(100), entry(2)) == Heard(is_heard=False)
        assert node.role(at(100)) is Role.FENCED
        assert node.says(at(100)) is REFUSED
        assert node.core.left_ms(at(100), GATE, LIFE, Epoch(1)) == 0
        node.is_leased = True
        back = away + VOUCH_MS
        for late in range(0, VOUCH_MS, ROUND_MS):
            node.step(at(back + late))
            assert node.says(at(back + late)) is UNKNOWN_SHOWN
        assert node.says(at(back + VOUCH_MS)) is OFFLINE
        assert node.core.take_changes() == []


def test_a_node_that_did_not_run_convicts_nobody():
    """I3: the silence was its own."""
    node = serving(entry(1))
    node.core.stalled(90_000)
    node.step(at(90_000))
    assert node.says(at(90_000)) is UNKNOWN_SHOWN
    assert node.beat(at(90_001), has=(entry(1),)) == Heard()
    assert node.says(at(90_001)) == entry(1)


def test_who_lost_a_node_that_did_not_run_gets_the_time_to_find_it_again():
    """I3: its streams were given up meanwhile. As long as the node was away, and at most a lease's time."""
    for away, patience in ((1_500, 1_500), (90_000, VOUCH_MS)):
        node = serving(entry(1))
        node.step(at(VOUCH_MS - 100))
        assert node.says(at(VOUCH_MS - 100)) == entry(1)
        back = VOUCH_MS - 100 + away
        node.core.stalled(away)
        node.step(at(back + patience - 1))
        assert node.says(at(back + patience - 1)) is UNKNOWN_SHOWN
        node.step(at(back + patience))
        assert node.says(at(back + patience)) is OFFLINE


def test_a_node_that_stalls_again_and_again_convicts_the_dead_all_the_same():
    """I3: a stall gives back the time it took, and no more."""
    node = serving(entry(1))
    now = 0
    for _ in range(20):
        now += 400
        node.core.stalled(200)
        node.step(at(now))
    assert now - 20 * 200 > VOUCH_MS
    assert node.says(at(now)) is OFFLINE


def test_a_recovery_waits_for_who_is_heard():
    """However long it takes to tell everything: its silence here would prove something, its slowness does not."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    for now in range(0, 3 * GRACE_MS, 300):
        assert node.beat(at(now)).is_heard
        assert (node.role(at(now)), node.says(at(now))) == (Role.RECOVERING, UNKNOWN_SHOWN)
    assert node.beat(at(now), floor=0) == Heard()
    assert (node.role(at(now)), node.says(at(now))) == (Role.SERVING, OFFLINE)


def test_a_recovery_ends_when_who_was_heard_falls_silent():
    """Its lease is over then."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    node.beat(at(1_000))
    assert node.role(at(1_000 + GRACE_MS - 1)) is Role.RECOVERING
    assert node.role(at(1_000 + GRACE_MS)) is Role.SERVING


def test_a_recovery_waits_for_who_is_not_listed():
    """Its registration lapsed, and it lives: heard before the partition came, or first after."""
    node = Node(A)
    node.read(at(0), table(Take(0, B)))
    node.beat(at(10), epoch=2)
    node.read(at(20), table(*AWAY_AND_BACK))
    assert node.role(at(20)) is Role.RECOVERING
    assert node.beat(at(30), entry(1), floor=1, epoch=5) == Heard()
    assert (node.role(at(30)), node.says(at(30))) == (Role.SERVING, entry(1))


LISTED = (GATE, NodeId("g2"), NodeId("g3"), NodeId("g4"))


def three_heard() -> Node:
    """A node that hears three of four access nodes, each with a session of a user of its name."""
    node = Node(A, *LISTED)
    node.read(at(0), TABLE)
    for gate in LISTED:
        assert node.beat(at(0), entry(1), floor=1, node=gate, user=gate) == Heard()
    for gate in LISTED[:3]:
        assert node.beat(at(0), node=gate) == Heard()
    node.core.take_changes()
    return node


def test_if_most_access_nodes_fall_silent_at_once_offline_is_said_of_nobody():
    """I3: rather it is this node that is cut off. It convicts nobody until the registry does."""
    node = three_heard()
    for now in range(0, 4 * GRACE_MS, 300):
        node.beat(at(now), node=LISTED[3], user=LISTED[3])
    assert now > VOUCH_MS + GRACE_MS
    assert node.core.is_in_doubt
    assert [node.says(at(now), user) for user in LISTED] == [*[UNKNOWN_SHOWN] * 3, entry(1)]
    assert node.says(at(now), "nobody") is UNKNOWN_SHOWN
    assert node.core.statistics()["access_nodes"] == 4
    assert node.core.take_changes() == []
    node.core.access = frozenset(LISTED[2:])
    assert [node.says(at(now), user) for user in LISTED] == [*[OFFLINE] * 3, entry(1)]
    node.step(at(now + ROUND_MS))
    assert not node.core.is_in_doubt
    assert node.core.statistics()["access_nodes"] == 1


def test_who_is_heard_again_ends_the_doubt():
    """Then the others' silence is their own."""
    node = three_heard()
    node.beat(at(2 * VOUCH_MS), node=LISTED[3], user=LISTED[3])
    assert node.says(at(2 * VOUCH_MS), LISTED[1]) is UNKNOWN_SHOWN
    node.beat(at(2 * VOUCH_MS), node=GATE, user=GATE)
    assert [node.says(at(2 * VOUCH_MS), user) for user in LISTED] == [entry(1), OFFLINE, OFFLINE, entry(1)]


def test_who_lost_a_partition_and_missed_it_trusts_nothing_that_it_kept():
    """I2: the owner epoch tells."""
    node = serving(entry(1))
    node.read(at(100), table(*AWAY_AND_BACK))
    assert (node.role(at(100)), node.says(at(100))) == (Role.RECOVERING, UNKNOWN_SHOWN)


def test_a_partition_that_went_away_is_dropped():
    """And its store is nobody's."""
    node = serving(entry(1))
    assert node.core.store(0) is not None
    node.read(at(0), table(Take(0, B)))
    assert node.core.store(0) is None
    assert node.core.statistics()["partitions"] == 0


def test_an_audit_of_somebody_who_has_nothing_here_is_compared_with_nothing():
    """Who is not awaited and told nothing has nothing."""
    node = serving(entry(1))
    assert node.beat(at(1), has=(), node=OTHER) == Heard()
    assert node.beat(at(1), has=(entry(2),), node=OTHER) == Heard(mismatched=(0,))
