"""A partition's records: merging in any order, tombstones, floors and digests."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Instant, Timestamp
from base.ids import Incarnation, NodeId
from status.api import Opened
from status.core.records import TOMBSTONE_MS, Digest, Floor, PartitionRecords, Record, digest_of

NOW = Instant(1_000)
A, B = NodeId("a"), NodeId("b")


def record(session: str, seq: int, *, is_open: bool = True, user: str = "u", node: NodeId = A, life: int = 1) -> Record:
    opened = Opened(user, session, seq, "d", "p", "online", Timestamp(0)) if is_open else None
    return Record(user, session, node, Incarnation(life), seq, opened)


def floor(seq: int, *, node: NodeId = A, life: int = 1) -> Floor:
    return Floor(node, Incarnation(life), seq)


def store(*items: Record | Floor) -> PartitionRecords:
    records = PartitionRecords()
    for item in items:
        records.merge(NOW, item)
        records.check_invariants()
    return records


def test_the_greater_number_wins_whatever_comes_first():
    """I1 and I2 over every order of open, change and close."""
    for order in permutations([record("s", 1), record("s", 2), record("s", 3, is_open=False)]):
        assert store(*order).of_user("u") == ()
    for order in permutations([record("s", 1), record("s", 2)]):
        assert store(*order).of_user("u") == (record("s", 2),)


def test_a_newer_life_wins_over_a_greater_number():
    """I1: incarnation first."""
    assert store(record("s", 9), record("s", 1, life=2)).of_user("u") == (record("s", 1, life=2),)


def test_sessions_of_different_access_nodes_do_not_compare():
    """Their numbers come from different counters."""
    assert len(store(record("s", 1), record("s", 2, node=B)).of_user("u")) == 2


def test_merging_twice_is_no_news():
    """What is no news is not forwarded."""
    records = PartitionRecords()
    assert records.merge(NOW, record("s", 1))
    assert not records.merge(NOW, record("s", 1))
    assert records.merge(NOW, floor(1))
    assert not records.merge(NOW, floor(1))


def test_a_tombstone_is_kept_for_a_minute_and_then_forgotten():
    """I3."""
    records = store(record("s", 1), record("s", 2, is_open=False))
    assert records.expire(Instant(NOW + TOMBSTONE_MS - 1)) == 0
    assert records.snapshot() == [record("s", 2, is_open=False)]
    assert records.statistics() == {"records": 0, "tombstones": 1, "users": 1}
    assert records.expire(Instant(NOW + TOMBSTONE_MS)) == 1
    assert records.snapshot() == []
    records.check_invariants()


def test_without_tombstones_an_older_record_brings_the_session_back():
    """What the sensitivity test of the simulator removes."""
    records = PartitionRecords(keeps_tombstones=False)
    records.merge(NOW, record("s", 1))
    assert records.merge(NOW, record("s", 2, is_open=False))
    assert not records.merge(NOW, record("s", 3, is_open=False))
    assert records.merge(NOW, record("s", 1))
    assert records.of_user("u")


def test_a_full_list_closes_what_it_does_not_name():
    """And the floor keeps out what is still on its way, but not what is newer."""
    records = store(record("s", 1), record("t", 2), record("x", 3, node=B))
    news = records.replace(NOW, floor(5), [record("t", 2), record("v", 4)])
    assert news == [record("v", 4), record("s", 5, is_open=False), floor(5)]
    records.check_invariants()
    assert {found.session for found in records.of_user("u")} == {"t", "v", "x"}
    assert not records.merge(NOW, record("w", 5))
    assert records.merge(NOW, record("w", 6))
    assert records.replace(NOW, floor(5), [record("t", 2), record("v", 4)]) == []
    assert {found.session for found in records.of_user("u")} == {"t", "v", "w", "x"}


def test_an_older_list_closes_nothing_newer():
    """A list that was long on its way."""
    records = store(record("s", 7))
    records.replace(NOW, floor(5), [])
    assert records.of_user("u") == (record("s", 7),)


def test_a_newer_life_ends_all_of_the_older_one():
    """Its sockets are gone; and nothing of it comes back."""
    records = store(record("s", 9), record("t", 8, is_open=False), record("w", 1, life=2))
    assert records.merge(NOW, floor(0, life=2))
    assert records.of_user("u") == (record("w", 1, life=2),)
    assert not records.merge(NOW, record("s", 10))
    records.check_invariants()


def test_digests_are_equal_for_equal_open_records_only():
    """I4: tombstones do not count, since each node forgets them at its own time."""
    one = store(record("s", 1), record("x", 1, node=B), record("t", 2), record("t", 3, is_open=False))
    two = store(record("x", 1, node=B), record("s", 1))
    assert one.digest() == two.digest() == digest_of([record("s", 1), record("x", 1, node=B)])
    assert one.digest(A) == digest_of([record("s", 1)])
    assert one.digest(NodeId("c")) == Digest(0, 0)
    assert one.digest() != store(record("s", 2), record("x", 1, node=B)).digest()
    assert one.nodes() == (A, B)


def test_a_snapshot_makes_an_equal_store():
    """Tombstones included, floors last."""
    one = store(floor(3), record("s", 4), record("t", 5), record("t", 6, is_open=False))
    two = store(*one.snapshot())
    assert two.snapshot() == one.snapshot()
    assert isinstance(one.snapshot()[-1], Floor)


def test_a_wrong_digest_is_found_out():
    """I4 is checked, not assumed."""
    records = store(record("s", 1))
    records._digests[A] = Digest(1, 0)
    with pytest.raises(AssertionError, match="I4"):
        records.check_invariants()


RECORDS = st.builds(
    record,
    st.sampled_from("st"),
    st.integers(1, 5),
    is_open=st.booleans(),
    node=st.sampled_from([A, B]),
    life=st.integers(1, 2),
)


@given(items=st.lists(RECORDS, max_size=8), seed=st.randoms(use_true_random=False))
def test_any_order_with_repeats_gives_the_same_open_records(items: list[Record], seed: Random):
    """I2: transfers are idempotent and commutative. One number names one state."""
    unique = list({(item.connection, item.version): item for item in items}.values())
    shuffled = [*unique, *unique]
    seed.shuffle(shuffled)
    assert store(*unique).digest() == store(*shuffled).digest()
