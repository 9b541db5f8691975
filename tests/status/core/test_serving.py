"""Serving leases: two granters, promises, and the barrier compared with all that could still be granted."""

from __future__ import annotations

from itertools import product

import pytest

from base.clock import Instant
from base.ids import Epoch, NodeId
from status.core.partitions import Members, PartitionTable, Take
from status.core.serving import (
    LEADER_MS,
    SERVING_MS,
    SILENCE_MS,
    Granter,
    LeaderGrants,
    Promises,
    ServingLease,
    is_fenced,
    is_majority,
)

A, B, C, D = (NodeId(name) for name in "abcd")
TABLE = PartitionTable(Epoch(1), (A, B, C), (1, 1, 1), (0, 1, 2))
NEXT = TABLE.with_changes([Take(0, B)])


def at(ms: int) -> Instant:
    return Instant(10_000 + ms)


def test_a_majority_is_more_than_half():
    """Of no nodes none is needed: there was no former set."""
    assert is_majority((A, B, C), {A, B})
    assert not is_majority((A, B, C), {A, D})
    assert not is_majority((A, B), {A})
    assert is_majority((), set())


def test_the_leaders_grant_counts_from_the_asking_less_drift():
    """I1."""
    lease = ServingLease(A)
    number = lease.ask(at(0))
    lease.granted_by_leader(number)
    assert lease.is_valid(at(1_799), TABLE)
    assert not lease.is_valid(at(1_800), TABLE)


def test_an_answer_to_a_forgotten_round_grants_nothing():
    """It could only be over."""
    lease = ServingLease(A)
    number = lease.ask(at(0))
    lease.ask(at(SERVING_MS))
    lease.granted_by_leader(number)
    lease.granted_by_peer(number, B, Epoch(1))
    assert not lease.is_valid(at(SERVING_MS), TABLE)


def test_grants_of_a_majority_at_one_epoch_are_a_lease():
    """I2: a grant at another epoch does not add up, nor does one of a node outside the table."""
    lease = ServingLease(A)
    number = lease.ask(at(0))
    assert not lease.is_by_majority(at(0), TABLE)
    lease.granted_by_peer(number, D, Epoch(1))
    lease.granted_by_peer(number, C, Epoch(2))
    assert not lease.is_by_majority(at(0), TABLE)
    lease.granted_by_peer(number, B, Epoch(1))
    assert lease.is_valid(at(1_799), TABLE)
    assert not lease.is_valid(at(1_800), TABLE)


def test_a_node_outside_the_table_has_no_majority():
    """Its own voice counts for nobody."""
    lease = ServingLease(D)
    number = lease.ask(at(0))
    for node in (A, B):
        lease.granted_by_peer(number, node, Epoch(1))
    assert not lease.is_by_majority(at(0), TABLE)


def test_on_whose_grant_a_node_answers_is_told():
    """The leader's counts first; a majority is as good for readers, and a sign that something is away."""
    lease = ServingLease(A)
    assert lease.granter(at(0), None) is lease.granter(at(0), TABLE) is Granter.NOBODY
    lease.granted_by_leader(lease.ask(at(0)))
    lease.granted_by_peer(lease.ask(at(1_000)), B, Epoch(1))
    assert lease.granter(at(1_799), TABLE) is Granter.LEADER
    assert lease.granter(at(1_800), TABLE) is Granter.PEERS
    assert lease.granter(at(1_800), NEXT) is Granter.NOBODY, "granted at another epoch"
    assert lease.granter(at(2_800), TABLE) is Granter.NOBODY


def test_peers_are_asked_when_the_leaders_lease_is_nearly_over():
    """So that there is no gap when the leader goes, and no promise while it is there."""
    lease = ServingLease(A)
    assert lease.needs_peers(at(0))
    lease.granted_by_leader(lease.ask(at(0)))
    assert not lease.needs_peers(at(1_000))
    assert lease.needs_peers(at(1_001))


def test_a_promise_holds_back_the_acknowledgement_of_a_newer_epoch():
    """I3."""
    promises = Promises(at(0), is_first_life=True)
    promises.adopt(Epoch(1))
    assert promises.acknowledged(at(0)) == 1
    assert promises.grant(at(100), B, Epoch(1))
    assert promises.acknowledged(at(100)) == 1
    promises.adopt(Epoch(2))
    promises.adopt(Epoch(1))
    assert not promises.grant(at(200), B, Epoch(1))
    assert promises.acknowledged(at(100 + SERVING_MS - 1)) == 1
    promises.check_invariants()
    assert promises.acknowledged(at(100 + SERVING_MS)) == 2


def test_a_promise_ends_when_who_has_it_reads_a_newer_table():
    """I2: a lease by a majority holds at one epoch, so what was granted at an older one does not count any more."""
    promises = Promises(at(0), is_first_life=True)
    promises.adopt(Epoch(1))
    assert not promises.has_read(B, Epoch(9)), "nothing was promised"
    for asker in (B, C):
        promises.grant(at(0), asker, Epoch(1))
    promises.adopt(Epoch(2))
    assert not promises.has_read(B, Epoch(1))
    assert promises.has_read(B, Epoch(2))
    assert promises.acknowledged(at(0)) == 0, "there is still what was promised to C"
    assert promises.grant(at(0), C, Epoch(2)), "it asks by the newer one"
    assert promises.acknowledged(at(0)) == 2
    promises.check_invariants()


def test_who_granted_at_an_older_epoch_is_told_of_a_newer_one():
    """Once: until then, or until the grant is over."""
    lease = ServingLease(A)
    number = lease.ask(at(0))
    lease.granted_by_peer(number, B, Epoch(1))
    lease.granted_by_peer(number, C, Epoch(1))
    assert lease.outdated(at(0), Epoch(1)) == set()
    assert lease.outdated(at(0), Epoch(2)) == {B, C}
    lease.told(B, Epoch(1))
    lease.told(D, Epoch(2))
    assert lease.outdated(at(0), Epoch(2)) == {B, C}
    lease.told(B, Epoch(2))
    assert lease.outdated(at(1_799), Epoch(2)) == {C}
    assert lease.outdated(at(1_800), Epoch(2)) == set()


def test_a_later_life_acknowledges_nothing_until_its_former_promises_are_over():
    """I3: it does not know them."""
    promises = Promises(at(0))
    promises.adopt(Epoch(5))
    assert promises.acknowledged(at(SILENCE_MS - 1)) == 0
    assert promises.acknowledged(at(SILENCE_MS)) == 5


def test_the_leader_grants_only_to_who_has_its_table():
    """Who has an older one may own in it what was taken."""
    grants = LeaderGrants(at(0), Epoch(7))
    assert not grants.grant(at(0), A, Epoch(0), TABLE)
    assert grants.grant(at(SILENCE_MS), A, Epoch(1), TABLE)
    assert not grants.is_over(at(SILENCE_MS), A)
    assert not grants.is_over(at(SILENCE_MS + SERVING_MS - 1), A)
    assert grants.is_over(at(SILENCE_MS + SERVING_MS), A)


def test_a_new_leader_counts_with_its_predecessors_grants():
    """Nobody told it of them."""
    grants = LeaderGrants(at(0), Epoch(7))
    assert not grants.is_over(at(SILENCE_MS - 1), B)
    assert grants.is_over(at(SILENCE_MS), B)


def test_a_predecessor_has_no_lease_of_its_own():
    """I5: it ended before the lock was free. But it may have granted one to anybody else."""
    grants = LeaderGrants(at(0), Epoch(7), predecessor=A)
    assert grants.is_over(at(0), A)
    assert not grants.is_over(at(0), B)
    assert grants.grant(at(100), A, Epoch(1), TABLE), "it is there"
    assert not grants.is_over(at(100), A)
    assert grants.is_over(at(100 + SERVING_MS), A)
    grants.distrust(at(3_000))
    assert not grants.is_over(at(3_000), A)


def test_a_leaders_own_lease_is_its_lock():
    """I5: what others granted before does not outlast it, nor count if it comes late; and with the lock it ends."""
    lease = ServingLease(A)
    early, late = lease.ask(at(0)), lease.ask(at(300))
    lease.granted_by_leader(early)
    lease.elected(at(1_700))
    lease.granted_by_leader(late)
    assert lease.is_valid(at(1_699), TABLE)
    assert not lease.is_valid(at(1_700), TABLE)
    lease.leads(at(2_400))
    assert lease.is_valid(at(2_399), TABLE)
    assert not lease.is_valid(at(2_400), TABLE)
    asked = lease.ask(at(2_000))
    lease.stepped_down()
    lease.granted_by_leader(asked)
    assert not lease.is_valid(at(2_000), TABLE)
    lease.granted_by_leader(lease.ask(at(2_001)))
    assert lease.is_valid(at(2_002), TABLE), "of whoever leads now"


def test_who_has_no_lease_has_none_by_being_elected():
    """It has to have the newest table first."""
    lease = ServingLease(A)
    lease.elected(at(1_000))
    assert not lease.is_valid(at(0), TABLE)
    lease.leads(at(1_000))
    lease.elected(at(2_000))
    assert not lease.is_valid(at(1_000), TABLE), "not longer than it was"


def test_in_a_registry_that_started_over_a_predecessor_may_lead_for_a_while():
    """It learns of its successor only when it asks the next time."""
    grants = LeaderGrants(at(0), Epoch(7))
    grants.distrust(at(10))
    assert not grants.is_over(at(10 + LEADER_MS + SILENCE_MS - 1), B)
    assert grants.is_over(at(10 + LEADER_MS + SILENCE_MS), B)


def test_a_grant_of_any_leader_counts_and_none_makes_a_lease_shorter():
    """Terms begin anew with a registry that lost everything; an answer may come late."""
    lease = ServingLease(A)
    first, second = lease.ask(at(0)), lease.ask(at(100))
    lease.granted_by_leader(second)
    lease.granted_by_leader(first)
    assert lease.is_valid(at(1_899), TABLE)
    assert not lease.is_valid(at(1_900), TABLE)


def test_who_has_read_that_it_lost_a_partition_is_fenced():
    """Whatever is granted to it."""
    assert is_fenced(NEXT, 0, source=A, grants_over=False, acknowledged={A: Epoch(2)})


@pytest.mark.spec("PR-03")
@pytest.mark.parametrize("grants_over", [False, True])
def test_the_barrier_passes_only_if_no_majority_can_still_grant(grants_over: bool):  # noqa: FBT001
    """I4, for every set of nodes that acknowledged: the others alone must be no majority together with the source."""
    for seen in product([1, 2], repeat=3):
        acknowledged = {node: Epoch(epoch) for node, epoch in zip((A, B, C), seen, strict=True)}
        behind = {node for node, epoch in acknowledged.items() if epoch < 2}
        could_serve = A in behind and (not grants_over or is_majority(NEXT.nodes, behind))
        assert is_fenced(NEXT, 0, source=A, grants_over=grants_over, acknowledged=acknowledged) is not could_serve


def test_after_a_change_of_nodes_both_sets_must_know():
    """A majority of the former set could still grant at an epoch before it."""
    weights = ((A, 1), (B, 1), (C, 1), (D, 1), (NodeId("e"), 1))
    table = TABLE.with_changes([Members(weights)]).with_changes([Take(0, D)])
    assert table.former == (A, B, C)
    newer = Epoch(3)
    outside = {B: newer, D: newer, NodeId("e"): newer}
    assert not is_fenced(table, 0, source=A, grants_over=True, acknowledged=outside)
    assert is_fenced(table, 0, source=A, grants_over=True, acknowledged={**outside, C: newer})
