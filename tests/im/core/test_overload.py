"""Overload: examples, then random loads against a twin that keeps every observation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from base.clock import Instant
from im.core.overload import CALM, DROPPED_AT, Overload, OverloadSettings, Work

SETTINGS = OverloadSettings(waiting_max=1_000, group_max=100, wait_ms_max=1_000)


def observed(overload: Overload, now: int, *, waiting: int, running_ms: int = 0) -> Work | None:
    overload.observe(Instant(now), waiting=waiting, running_ms=running_ms)
    overload.check_invariants()
    return overload.dropped


def test_an_idle_service_does_everything():
    """And would take a refused message again soon."""
    overload = Overload(SETTINGS)
    assert observed(overload, 0, waiting=0) is None
    assert all(overload.does(work) for work in Work)
    assert (overload.pressure, overload.retry_after_ms) == (0, 500)


@pytest.mark.spec("AR-5")
@pytest.mark.parametrize(
    ("waiting", "dropped"),
    [
        (0, ""),
        (299, ""),
        (300, "TYPING"),
        (450, "TYPING PRESENCE"),
        (600, "TYPING PRESENCE RECEIPTS"),
        (750, "TYPING PRESENCE RECEIPTS PREVIEWS"),
        (949, "TYPING PRESENCE RECEIPTS PREVIEWS"),
        (950, "TYPING PRESENCE RECEIPTS PREVIEWS MESSAGES"),
        (5_000, "TYPING PRESENCE RECEIPTS PREVIEWS MESSAGES"),
    ],
)
def test_work_is_dropped_in_order_of_importance(waiting: int, dropped: str):
    """I1, AR-5: the table, by how full the queue is."""
    overload = Overload(SETTINGS)
    observed(overload, 0, waiting=waiting)
    assert " ".join(work.name for work in Work if not overload.does(work)) == dropped


def test_a_long_wait_is_pressure_though_the_queue_has_room():
    """Two groups of 300 ms each are before whoever comes now, who may wait 1,000."""
    overload = Overload(SETTINGS)
    overload.committed(Instant(0), 300)
    assert observed(overload, 0, waiting=200) == Work.RECEIPTS
    assert overload.pressure == 0.6
    assert observed(overload, 1, waiting=0) == Work.RECEIPTS
    assert overload.pressure == 0


def test_a_disk_that_stands_still_is_pressure_before_its_commit_ends():
    """Nothing waits long yet, but all of it will."""
    overload = Overload(SETTINGS)
    overload.committed(Instant(0), 2)
    assert observed(overload, 0, waiting=50, running_ms=1) is None
    assert observed(overload, 960, waiting=50, running_ms=960) == Work.MESSAGES


def test_one_slow_commit_among_many_weighs_little():
    """By the time that it stands for; one after a long silence stands for itself."""
    overload = Overload(SETTINGS)
    for at in range(0, 100, 10):
        overload.committed(Instant(at), 10)
    overload.committed(Instant(100), 500)
    observed(overload, 100, waiting=1)
    assert overload.pressure == pytest.approx(0.015)
    overload.committed(Instant(5_000), 400)
    observed(overload, 5_000, waiting=1)
    assert overload.pressure == pytest.approx(0.4)


def test_refused_messages_may_come_again_when_the_queue_is_committed():
    """Within bounds."""
    overload = Overload(replace(SETTINGS, retry_ms_min=100, retry_ms_max=3_000))
    overload.committed(Instant(0), 250)
    for waiting, retry_ms in ((0, 100), (1_000, 2_500), (900, 2_250), (10_000, 3_000)):
        observed(overload, 0, waiting=waiting)
        assert overload.retry_after_ms == retry_ms


def test_work_is_taken_up_one_kind_after_the_other():
    """I3: each after two seconds of calm, messages first."""
    overload = Overload(SETTINGS)
    observed(overload, 0, waiting=1_000)
    states = [(at, observed(overload, at, waiting=0)) for at in range(100, 11_000, 100)]
    changes = [
        state for before, state in zip([(0, Work.MESSAGES), *states], states, strict=False) if before[1] != state[1]
    ]
    assert changes == [
        (2_100, Work.PREVIEWS),
        (4_100, Work.RECEIPTS),
        (6_100, Work.PRESENCE),
        (8_100, Work.TYPING),
        (10_100, None),
    ]


def test_pressure_in_between_keeps_what_is_dropped_dropped():
    """Hysteresis: it neither rises to where it was dropped nor falls well below."""
    overload = Overload(SETTINGS)
    observed(overload, 0, waiting=600)
    for at in range(0, 60_000, 100):
        assert observed(overload, at, waiting=599 if at % 200 else 420) == Work.RECEIPTS


def test_a_moment_of_pressure_begins_the_calm_anew():
    """I3."""
    overload = Overload(SETTINGS)
    observed(overload, 0, waiting=300)
    assert [observed(overload, at, waiting=0) for at in (100, 2_099)] == [Work.TYPING] * 2
    assert observed(overload, 2_100, waiting=250) == Work.TYPING
    assert [observed(overload, at, waiting=0) for at in (2_200, 4_199, 4_200)] == [Work.TYPING, Work.TYPING, None]


def test_a_clock_that_goes_back_is_our_own_bug():
    """As are limits of nothing."""
    overload = Overload(SETTINGS)
    overload.committed(Instant(5), 1)
    with pytest.raises(AssertionError):
        overload.committed(Instant(4), 1)
    for wrong in ({"waiting_max": 0}, {"group_max": 0}, {"wait_ms_max": 0}, {"retry_ms_min": 0}, {"retry_ms_max": 1}):
        with pytest.raises(AssertionError):
            Overload(replace(SETTINGS, **wrong))


LOADS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 100, 500, 1_000, 3_000]),
        st.one_of(st.integers(0, 1_200), st.sampled_from([0, 100, 200])),
        st.sampled_from([0, 0, 0, 1, 50, 400]),
        st.sampled_from([None, None, 1, 30, 200]),
    ),
    max_size=60,
)


class Twin:
    """All observations since the last change; what is dropped follows from them by I2 and I3."""

    def __init__(self) -> None:
        self.commit_ms = 0.0
        self.committed_at: int | None = None
        self.dropped = 0
        self.observations: list[tuple[int, float]] = []

    def committed(self, now: int, took_ms: int) -> None:
        weight = 1.0
        if self.committed_at is not None:
            weight = min(weight, (now - self.committed_at) / SETTINGS.smoothing_ms)
        self.commit_ms += (took_ms - self.commit_ms) * weight
        self.committed_at = now

    def observe(self, now: int, waiting: int, running_ms: int) -> None:
        wait_ms = round(max(self.commit_ms, running_ms) * len(range(0, waiting, SETTINGS.group_max)))
        pressure = min(1.0, max(waiting / SETTINGS.waiting_max, wait_ms / SETTINGS.wait_ms_max))
        self.observations.append((now, pressure))
        reached = sum(at <= pressure for at in DROPPED_AT.values())
        if reached > self.dropped:
            self.dropped = reached
            self.observations = []
        elif self.dropped:
            calm_below = CALM * DROPPED_AT[Work(self.dropped)]
            calm = [at for at, _ in self.observations]
            for index, (_, seen) in enumerate(self.observations):
                if seen >= calm_below:
                    calm = [at for at, _ in self.observations[index + 1 :]]
            if calm and now - calm[0] >= SETTINGS.calm_ms:
                self.dropped -= 1
                self.observations = [(now, 0.0)]


@given(LOADS)
@settings(deadline=None, max_examples=100)
def test_what_is_dropped_follows_from_all_that_was_observed(loads: list[tuple[int, int, int, int | None]]):
    """I1 to I3, whatever the load does."""
    overload = Overload(SETTINGS)
    twin = Twin()
    now = 0
    for passed, waiting, running_ms, took_ms in loads:
        now += passed
        if took_ms is not None:
            overload.committed(Instant(now), took_ms)
            twin.committed(now, took_ms)
        observed(overload, now, waiting=waiting, running_ms=running_ms)
        twin.observe(now, waiting, running_ms)
        assert [work for work in Work if not overload.does(work)] == list(Work)[: twin.dropped]
        assert (overload.dropped or 0) == twin.dropped
