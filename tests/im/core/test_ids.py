"""Message ids: what all kinds have in common, then version 7 against its RFC and a list that it must keep sorted."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import get_args
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from im.core.ids import MessageIdKind, MessageIds, Uuid4, Uuid7, message_ids
from im.core.snowflake import EPOCH_MS, STEP_BACK_MS_MAX, ClockWentBack

NOON = EPOCH_MS + 43_200_000
KINDS: tuple[MessageIdKind, ...] = get_args(MessageIdKind)
COUNTERS = 1 << 42


def at(ms: int) -> Timestamp:
    return Timestamp(ms)


class Fixed:
    """Entropy of which every bit is the same."""

    def __init__(self, bit: int) -> None:
        self._bit = bit

    def getrandbits(self, k: int, /) -> int:
        return ((1 << k) - 1) * self._bit


def source(kind: MessageIdKind, *, worker: int = 0) -> MessageIds:
    return message_ids(kind, worker=worker, entropy=Random(worker))


def parts(text: object) -> tuple[int, int, int]:
    """Take a version 7 UUID apart: (ms, counter, tail)."""
    assert isinstance(text, str)
    value = UUID(text).int
    return value >> 80, (value >> 64 & 0xFFF) << 30 | value >> 32 & 0x3FFF_FFFF, value & 0xFFFF_FFFF


# ---------------------------------------------------------------- every kind


@pytest.mark.spec("ID-06")
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_over_processes(kind: MessageIdKind):
    """Four processes, the same clock, a burst in one millisecond and a stretch of time."""
    sources = [source(kind, worker=worker) for worker in range(4)]
    ids = [ids.next(at(NOON + max(0, step - 500))) for step in range(1_000) for ids in sources]
    assert len(set(ids)) == 4_000


@pytest.mark.spec("ID-01", "ID-06")
@pytest.mark.parametrize(
    ("kind", "is_one"),
    [
        ("snowflake", lambda mid: isinstance(mid, int) and 0 <= mid < 2**63),
        ("uuid7", lambda mid: str(UUID(mid)) == mid and UUID(mid).version == 7),
        ("uuid4", lambda mid: str(UUID(mid)) == mid and UUID(mid).version == 4),
    ],
)
def test_each_kind_has_its_form(kind: MessageIdKind, is_one: Callable[[object], bool]):
    """An integer of 63 bits, or 36 characters of lower case with version and variant."""
    ids = source(kind)
    assert all(is_one(ids.next(at(NOON + ms))) for ms in range(100))


@pytest.mark.spec("MI-02")
@pytest.mark.parametrize("kind", ["snowflake", "uuid7"])
@given(steps_ms=st.lists(st.integers(-20, 20), max_size=50), seed=st.integers(0, 99))
def test_ids_that_sort_by_time_increase_under_any_clock(kind: MessageIdKind, steps_ms: list[int], seed: int):
    """I1: by their own order, which for text is that of its characters; and the clock rule is the same for both."""
    ids = message_ids(kind, worker=1, entropy=Random(seed))
    now, seen, given_ids = NOON, 0, []
    for step in steps_ms:
        now += step
        seen = max(seen, now)
        mid = ids.next(at(now))
        if seen - now > STEP_BACK_MS_MAX:
            assert mid == ClockWentBack(seen - now)
        else:
            given_ids.append(mid)
    assert given_ids == sorted(set(given_ids))


@pytest.mark.parametrize("kind", ["snowflake", "uuid7"])
def test_a_clock_before_our_time_gives_no_ids(kind: MessageIdKind):
    """A machine that woke up in 1970 would put its messages before all others."""
    assert source(kind).next(at(0)) == ClockWentBack(EPOCH_MS)


def test_a_snowflake_source_numbers_as_its_worker_and_in_its_term():
    """What the factory is given arrives."""
    ids = message_ids("snowflake", worker=77, entropy=Fixed(0), not_before_ms=at(NOON))
    assert ids.next(at(NOON)) == (NOON - EPOCH_MS) << 22 | 77 << 12
    assert ids.next(at(NOON - 6)) == ClockWentBack(6)


def test_a_random_id_does_not_mind_the_clock():
    """Version 4 has no time in it."""
    ids = Uuid4(Random(1))
    assert len({ids.next(at(NOON)), ids.next(at(0)), ids.next(at(-5))}) == 3


@pytest.mark.spec("ID-01")
@pytest.mark.parametrize("bit", [0, 1])
def test_version_4_takes_all_other_bits_from_its_source(bit: int):
    """122 of them."""
    expected = UUID(int=((1 << 128) - 1) * bit, version=4)
    assert Uuid4(Fixed(bit)).next(at(NOON)) == str(expected)


# ---------------------------------------------------------------- version 7


@pytest.mark.spec("ID-01")
@pytest.mark.parametrize(
    ("bit", "expected"),
    [
        # The time of the RFC's own example (appendix A.6), 2022-02-22T19:22:22Z, is before ours: two years later.
        (0, "018dd243-1130-7000-8000-000000000000"),
        (1, "018dd243-1130-77ff-bfff-ffffffffffff"),
    ],
)
def test_the_fields_stand_where_the_rfc_has_them(bit: int, expected: str):
    """48 bits of time, version, 12 bits, variant, 62 bits; the counter's first bit is 0, to have room."""
    assert Uuid7(Fixed(bit)).next(at(0x018DD2431130)) == expected
    assert UUID(expected).variant == RFC_4122


def test_ids_of_one_millisecond_count_on():
    """I1: by one, with a new tail each."""
    ids = Uuid7(Random(1))
    first, second = parts(ids.next(at(NOON))), parts(ids.next(at(NOON)))
    assert second[:2] == (NOON, first[1] + 1)
    assert second[2] != first[2]


def test_the_counter_starts_anew_with_each_millisecond():
    """At random: so that two processes do not meet."""
    ids = Uuid7(Random(1))
    starts = [parts(ids.next(at(NOON + ms)))[1] for ms in range(100)]
    assert len(set(starts)) == 100
    assert max(starts) < COUNTERS // 2


def test_a_small_step_back_goes_on_in_the_last_millisecond():
    """As snowflakes do."""
    ids = Uuid7(Random(1))
    first = parts(ids.next(at(NOON)))
    assert parts(ids.next(at(NOON - STEP_BACK_MS_MAX)))[:2] == (NOON, first[1] + 1)
    assert ids.next(at(NOON - STEP_BACK_MS_MAX - 1)) == ClockWentBack(6)
    assert parts(ids.next(at(NOON)))[:2] == (NOON, first[1] + 2)


@given(
    steps_ms=st.lists(st.integers(-8, 8), max_size=60),
    seed=st.integers(0, 99),
)
def test_the_time_is_the_greatest_that_the_clock_showed(steps_ms: list[int], seed: int):
    """I2."""
    ids = Uuid7(Random(seed))
    now = seen = NOON
    ids.next(at(now))
    for step in steps_ms:
        now += step
        seen = max(seen, now)
        mid = ids.next(at(now))
        assert mid == ClockWentBack(seen - now) if seen - now > STEP_BACK_MS_MAX else parts(mid)[0] == seen
