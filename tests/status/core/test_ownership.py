"""What one status node may say: beats, moves, and what is forgotten."""

from __future__ import annotations

import pytest

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation
from status.api import REFUSED, UNKNOWN_SHOWN, Beat, Stamp
from status.core.handoff import Incoming, Outgoing
from status.core.holding import Role
from status.core.ownership import NEWS_MS, ROUND_MS, Heard, Ownership, Turn
from status.core.partitions import Advance, Begin, End, PartitionTable, Stage, Take
from status.core.records import TOMBSTONE_MS, Life, Merged, digest_of
from status.core.sweeping import EXPIRE_PARTITIONS, SWEEP_ITEMS
from tests.status.core.status_node import (
    AWAY_AND_BACK,
    EARLY,
    GATE,
    GRACE_MS,
    LIFE,
    OFFLINE,
    OTHER,
    SEEN,
    TABLE,
    VOUCH_MS,
    A,
    B,
    Node,
    at,
    changes,
    copied,
    entry,
    moved,
    serving,
    table,
)

# ---------------------------------------------------------------- tables


def test_older_tables_are_not_adopted():
    """A node never goes back."""
    node = Node(A)
    node.read(at(0), table(Begin(0, B)))
    assert not node.core.adopt(at(0), TABLE)
    assert not node.core.adopt(at(0), table(Begin(0, B)))


def test_a_partition_taken_without_a_seal_waits_for_the_barrier():
    """I1: it takes nothing before, and recovers after."""
    node = Node(B, GATE)
    taken = table(Take(0, B))
    node.read(at(0), taken)
    assert node.role(at(0)) is Role.FENCED
    assert node.beat(at(0), entry(1), floor=1, epoch=2) == Heard(refused=(0,))
    node.read(at(5_000), table(End(0), since=taken))
    assert (node.role(at(5_000)), node.says(at(5_000))) == (Role.RECOVERING, UNKNOWN_SHOWN)
    assert node.beat(at(5_001), entry(1), floor=1, epoch=3) == Heard()
    assert node.beat(at(5_001), epoch=3) == Heard()
    assert node.says(at(5_001)) == entry(1)


def test_which_partitions_are_served_is_told_once_and_in_order():
    """Also one that went away and came back between two tables: it is another turn, at another owner epoch."""
    node = serving()
    assert node.core.take_turns() == [Turn(0, Epoch(1), is_served=True)]
    node.read(at(1), table(*AWAY_AND_BACK))
    node.step(at(1 + GRACE_MS))
    node.step(at(1 + GRACE_MS + ROUND_MS))
    turns = node.core.take_turns()
    assert [(turn.partition, turn.is_served) for turn in turns] == [(0, False), (0, True)]
    node.read(at(9_000), table(*AWAY_AND_BACK, Take(0, B)))
    assert [turn.is_served for turn in node.core.take_turns()] == [False]
    assert node.core.take_turns() == []


# ---------------------------------------------------------------- beats


def test_a_beat_vouches_for_a_leases_time_after_the_answer_that_it_echoes():
    """Less the drift of clocks; however long it was on its way itself."""
    node = serving(entry(1))
    node.beat(at(1_000), echo=at(400))
    node.beat(at(1_100), echo=at(200))
    assert node.core.left_ms(at(1_100), GATE, LIFE, Epoch(1)) == VOUCH_MS - 700
    assert node.says(at(400 + VOUCH_MS - 1)) == entry(1)
    assert node.says(at(400 + VOUCH_MS)) is OFFLINE
    assert node.core.left_ms(at(9_000), GATE, LIFE, Epoch(1)) == 0


def test_who_vouches_for_nothing_is_silent():
    """Until it vouches again."""
    node = serving(entry(1))
    node.beat(at(1_000), echo=at(400))
    assert node.core.silent(at(400 + VOUCH_MS - 1)) == frozenset()
    assert node.core.silent(at(400 + VOUCH_MS)) == {GATE}
    node.beat(at(400 + VOUCH_MS), echo=at(1_000))
    assert node.core.silent(at(400 + VOUCH_MS)) == frozenset()


def test_a_beat_that_echoes_another_life_or_knowledge_does_not_vouch():
    """What was told before, this node does not know."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    for echo in (Stamp(), Stamp(Incarnation(9), at(0), at(0)), Stamp(node.life, at(0), at(-1))):
        node.core.heard(at(0), GATE, Beat(LIFE, Epoch(1), echo))
        assert node.core.left_ms(at(0), GATE, LIFE, Epoch(1)) == 0
    assert node.core.stamp(at(5), GATE) == Stamp(node.life, at(5), at(0))
    assert node.core.stamp(at(5), OTHER) == Stamp(node.life, at(5), Instant(0))
    node.core.heard(at(5), GATE, Beat(LIFE, Epoch(1), node.core.stamp(at(5), GATE)))
    assert node.core.left_ms(at(5), GATE, LIFE, Epoch(1)) == VOUCH_MS


def test_a_lease_is_promised_to_who_has_this_table_only():
    """Another may rely on partitions that are not here."""
    node = serving()
    left = [
        node.core.left_ms(at(0), GATE, LIFE, Epoch(2)),
        node.core.left_ms(at(0), GATE, Incarnation(2), Epoch(1)),
        node.core.left_ms(at(0), OTHER, LIFE, Epoch(1)),
        node.core.left_ms(at(0), GATE, LIFE, Epoch(1)),
    ]
    assert left == [0, 0, 0, VOUCH_MS]


def test_a_beat_by_a_newer_table_is_not_heard_until_that_is_read():
    """It may have routed elsewhere what this node still owns in its own."""
    node = serving()
    assert node.beat(at(1), entry(1), epoch=2) == Heard(is_heard=False)
    node.read(at(2), table(Begin(1, A)))
    assert node.beat(at(3), entry(1), epoch=2) == Heard()


def test_a_beat_by_an_older_table_does_not_shorten_what_is_vouched():
    """It came late."""
    node = serving(entry(1))
    node.read(at(0), table(Begin(1, A)))
    node.beat(at(1), epoch=2)
    node.beat(at(2), epoch=1, echo=at(-2_000))
    assert node.core.left_ms(at(2), GATE, LIFE, Epoch(2)) == VOUCH_MS - 1


def test_a_partition_of_somebody_else_is_refused():
    """The access node keeps its news for the owner; an audit of it says nothing."""
    node = Node(B, GATE)
    node.read(at(0), TABLE)
    assert node.beat(at(0), entry(1), has=()) == Heard(refused=(0,))


def test_a_different_digest_is_told():
    """The access node sends all that it has of the partition."""
    node = serving(entry(1))
    assert node.beat(at(1), has=(entry(1), entry(2))) == Heard(mismatched=(0,))
    assert node.beat(at(2), entry(1), entry(2), floor=12, has=(entry(1), entry(2))) == Heard()
    node.beat(at(3), entry(1, seq=13, is_open=False), entry(3, seq=14, is_open=False), has=(entry(2),))
    assert node.says(at(3)) == entry(2)
    assert node.beat(at(4), entry(5)).refused == ()
    assert node.says(at(4)) is node.says(at(4), "v") is OFFLINE or node.says(at(4)) == entry(2)


def test_a_newer_life_of_an_access_node_ends_the_sessions_of_the_older():
    """Its sockets are gone; and the older life is heard no more."""
    node = serving(entry(1))
    assert node.beat(at(1), entry(2), has=(entry(2),), life=2) == Heard()
    assert node.says(at(1)) is UNKNOWN_SHOWN  # nothing vouches yet
    node.beat(at(1), life=2)
    assert node.says(at(1)) == entry(2)
    assert node.beat(at(2), entry(9)) == Heard(is_heard=False, is_fenced=True)
    node.step(at(ROUND_MS))
    assert [change[2:] for change in changes(node)] == [(entry(2), Merged.OPENED), (entry(1), Merged.CLOSED)]
    assert node.core.statistics()["sweeping"] == 0


def test_changes_are_told_in_their_order():
    """With the open entry that each is about, whatever closed it; what nobody sees is none."""
    node = serving(entry(1))
    node.beat(at(1), entry(2), entry(2, seq=3), entry(2, seq=4, is_open=False), entry(7, seq=8, is_open=False))
    node.beat(at(2), entry(9), floor=9)
    assert changes(node) == [
        (0, "u", entry(2), Merged.OPENED),
        (0, "u", entry(2, seq=3), Merged.CHANGED),
        (0, "u", entry(2, seq=3), Merged.CLOSED),
        (0, "u", entry(9), Merged.OPENED),
        (0, "u", entry(1), Merged.CLOSED),
    ]
    assert node.core.take_changes() == []


def test_a_census_counts_by_partition_and_by_life():
    """To compare with what the access nodes have."""
    node = serving(entry(1), entry(2))
    node.beat(at(1), entry(1), node=OTHER, user="v")
    counts, digests = node.core.census()
    assert counts.get(0) == 3
    assert digests == {Life(GATE, LIFE): digest_of([entry(1), entry(2)]), Life(OTHER, LIFE): digest_of([entry(1)])}


# ---------------------------------------------------------------- moves


@pytest.mark.spec("PR-04")
def test_a_move_keeps_the_user_online_all_the_way():
    """Source, seal, target; nothing to recover, no beat needed in between."""
    source, target = serving(entry(1)), Node(B, GATE)
    target.read(at(0), TABLE)
    made = TABLE
    for change in EARLY:
        made = table(change, since=made)
        source.read(at(100), made)
        target.read(at(100), made)
        copied(source, target, at(100))
        if source.role(at(100)) is Role.SERVING:
            assert source.beat(at(100), entry(2, seq=made.epoch), epoch=made.epoch) == Heard()
    assert source.role(at(100)) is Role.ANSWERING
    assert (source.core.has_sealed([1, 0]), source.core.has_sealed([1])) == (True, False)
    assert source.beat(at(100), entry(3)) == Heard(refused=(0,))
    assert source.says(at(100)) == (entry(1), entry(2, seq=4))
    assert [move.is_ready for move in target.core.incoming()] == [True]
    assert target.core.pulls(at(100)) == []
    assert (target.says(at(100)), target.core.statistics()["staging"]) == (REFUSED, 1)
    made = table(Advance(0, Stage.COMMIT), since=made)
    source.read(at(200), made)
    target.read(at(200), made)
    target.core.ceased(at(200), target.core.shared())
    assert (source.role(at(200)), target.role(at(200))) == (Role.NONE, Role.SERVING)
    assert target.says(at(200)) == (entry(1), entry(2, seq=4))
    assert target.core.census()[0][0] == 2
    # Nobody beats: first the former owner's promise runs out, then a lease's time here.
    for late in range(2_600, GRACE_MS, ROUND_MS):
        target.step(at(200 + late))
        assert target.says(at(200 + late)) is UNKNOWN_SHOWN
    assert target.says(at(200 + GRACE_MS)) is OFFLINE
    source.read(at(300), table(Advance(0, Stage.CLEANUP), since=made))
    assert 0 not in source.core._held


def test_an_access_node_that_speaks_at_the_new_owner_is_believed():
    """By a beat of a table in which it routes there, not by an older one."""
    source, target = serving(entry(1)), Node(B, GATE)
    made = table(Advance(0, Stage.COMMIT), since=moved(source, target, at(0)))
    target.read(at(0), made)
    target.beat(at(2_600), epoch=1)
    target.beat(at(2_600), epoch=1)
    assert target.says(at(2_700)) is UNKNOWN_SHOWN
    target.beat(at(2_700), epoch=made.epoch)
    assert target.says(at(2_700)) == entry(1)


@pytest.mark.parametrize("was_heard", [False, True])
def test_who_does_not_reach_the_new_owner_is_not_swept_out_before_its_time(*, was_heard: bool):
    """I3: the last owner may have vouched, though this one gave the access node up, or never heard of it."""
    source, target = serving(entry(1)), Node(B, GATE)
    target.read(at(-9_000), TABLE)
    for _ in range(2 if was_heard else 0):
        target.beat(at(ROUND_MS - GRACE_MS - VOUCH_MS))
    made = moved(source, target, at(0), *EARLY[:3])
    target.step(at(ROUND_MS))
    assert target.core.statistics()["access_nodes"] == 0
    seal = table(EARLY[3], since=made)
    source.beat(at(1_000), epoch=made.epoch)
    source.read(at(1_000), seal)
    target.read(at(1_000), seal)
    copied(source, target, at(1_000))
    target.read(at(1_000), table(Advance(0, Stage.COMMIT), since=seal))
    target.core.ceased(at(1_000), target.core.shared())
    for late in range(0, GRACE_MS, ROUND_MS):
        target.step(at(1_000 + late))
        assert target.says(at(1_000 + late)) in {entry(1), UNKNOWN_SHOWN}
    for late in range(10):
        target.step(at(1_000 + GRACE_MS + late * ROUND_MS))
    assert target.says(at(10_000)) == SEEN
    assert changes(target) == [(0, "u", entry(1), Merged.CLOSED)]


def test_after_an_abort_only_new_beats_vouch():
    """I4: what was refused while sealed may have been a close."""
    node = serving(entry(1))
    made = table(*EARLY)
    node.read(at(0), table(*EARLY[:3]))
    node.read(at(0), made)
    assert node.beat(at(2_600), entry(1, seq=2, is_open=False), epoch=made.epoch) == Heard(refused=(0,))
    aborted = table(End(0), since=made)
    node.read(at(2_650), aborted)
    assert (node.role(at(2_650)), node.says(at(2_650))) == (Role.SERVING, entry(1))
    assert node.says(at(2_700)) is UNKNOWN_SHOWN
    node.beat(at(2_900), epoch=aborted.epoch)
    assert node.says(at(2_900)) == entry(1)


def test_an_abort_that_was_skipped_over_unseals_as_well():
    """The next move of the partition has another name."""
    node = serving(entry(1))
    node.read(at(0), table(*EARLY))
    assert node.role(at(0)) is Role.ANSWERING
    newer = table(End(0), Begin(0, B), since=table(*EARLY))
    node.read(at(0), newer)
    assert node.role(at(0)) is Role.SERVING
    assert node.beat(at(1), entry(2), epoch=newer.epoch) == Heard()
    assert node.beat(at(1), entry(2)) == Heard(refused=(0,))


def test_an_abort_before_the_seal_costs_nothing():
    """Beats of before it still vouch."""
    node = serving(entry(1))
    node.read(at(0), table(*EARLY[:2]))
    node.read(at(0), table(*EARLY[:2], End(0)))
    assert node.says(at(1)) == entry(1)


def test_a_target_drops_what_it_staged_when_the_move_is_over_or_another():
    """I2: staging is that of one move."""
    target = Node(B, GATE)
    made = table(*EARLY[:2])
    target.read(at(0), made)
    again = table(End(0), Begin(0, B), Advance(0, Stage.COPY), since=made)
    target.read(at(0), again)
    assert [move.move_id for move in target.core.incoming()] == [5]
    target.read(at(0), table(End(0), since=again))
    assert target.core.incoming() == []


def test_a_target_that_is_not_ready_at_the_commit_recovers():
    """A next life of it, whose staging is gone; or one that skipped the copy."""
    committed = table(*EARLY, Advance(0, Stage.COMMIT))
    for before in (table(*EARLY[:2]), TABLE):
        target = Node(B, GATE, life=2)
        target.read(at(0), before)
        target.read(at(0), committed)
        assert (target.role(at(0)), target.says(at(0))) == (Role.RECOVERING, UNKNOWN_SHOWN)


def test_a_ready_staging_of_another_move_is_not_served():
    """I2: what changed at the owner since is not in it."""
    source, target = serving(entry(1)), Node(B, GATE)
    made = moved(source, target, at(0))
    assert target.core.incoming()[0].is_ready
    target.read(at(0), table(End(0), *EARLY, Advance(0, Stage.COMMIT), since=made))
    assert target.role(at(0)) is Role.RECOVERING


def test_a_source_streams_once_its_own_store_is_complete():
    """Its next life recovers first, and a sealed one never does."""
    node, target = Node(A, GATE, life=2), Node(B, GATE)
    node.read(at(0), table(*EARLY[:2]))
    target.read(at(0), table(*EARLY[:2]))
    ((_, pull),) = target.core.pulls(at(0))
    assert node.core.pulled(at(0), pull) is None
    node.beat(at(1), entry(1), floor=1, epoch=3)
    assert node.core.pulled(at(2), pull) is not None
    sealed = Node(A, GATE, life=3)
    sealed.read(at(0), table(*EARLY))
    sealed.step(at(2 * GRACE_MS))
    assert (sealed.role(at(0)), sealed.core.pulled(at(0), pull)) == (Role.SEALED, None)
    assert sealed.core.incomplete(at(0)) == [0]


def test_a_source_whose_wait_is_over_streams_at_the_next_stage():
    """Also before a round came by."""
    node, target = Node(A, GATE), Node(B, GATE)
    node.read(at(0), TABLE)
    assert node.core.adopt(at(GRACE_MS), table(*EARLY[:2]))
    target.read(at(0), table(*EARLY[:2]))
    ((_, pull),) = target.core.pulls(at(0))
    assert node.core.pulled(at(GRACE_MS), pull) is not None


def test_questions_and_answers_about_what_does_not_move_are_ignored():
    """Late ones."""
    source, target = serving(entry(1)), Node(B, GATE)
    source.read(at(0), table(*EARLY[:2]))
    target.read(at(0), table(*EARLY[:2]))
    ((_, pull),) = target.core.pulls(at(0))
    chunk = source.core.pulled(at(0), pull)
    assert chunk is not None
    for node in (target, source):
        node.read(at(0), table(*EARLY[:2], End(0)))
        node.core.received(at(0), chunk)
        assert node.core.pulled(at(0), pull) is None


def test_beats_of_before_a_partition_came_are_no_part_of_its_seal():
    """They say nothing about it, so the next owner gets nothing to show for them."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    node.read(at(0), table(*AWAY_AND_BACK))
    node.beat(at(GRACE_MS - 1))
    node.read(at(GRACE_MS), table(*AWAY_AND_BACK, *EARLY[:2]))
    node.read(at(GRACE_MS), table(*AWAY_AND_BACK, *EARLY))
    assert node.role(at(0)) is Role.SEALED
    assert node.core._held[0].vouches == {}


def test_a_full_list_during_a_move_is_copied():
    """With what it closed, and its floor."""
    source, target = serving(entry(1)), Node(B, GATE)
    made = moved(source, target, at(0), *EARLY[:2])
    source.beat(at(1), entry(2), floor=5, epoch=made.epoch)
    copied(source, target, at(NEWS_MS))
    (move,) = target.core.incoming()
    assert [one[2:] for _, one in move.records.entries()] == [entry(2)]
    assert not move.records.merge(at(1), "u", target.core.sources.prefix(Life(GATE, LIFE)) + entry(5))


def test_what_has_caught_up_is_asked_for_news_now_and_then_and_always_once_sealed():
    """Until then there is little to copy."""
    source, target = serving(entry(1)), Node(B, GATE)
    moved(source, target, at(0), *EARLY[:3])
    assert target.core.pulls(at(NEWS_MS - 1)) == []
    assert target.core.pulls(at(NEWS_MS), B) == [], "of another source"
    assert len(target.core.pulls(at(NEWS_MS), A)) == 1
    assert target.core.pulls(at(NEWS_MS)) == []
    target.read(at(NEWS_MS), table(*EARLY))
    assert len(target.core.pulls(at(NEWS_MS))) == len(target.core.pulls(at(NEWS_MS))) == 1


def test_what_left_is_swept_out_and_nobody_is_told():
    """The new owner tells."""
    node = serving(entry(1))
    node.read(at(0), table(*EARLY, Advance(0, Stage.COMMIT)))
    node.step(at(VOUCH_MS + GRACE_MS))
    node.step(at(VOUCH_MS + GRACE_MS + ROUND_MS))
    assert node.core.statistics()["sweeping"] == 0
    assert node.core.take_changes() == []


def test_a_seal_carries_over_what_is_vouched_and_no_more():
    """Lives that fell silent are named as gone, and the time of their vouching is over."""
    source, target = serving(entry(1)), Node(B, GATE)
    source.beat(at(0), entry(1), floor=1, node=OTHER, user="v")
    source.beat(at(0), node=OTHER)
    moved(source, target, at(0), *EARLY[:3])
    source.beat(at(VOUCH_MS), epoch=4)
    late = at(VOUCH_MS + 10)
    source.read(late, table(*EARLY))
    ((_, pull),) = target.core.pulls(late)
    chunk = source.core.pulled(late, pull)
    assert chunk is not None
    assert [(vouch.node, vouch.left_ms) for vouch in chunk.vouches] == [(GATE, VOUCH_MS - 10)]
    assert chunk.gone == []
    ((_, pull),) = target.core.pulls(at(VOUCH_MS + 10 + NEWS_MS))
    chunk = source.core.pulled(at(VOUCH_MS + GRACE_MS), pull)
    assert chunk is not None
    assert chunk.gone == [Life(OTHER, LIFE)]


# ---------------------------------------------------------------- forgetting


def test_who_is_silent_for_long_is_swept_out():
    """Not while it may still be vouched for; the user is seen as of then, and a late beat begins anew."""
    node = serving(entry(1))
    end = VOUCH_MS + GRACE_MS
    node.step(at(end - 1))
    assert node.core.statistics()["access_nodes"] == 1
    node.step(at(end + ROUND_MS))
    assert node.core.statistics() == {
        "partitions": 1,
        "users": 1,
        "sessions": 0,
        "tombstones": 0,
        "staging": 0,
        "recovering": 0,
        "access_nodes": 0,
        "sweeping": 0,
        "in_doubt": 0,
    }
    assert node.says(at(end + ROUND_MS)) == SEEN
    assert changes(node) == [(0, "u", entry(1), Merged.CLOSED)]
    node.beat(at(9_000), echo=at(8_000))
    assert node.core.stamp(at(9_000), GATE).since == at(9_000)


def test_a_sweep_takes_so_many_a_round_and_stops_when_the_dead_come_back():
    """A node with a hundred thousand must not stop everybody else."""
    node = serving(entry(1))
    for number in range(SWEEP_ITEMS + 1):
        node.beat(at(1), entry(2 + number), user=f"v{number}")
    end = VOUCH_MS + GRACE_MS + 1
    node.core.adopt(at(1), table(Take(1, A), End(1)))
    node.step(at(end))
    assert node.core.statistics()["sweeping"] == 1
    assert not node.core.is_clean(at(end))
    node.beat(at(end + 1), epoch=3)
    assert (node.core.statistics()["sweeping"], node.core.is_clean(at(end + 1))) == (0, False)
    assert node.core.statistics()["sessions"] in {0, SWEEP_ITEMS + 2}


def test_a_partition_on_the_move_is_swept_when_it_arrived():
    """The stream would not say so; a partition that left is no concern."""
    source, target = serving(entry(1)), Node(B, GATE)
    made = moved(source, target, at(0), *EARLY[:3])
    end = VOUCH_MS + GRACE_MS
    source.step(at(end))
    assert (source.core.statistics()["sweeping"], source.core.statistics()["sessions"]) == (1, 1)
    copied(source, target, at(end))
    assert target.core.incoming()[0].is_caught_up
    source.read(at(end), table(Take(0, B), since=made))
    source.step(at(end + ROUND_MS))
    assert source.core.statistics()["sweeping"] == 0


def test_what_is_staged_during_a_sweep_keeps_its_life_known():
    """The number of the dead is given free when nothing has it any more, the staging of a later move too."""
    source, target = serving(entry(1)), Node(B, GATE)
    now = at(GRACE_MS)
    target.read(at(0), TABLE)
    start = table(Begin(1, A), Advance(1, Stage.COPY))
    target.read(now, start)
    target.beat(now, life=1)
    target.beat(now, life=2)
    assert target.core.statistics()["sweeping"] == 1
    made = table(*EARLY[:2], since=start)
    for node in (source, target):
        node.read(now, made)
    copied(source, target, now)
    (move,) = target.core.incoming()
    assert move.records.statistics()["entries"] == 1
    made = table(End(1), since=made)
    target.read(now, made)
    assert target.core.statistics()["sweeping"] == 1
    copied(source, target, now)
    assert move.is_caught_up
    target.read(now, table(End(0), since=made))
    assert target.core.statistics()["sweeping"] == 0


def test_old_tombstones_and_users_are_forgotten_bit_by_bit():
    """So many partitions a round; of a partition on the move nobody is forgotten."""
    count = EXPIRE_PARTITIONS + 1
    node = Node(A, GATE)
    node.core = Ownership(A, LIFE, (), is_leased=lambda *_: True, seen_ms=100)
    wide = PartitionTable(Epoch(1), (A, B), (1, 1), (0,) * count)
    node.read(at(0), wide)
    node.beat(at(0), entry(1), entry(1, seq=2, is_open=False), entry(3))
    node.beat(at(0), floor=4)
    assert node.says(at(0)) == SEEN
    for number in range(2 * count):
        node.core.step(at(TOMBSTONE_MS + number * ROUND_MS), Timestamp(SEEN + 100))
    assert (node.core.statistics()["tombstones"], node.says(at(0))) == (0, SEEN)
    node.core.adopt(at(TOMBSTONE_MS), table(*EARLY[:2], since=wide))
    for number in range(2 * count):
        node.core.step(at(2 * TOMBSTONE_MS + number * ROUND_MS), Timestamp(SEEN + 101))
    assert node.core.store(0) is not None
    assert node.core.statistics()["users"] == 1
    node.core.adopt(at(TOMBSTONE_MS), table(*EARLY[:2], End(0), since=wide))
    for number in range(2 * count):
        node.core.step(at(3 * TOMBSTONE_MS + number * ROUND_MS), Timestamp(SEEN + 101))
    assert node.core.statistics()["users"] == 0


def test_a_partition_that_left_is_not_looked_at():
    """By the round that was to forget in it."""
    node = Node(A)
    count = EXPIRE_PARTITIONS + 1
    wide = PartitionTable(Epoch(1), (A, B), (1, 1), (0,) * count)
    node.read(at(0), wide)
    node.core.adopt(at(ROUND_MS), table(Take(count - 1, B), since=wide))
    node.step(at(ROUND_MS))
    assert node.core.statistics()["partitions"] == count - 1


# ---------------------------------------------------------------- clean partitions


def test_a_partition_is_clean_while_all_of_its_lives_vouch():
    """I5: served, complete, and by its beats; then a lookup is one look."""
    node = serving(entry(1), entry(2))
    assert node.core.is_clean(at(0))
    assert set(node.core._clean) == {0}
    assert node.says(at(0)) == (entry(1), entry(2))
    assert node.core.lookup(at(0), [0, 1], ["v", "w"]) == [None, REFUSED]
    assert not node.core.is_clean(at(VOUCH_MS))
    node.is_leased = False
    assert not node.core.is_clean(at(0))


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    node = serving()
    held = node.core._held[0]
    held.owned_since = None
    held.outgoing = Outgoing(0, Epoch(1), LIFE, held.records, node.core.sources)
    with pytest.raises(AssertionError, match="I2"):
        node.core.check_invariants()
    node = serving()
    node.core._held[0].incoming = Incoming(0, Epoch(1), LIFE, node.core.sources)
    with pytest.raises(AssertionError, match="I2"):
        node.core.check_invariants()
    node = serving()
    node.core._recovering.add(0)
    with pytest.raises(AssertionError, match="I5"):
        node.core.check_invariants()
    node = serving(entry(1))
    node.core._held[0].vouch_from = Epoch(9)
    with pytest.raises(AssertionError, match="I5"):
        node.core.check_invariants()
