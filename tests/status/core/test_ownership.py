"""What one status node may say: through every table, lease, beat, seal and commit, with unknown in between."""

from __future__ import annotations

import pytest

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import Opened
from status.core.handoff import Outgoing
from status.core.ownership import GRACE_MS, Answer, Ownership, Role, Told
from status.core.partitions import Advance, Begin, Change, End, PartitionTable, Stage, Take
from status.core.records import Digest, Floor, Record, digest_of

A, B = NodeId("a"), NodeId("b")
GATE, OTHER = NodeId("gate"), NodeId("other")
LIFE = Incarnation(1)
TABLE = PartitionTable(Epoch(1), (A, B), (1, 1), (0, 1))
EARLY = [Begin(0, B), Advance(0, Stage.COPY), Advance(0, Stage.CATCHUP), Advance(0, Stage.SEAL)]
UNKNOWN, OFFLINE = Answer(None), Answer(())


def at(ms: int) -> Instant:
    return Instant(100_000 + ms)


def record(seq: int, *, session: str | None = None, is_open: bool = True, life: int = 1, node: NodeId = GATE) -> Record:
    session = session or f"s{seq}"
    opened = Opened("u", session, seq, "d", "p", "online", Timestamp(0)) if is_open else None
    return Record("u", session, node, Incarnation(life), seq, opened)


def table(*changes: Change, since: PartitionTable = TABLE) -> PartitionTable:
    """Return the table after these changes, each a write of its own."""
    made = since
    for change in changes:
        made = made.with_changes([change])
    return made


class Node:
    """One status node in the hands of a test. Its lease is a switch."""

    def __init__(self, name: NodeId, *access: NodeId, life: int = 1) -> None:
        self.is_leased = True
        self.core = Ownership(name, Incarnation(life), access, is_leased=lambda *_: self.is_leased)

    def read(self, now: Instant, newer: PartitionTable) -> None:
        assert self.core.adopt(now, newer)
        self.core.step(now)
        self.core.check_invariants()

    def beat(
        self,
        now: Instant,
        *records: Record,
        has: tuple[Record, ...] | None = None,
        floor: int | None = None,
        epoch: int = 1,
        life: int = 1,
        until: Instant | None = None,
        node: NodeId = GATE,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Send a beat about partition 0; `has` is what the access node's digest is of, by default the records."""
        told = Told(
            0,
            records,
            digest_of(has if has is not None else [found for found in records if found.opened is not None]),
            Floor(node, Incarnation(life), floor) if floor is not None else None,
        )
        self.core.step(now)
        heard = self.core.heard(
            now, node, Incarnation(life), epoch=Epoch(epoch), until=until or Instant(now + 2_700), told=[told]
        )
        self.core.check_invariants()
        return heard.refused, heard.mismatched

    def role(self, now: Instant) -> Role:
        return self.core.role(now, 0)

    def says(self, now: Instant) -> Answer:
        return self.core.lookup(now, 0, "u")


def serving(*records: Record) -> Node:
    """Node a, which owns partition 0 and was told everything at 0."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    assert node.beat(at(0), *records, floor=len(records)) == ((), ())
    assert node.role(at(0)) is Role.SERVING
    return node


def copied(node: Node, target: Node, now: Instant) -> None:
    """Carry every question and its answer between the two, as often as it takes here."""
    for _ in range(2):
        for source, pull in target.core.pulls(now):
            assert source == A
            chunk = node.core.pulled(now, pull)
            assert chunk is not None
            target.core.received(now, chunk)


# ---------------------------------------------------------------- owning and recovering


def test_without_a_table_a_node_is_nothing_and_refuses():
    """I1."""
    node = Node(A, GATE)
    node.core.step(at(0))
    assert node.role(at(0)) is Role.NONE
    assert node.beat(at(0), record(1)) == ((0,), ())


def test_older_tables_are_not_adopted():
    """A node never goes back."""
    node = Node(A)
    node.read(at(0), table(Begin(0, B)))
    assert not node.core.adopt(at(0), TABLE)
    assert not node.core.adopt(at(0), table(Begin(0, B)))


def test_an_owner_without_data_knows_offline_only_when_all_told_all():
    """I2 and I3: who is absent is unknown before."""
    node = Node(A, GATE, OTHER)
    node.read(at(0), TABLE)
    assert (node.role(at(0)), node.says(at(0)), node.core.incomplete(at(0))) == (Role.RECOVERING, UNKNOWN, [0])
    assert node.beat(at(1), record(1)) == ((), (0,))
    assert node.says(at(1)) == Answer((record(1),))
    assert node.beat(at(2), record(1), floor=1) == ((), ())
    assert node.role(at(2)) is Role.RECOVERING
    assert node.beat(at(3), floor=0, node=OTHER) == ((), ())
    assert (node.role(at(3)), node.core.incomplete(at(3))) == (Role.SERVING, [])
    assert node.core.digest(0) == digest_of([record(1)])


def test_an_access_node_that_stays_silent_is_waited_for_a_leases_time():
    """I3: then it has none."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    node.core.step(at(GRACE_MS - 1))
    assert node.says(at(GRACE_MS - 1)) == UNKNOWN
    node.core.step(at(GRACE_MS))
    assert (node.role(at(GRACE_MS)), node.says(at(GRACE_MS))) == (Role.SERVING, OFFLINE)


def test_without_a_serving_lease_nothing_is_said_or_taken():
    """I1; and after it came back nobody is convicted for what was not heard (I3)."""
    node = serving(record(1))
    node.is_leased = False
    assert node.beat(at(100), record(2)) == ((0,), ())
    assert node.role(at(100)) is Role.FENCED
    node.is_leased = True
    node.core.step(at(5_000))
    assert node.says(at(5_000)) == UNKNOWN
    assert node.says(at(5_000 + GRACE_MS)) == OFFLINE


def test_a_partition_taken_without_a_seal_waits_for_the_barrier():
    """I1: it takes nothing before, and recovers after."""
    node = Node(B, GATE)
    taken = table(Take(0, B))
    node.read(at(0), taken)
    assert node.role(at(0)) is Role.FENCED
    assert node.beat(at(0), record(1), floor=1, epoch=2) == ((0,), ())
    node.read(at(5_000), table(End(0), since=taken))
    assert node.role(at(5_000)) is Role.RECOVERING
    assert node.says(at(5_000)) == UNKNOWN
    assert node.beat(at(5_001), record(1), floor=1, epoch=3) == ((), ())
    assert node.says(at(5_001)) == Answer((record(1),))


def test_who_lost_a_partition_and_missed_it_trusts_nothing_that_it_kept():
    """I2: the owner epoch tells."""
    node = serving(record(1))
    away_and_back = table(Take(0, B), End(0), Take(0, A), End(0))
    node.read(at(100), away_and_back)
    assert (node.role(at(100)), node.says(at(100))) == (Role.RECOVERING, UNKNOWN)


# ---------------------------------------------------------------- beats


def test_a_beat_vouches_for_a_while():
    """Then the record's access node has no lease, and the user is offline at once."""
    node = serving(record(1))
    assert node.says(at(2_699)) == Answer((record(1),))
    assert node.says(at(GRACE_MS - 1)) == UNKNOWN
    assert node.says(at(GRACE_MS)) == OFFLINE


def test_a_beat_that_was_long_on_its_way_does_not_shorten_what_is_vouched():
    """It may be older than the newest, of the same table or of one before."""
    node = serving(record(1))
    node.beat(at(10), has=(record(1),), until=at(10))
    assert node.core.left_ms(at(10), GATE, LIFE) == 2_690
    node.beat(at(20), has=(record(1),), until=at(9_000), epoch=0)
    assert node.core.left_ms(at(20), GATE, LIFE) == 2_680
    assert node.says(at(GRACE_MS)) == UNKNOWN
    assert (node.core.left_ms(at(0), OTHER, LIFE), node.core.left_ms(at(0), GATE, Incarnation(9))) == (0, 0)


def test_a_beat_by_a_newer_table_is_refused_until_that_is_read():
    """It may have routed elsewhere what this node still owns in its own."""
    node = serving()
    assert node.beat(at(1), record(1), epoch=2) == ((0,), ())
    node.read(at(2), table(Begin(1, A)))
    assert node.beat(at(3), record(1), epoch=2) == ((), ())


def test_a_partition_of_somebody_else_is_refused():
    """The access node keeps its news for the owner."""
    node = Node(B, GATE)
    node.read(at(0), TABLE)
    assert node.beat(at(0), record(1)) == ((0,), ())


def test_a_different_digest_is_told():
    """The access node sends all that it has of the partition."""
    node = serving(record(1))
    assert node.beat(at(1), has=(record(1), record(2))) == ((), (0,))
    assert node.beat(at(2), record(1), record(2), floor=12) == ((), ())
    node.beat(at(3), record(1, is_open=False), record(3, session="s1", is_open=False), has=(record(2),))
    assert node.says(at(3)) == Answer((record(2),))


def test_a_newer_life_of_an_access_node_ends_the_sessions_of_the_older():
    """Its sockets are gone; and the older life is heard no more."""
    node = serving(record(1))
    assert node.beat(at(1), record(1, session="t", life=2), has=(record(1, session="t", life=2),), life=2) == ((), (0,))
    assert node.says(at(1)) == Answer((record(1, session="t", life=2),))
    assert node.beat(at(2), record(9)) == ((0,), ())


# ---------------------------------------------------------------- moves


def test_a_move_keeps_the_user_online_all_the_way():
    """Source, seal, target; nothing to recover, no beat needed in between."""
    source, target = serving(record(1)), Node(B, GATE)
    target.read(at(0), TABLE)
    made = TABLE
    for change in EARLY:
        made = table(change, since=made)
        source.read(at(100), made)
        target.read(at(100), made)
        copied(source, target, at(100))
        if source.role(at(100)) is Role.SERVING:
            changed = record(made.epoch, session="s2")
            assert source.beat(at(100), changed, has=(record(1), changed), epoch=made.epoch) == ((), ())
    assert source.role(at(100)) is Role.SEALED
    assert source.beat(at(100), record(3)) == ((0,), ())
    assert [move.is_ready for move in target.core.incoming()] == [True]
    assert target.core.pulls(at(100)) == []
    made = table(Advance(0, Stage.COMMIT), since=made)
    source.read(at(200), made)
    target.read(at(200), made)
    assert (source.role(at(200)), target.role(at(200))) == (Role.NONE, Role.SERVING)
    assert target.says(at(200)) == Answer((record(1), record(4, session="s2")))
    assert target.core.digest(0) == digest_of([record(1), record(4, session="s2")])
    # Nobody beats: first the former owner's promise runs out, then a lease's time here.
    assert target.says(at(200 + 2_600)) == UNKNOWN
    assert target.says(at(200 + GRACE_MS)) == OFFLINE
    source.read(at(300), table(Advance(0, Stage.CLEANUP), since=made))
    assert source.core._held == {}


def test_an_access_node_that_speaks_at_the_new_owner_is_believed():
    """By a beat of a table in which it routes there, not by an older one."""
    source, target = serving(record(1)), Node(B, GATE)
    made = TABLE
    for change in EARLY:
        made = table(change, since=made)
        source.read(at(0), made)
        target.read(at(0), made)
        copied(source, target, at(0))
    made = table(Advance(0, Stage.COMMIT), since=made)
    target.read(at(0), made)
    target.beat(at(2_600), has=(record(1),), epoch=1)
    assert target.says(at(2_700)) == UNKNOWN
    target.beat(at(2_700), has=(record(1),), epoch=made.epoch)
    assert target.says(at(2_700)) == Answer((record(1),))


def test_after_an_abort_only_new_beats_vouch():
    """I4: what was refused while sealed may have been a close."""
    node = serving(record(1))
    made = table(*EARLY)
    node.read(at(0), table(*EARLY[:3]))
    node.read(at(0), made)
    assert node.beat(at(2_600), record(2, session="s1", is_open=False), epoch=made.epoch) == ((0,), ())
    aborted = table(End(0), since=made)
    node.read(at(2_800), aborted)
    assert node.role(at(2_800)) is Role.SERVING
    assert node.says(at(2_800)) == UNKNOWN
    node.beat(at(2_900), has=(record(1),), epoch=aborted.epoch)
    assert node.says(at(2_900)) == Answer((record(1),))


def test_an_abort_that_was_skipped_over_unseals_as_well():
    """The next move of the partition has another name."""
    node = serving(record(1))
    node.read(at(0), table(*EARLY))
    assert node.role(at(0)) is Role.SEALED
    node.read(at(0), table(End(0), Begin(0, B), since=table(*EARLY)))
    assert node.role(at(0)) is Role.SERVING
    assert node.beat(at(1), record(2), has=(record(1), record(2))) == ((), ())


def test_an_abort_before_the_seal_costs_nothing():
    """Beats of before it still vouch."""
    node = serving(record(1))
    node.read(at(0), table(*EARLY[:2]))
    node.read(at(0), table(End(0), since=table(*EARLY[:2])))
    assert node.says(at(1)) == Answer((record(1),))


def test_a_target_drops_what_it_staged_when_the_move_is_over_or_another():
    """I2: staging is that of one move."""
    target = Node(B, GATE)
    made = table(*EARLY[:2])
    target.read(at(0), made)
    first = target.core.incoming()
    again = table(End(0), Begin(0, B), Advance(0, Stage.COPY), since=made)
    target.read(at(0), again)
    assert [move.move_id for move in target.core.incoming()] == [5]
    assert target.core.incoming() != first
    target.read(at(0), table(End(0), since=again))
    assert target.core.incoming() == []


def test_a_target_that_is_not_ready_at_the_commit_recovers():
    """A next life of it, whose staging is gone; or one that skipped the copy."""
    target = Node(B, GATE, life=2)
    target.read(at(0), table(*EARLY[:2]))
    target.read(at(0), table(*EARLY, Advance(0, Stage.COMMIT)))
    assert (target.role(at(0)), target.says(at(0))) == (Role.RECOVERING, UNKNOWN)


def test_a_source_streams_once_its_own_store_is_complete():
    """Its next life recovers first, and a sealed one never does."""
    node = Node(A, GATE, life=2)
    node.read(at(0), table(*EARLY[:2]))
    target = Node(B, GATE)
    target.read(at(0), table(*EARLY[:2]))
    ((_, pull),) = target.core.pulls(at(0))
    assert node.core.pulled(at(0), pull) is None
    node.beat(at(1), record(1), floor=1)
    node.core.step(at(2))
    assert node.core.pulled(at(2), pull) is not None
    sealed = Node(A, GATE, life=3)
    sealed.read(at(0), table(*EARLY))
    sealed.core.step(at(2 * GRACE_MS))
    assert (sealed.role(at(0)), sealed.core.pulled(at(0), pull)) == (Role.SEALED, None)
    assert sealed.core.incomplete(at(0)) == [0]


def test_questions_and_answers_about_what_does_not_move_are_ignored():
    """Late ones."""
    source, target = serving(record(1)), Node(B, GATE)
    source.read(at(0), table(*EARLY[:2]))
    target.read(at(0), table(*EARLY[:2]))
    ((_, pull),) = target.core.pulls(at(0))
    chunk = source.core.pulled(at(0), pull)
    assert chunk is not None
    target.read(at(0), table(*EARLY[:2], End(0)))
    target.core.received(at(0), chunk)
    source.read(at(0), table(*EARLY[:2], End(0)))
    source.core.received(at(0), chunk)
    assert source.core.pulled(at(0), pull) is None
    assert target.core.pulled(at(0), pull) is None


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    node = serving()
    held = node.core._held[0]
    held.owned_since = None
    held.outgoing = Outgoing(0, Epoch(1), LIFE, held.records)
    with pytest.raises(AssertionError, match="I2"):
        node.core.check_invariants()
    assert node.core.digest(0) == Digest(0, 0)


def test_what_came_before_the_recovery_began_is_told_again():
    """The shell steps at each call; if it did not, the access node is asked once more and nothing is lost."""
    node = serving()
    assert node.core.adopt(at(1), table(Take(0, B), End(0), Take(0, A), End(0)))
    told = Told(0, (record(1),), digest_of([record(1)]), Floor(GATE, LIFE, 1))
    heard = node.core.heard(at(1), GATE, LIFE, epoch=Epoch(1), until=at(2_000), told=[told])
    assert heard.mismatched == (0,)
    assert node.beat(at(2), record(1), floor=1) == ((), ())
    assert node.role(at(2)) is Role.SERVING


def test_beats_of_before_a_partition_came_are_no_part_of_its_seal():
    """They say nothing about it, so the next owner gets nothing to show for them."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    node.read(at(0), table(Take(0, B), End(0), Take(0, A), End(0)))
    node.beat(at(0), record(1), floor=1, epoch=1)
    now = table(Take(0, B), End(0), Take(0, A), End(0), *EARLY)
    node.read(at(0), table(Take(0, B), End(0), Take(0, A), End(0), *EARLY[:2]))
    node.read(at(0), now)
    assert node.role(at(0)) is Role.SEALED
    assert node.core._held[0].vouches == {}
