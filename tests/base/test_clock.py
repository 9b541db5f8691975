"""The clocks: the simulated one to the millisecond, the machine's for sanity."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Clock, Instant, SimClock, SystemClock

HOUR_MS = 3_600_000


def test_a_simulated_clock_stands_still_until_it_is_advanced():
    """Both its times, by the same amount."""
    clock = SimClock(start_ms=500, epoch_ms=1_000_000)
    assert (clock.monotonic(), clock.realtime()) == (500, 1_000_000)
    clock.advance(250)
    assert (clock.monotonic(), clock.realtime()) == (750, 1_000_250)


@pytest.mark.parametrize(("drift_ppm", "shown_ms"), [(100, 3_600_360), (-100, 3_599_640)])
def test_a_drifting_clock_runs_fast_or_slow(drift_ppm: int, shown_ms: int):
    """A hundred parts per million are a third of a second in an hour."""
    clock = SimClock(start_ms=0, epoch_ms=0, drift_ppm=drift_ppm)
    clock.advance(HOUR_MS)
    assert clock.monotonic() == shown_ms
    assert clock.realtime() == shown_ms


@given(drift_ppm=st.integers(-999_999, 999_999), steps_ms=st.lists(st.integers(0, 1_000)))
def test_a_simulated_clock_never_goes_back(drift_ppm: int, steps_ms: list[int]):
    """However it drifts and however finely it is advanced."""
    clock = SimClock(drift_ppm=drift_ppm)
    seen = [clock.monotonic()]
    for ms in steps_ms:
        clock.advance(ms)
        seen.append(clock.monotonic())
    assert seen == sorted(seen)


def test_a_clock_can_not_be_advanced_backwards():
    """That would be our own bug."""
    with pytest.raises(AssertionError):
        SimClock().advance(-1)


@pytest.mark.parametrize("ms", [HOUR_MS, -HOUR_MS])
def test_a_jump_moves_the_wall_clock_alone(ms: int):
    """An operator or NTP sets the time; leases do not notice."""
    clock = SimClock(start_ms=0, epoch_ms=10 * HOUR_MS)
    clock.jump(ms)
    assert (clock.monotonic(), clock.realtime()) == (0, 10 * HOUR_MS + ms)


def test_the_simulated_stopwatch_counts_seconds():
    """Of the monotonic clock."""
    clock = SimClock(start_ms=0)
    clock.advance(1_500)
    assert clock.stopwatch() == 1.5


async def test_sleepers_wake_when_their_instant_has_come():
    """Each at its own, and not before."""
    clock = SimClock(start_ms=0)
    woken: list[str] = []

    async def sleeper(name: str, until: int) -> None:
        await clock.sleep_until(Instant(until))
        woken.append(name)

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeper("late", 200))
        tasks.create_task(sleeper("early", 100))
        await settle()
        clock.advance(99)
        await settle()
        assert woken == []
        clock.advance(1)
        await settle()
        assert woken == ["early"]
        clock.advance(1_000)
    assert woken == ["early", "late"]


async def test_sleeping_until_the_past_returns_at_once():
    """Nobody has to advance the clock for it."""
    clock = SimClock(start_ms=100)
    await clock.sleep_until(Instant(100))
    assert clock.monotonic() == 100


async def test_the_machines_clocks_run_and_sleep():
    """Milliseconds, forward, and a sleep that never ends early."""
    clock: Clock = SystemClock()
    began, began_s = clock.monotonic(), clock.stopwatch()
    await clock.sleep_until(Instant(began + 3))
    assert clock.monotonic() >= began + 3
    assert clock.stopwatch() - began_s >= 0.001
    await clock.sleep_until(began)


def test_the_machines_wall_clock_is_in_milliseconds():
    """Between 2020 and 2100, which no other unit is."""
    assert 1_577_836_800_000 < SystemClock().realtime() < 4_102_444_800_000
