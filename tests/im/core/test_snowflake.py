"""Snowflake ids: the layout, the clock's misbehaviour, and random clocks."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from im.core.snowflake import (
    AHEAD_MS_MAX,
    COUNTER_MAX,
    EPOCH_MS,
    STARTS,
    STEP_BACK_MS_MAX,
    TIME_MAX,
    WORKER_MAX,
    ClockWentBack,
    Snowflake,
)

NOON = EPOCH_MS + 43_200_000


def at(ms: int) -> Timestamp:
    return Timestamp(ms)


def parts(mid: int | ClockWentBack) -> tuple[int, int, int]:
    """Take an id apart: (wall-clock ms, worker, counter)."""
    assert isinstance(mid, int)
    return (mid >> 22) + EPOCH_MS, mid >> 12 & WORKER_MAX, mid & COUNTER_MAX


@pytest.mark.spec("ID-02")
def test_an_id_is_time_then_worker_then_counter():
    """So that ids sort by time, whoever gave them."""
    ids = Snowflake(5)
    assert [parts(ids.next(at(NOON))) for _ in range(2)] == [(NOON, 5, 0), (NOON, 5, 1)]
    assert parts(ids.next(at(NOON + 1))) == (NOON + 1, 5, 0)


def test_the_first_millisecond_of_our_time_has_ids_too():
    """The very first id of worker 0 is 0."""
    assert Snowflake(0).next(at(EPOCH_MS)) == 0


def test_ids_fit_a_signed_64_bit_integer_to_the_last():
    """The greatest id there can be has 63 bits."""
    ids = Snowflake(WORKER_MAX)
    last = [ids.next(at(EPOCH_MS + TIME_MAX)) for _ in range(COUNTER_MAX + 1)][-1]
    assert last == 2**63 - 1


@pytest.mark.spec("ID-02", "TW-01")
def test_two_workers_never_give_the_same_id():
    """I2, in the same millisecond."""
    one, other = Snowflake(1), Snowflake(2)
    given_ids = [ids.next(at(NOON)) for ids in (one, other) for _ in range(100)]
    assert len(set(given_ids)) == 200


@pytest.mark.parametrize("worker", [-1, WORKER_MAX + 1])
def test_a_worker_number_beyond_ten_bits_is_a_defect(worker: int):
    """It would collide with another worker's ids."""
    with pytest.raises(AssertionError):
        Snowflake(worker)


@pytest.mark.spec("ID-02")
def test_a_full_millisecond_borrows_the_next():
    """I1, and the time in the ids runs ahead of the clock by one."""
    ids = Snowflake(0)
    for _ in range(COUNTER_MAX + 1):
        last = ids.next(at(NOON))
    assert parts(last) == (NOON, 0, COUNTER_MAX)
    assert parts(ids.next(at(NOON))) == (NOON + 1, 0, 0)
    assert parts(ids.next(at(NOON + 1))) == (NOON + 1, 0, 1), "the clock caught up with what was borrowed"
    assert parts(ids.next(at(NOON + 2))) == (NOON + 2, 0, 0)


def test_borrowed_time_is_no_step_back_of_the_clock():
    """Numbering may be many milliseconds ahead of an honest clock."""
    ids = Snowflake(0)
    for _ in range(10 * (COUNTER_MAX + 1)):
        last = ids.next(at(NOON))
    assert parts(last) == (NOON + 9, 0, COUNTER_MAX)
    assert parts(ids.next(at(NOON + 1))) == (NOON + 10, 0, 0)


def test_what_is_borrowed_is_bounded():
    """I3, I4: when the clock stands still there are 4,096 ids for each millisecond up to the bound, then none."""
    ids = Snowflake(0)
    times = Counter(parts(ids.next(at(NOON)))[0] for _ in range((AHEAD_MS_MAX + 1) * (COUNTER_MAX + 1)))
    assert times == dict.fromkeys(range(NOON, NOON + AHEAD_MS_MAX + 1), COUNTER_MAX + 1)
    assert ids.next(at(NOON)) == ClockWentBack(AHEAD_MS_MAX)
    assert ids.next(at(NOON - 1)) == ClockWentBack(AHEAD_MS_MAX + 1)
    assert parts(ids.next(at(NOON + 1))) == (NOON + AHEAD_MS_MAX + 1, 0, 0), "the clock moved, so there is room"


def test_a_quiet_worker_gives_every_shard_its_share():
    """One id a millisecond: by its lowest bits alone every shard would be the same one."""
    ids = Snowflake(0, Random(1))
    counters = [parts(ids.next(at(NOON + ms)))[2] for ms in range(16_000)]
    assert max(counters) < STARTS
    for shards in (2, 3, 8, 64):
        shares = Counter(((NOON + ms - EPOCH_MS) << 22 | counter) % shards for ms, counter in enumerate(counters))
        assert len(shares) == shards
        assert max(shares.values()) < 1.3 * min(shares.values()) * (1 if shards < 64 else 1.6)


def test_a_random_start_is_for_a_new_millisecond_only():
    """Within one, and in a borrowed one, ids count on, so that none is wasted."""
    ids = Snowflake(0, Random(2))
    first = parts(ids.next(at(NOON)))[2]
    for counter in range(first + 1, COUNTER_MAX + 1):
        assert parts(ids.next(at(NOON))) == (NOON, 0, counter)
    assert parts(ids.next(at(NOON))) == (NOON + 1, 0, 0)


@pytest.mark.spec("MI-07")
def test_a_new_holder_numbers_after_the_old_one():
    """A term begins at a time that nobody used, however the new holder's clock stands."""
    ids = Snowflake(0, not_before_ms=at(NOON))
    assert ids.next(at(NOON - STEP_BACK_MS_MAX - 1)) == ClockWentBack(6)
    assert parts(ids.next(at(NOON - STEP_BACK_MS_MAX))) == (NOON, 0, 0)
    assert parts(ids.next(at(NOON))) == (NOON, 0, 1)


def test_nobody_starts_before_our_time():
    """Such ids would be negative."""
    with pytest.raises(AssertionError):
        Snowflake(0, not_before_ms=at(EPOCH_MS - 1))


@pytest.mark.spec("ID-02")
def test_a_small_step_back_goes_on_in_the_last_millisecond():
    """I1: up to five milliseconds nobody needs to notice."""
    ids = Snowflake(0)
    ids.next(at(NOON))
    assert parts(ids.next(at(NOON - STEP_BACK_MS_MAX))) == (NOON, 0, 1)


@pytest.mark.spec("ID-02")
def test_a_great_step_back_gives_no_id_until_the_clock_is_near_again():
    """By how much it went back is measured against the greatest time seen."""
    ids = Snowflake(0)
    ids.next(at(NOON))
    assert ids.next(at(NOON - STEP_BACK_MS_MAX - 1)) == ClockWentBack(6)
    assert ids.next(at(NOON - 60_000)) == ClockWentBack(60_000)
    assert parts(ids.next(at(NOON - 1))) == (NOON, 0, 1)


def test_a_clock_before_our_time_gives_no_id():
    """A machine that woke up in 1970 would give negative ids."""
    assert Snowflake(0).next(at(0)) == ClockWentBack(EPOCH_MS)


def test_a_clock_past_our_time_is_a_defect():
    """After September 2093 the layout has no room."""
    with pytest.raises(AssertionError, match="last id"):
        Snowflake(0).next(at(EPOCH_MS + TIME_MAX + 1))


@pytest.mark.spec("ID-02", "TW-01")
@given(
    steps_ms=st.lists(st.integers(-20, 20), max_size=50),
    burst=st.sampled_from([1, 3, COUNTER_MAX, COUNTER_MAX + 2]),
    worker=st.integers(0, WORKER_MAX),
    seed=st.integers(0, 9),
)
def test_ids_increase_under_any_clock(steps_ms: list[int], burst: int, worker: int, seed: int):
    """I1, I3: refused calls leave no trace, and ids are never behind the clock."""
    ids = Snowflake(worker, Random(seed) if seed else None)
    now, seen, last = NOON, EPOCH_MS, -1
    for step in steps_ms:
        now += step
        seen = max(seen, now)
        for _ in range(burst if step == 0 else 1):
            mid = ids.next(at(now))
            if seen - now > STEP_BACK_MS_MAX:
                assert mid == ClockWentBack(seen - now)
                continue
            assert isinstance(mid, int)
            assert mid > last
            assert seen <= parts(mid)[0] <= seen + AHEAD_MS_MAX
            assert parts(mid)[1] == worker
            last = mid
