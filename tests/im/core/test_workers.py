"""Worker numbers: which are free, what a term covers, and a random world in which no id may come twice."""

from __future__ import annotations

from random import Random

import pytest

from base.clock import Timestamp
from im.core.snowflake import AHEAD_MS_MAX, EPOCH_MS, WORKER_MAX, Snowflake
from im.core.workers import TERM_MS, Mark, WorkerTerm, free_workers, must_wait

NOON = EPOCH_MS + 43_200_000


def at(ms: int) -> Timestamp:
    return Timestamp(ms)


def mark(through_ms: int) -> Mark:
    return Mark("holder", "im-1", through_ms)


def test_a_number_is_free_when_its_mark_is_past():
    """The lowest first; the millisecond that the mark names still belongs to it."""
    marks = {0: mark(NOON + 1), 1: mark(NOON), 2: mark(NOON - 1), 4: mark(NOON + 1)}
    assert free_workers(marks, at(NOON))[:3] == [2, 3, 5]


def test_all_numbers_may_be_held():
    """1,024 of them."""
    assert free_workers({}, at(NOON)) == list(range(WORKER_MAX + 1))
    assert not free_workers(dict.fromkeys(range(WORKER_MAX + 1), mark(NOON)), at(NOON))


def test_in_a_registry_that_lost_marks_a_number_waits_for_those_of_the_others():
    """Or until all times are past that they can have had when this process started."""
    marks = {3: Mark("one", "im-1", NOON), 0: Mark("two", "im-3", NOON)}
    last = TERM_MS + AHEAD_MS_MAX - 1
    for others, is_sure in (([], True), (["im-1"], True), (["im-1", "im-3"], True), (["im-1", "im-2"], False)):
        assert must_wait(marks, others, waited_ms=0) is must_wait(marks, others, waited_ms=last) is not is_sure
        assert not must_wait(marks, others, waited_ms=last + 1)


def test_a_term_begins_after_the_mark_that_it_replaces():
    """I1; a number that was never used has all of our time."""
    assert WorkerTerm(0, mark(NOON - 7), at(NOON)).not_before_ms == NOON - 6
    assert WorkerTerm(0, None, at(NOON)).not_before_ms == EPOCH_MS
    assert WorkerTerm(0, mark(5), at(NOON)).not_before_ms == EPOCH_MS, "a mark of 1970"


def test_a_mark_that_is_not_past_is_not_replaced():
    """Its time is somebody else's."""
    with pytest.raises(AssertionError):
        WorkerTerm(0, mark(NOON), at(NOON))


def test_a_term_covers_what_ids_may_run_ahead_of():
    """I2: it ends earlier by what a numbering may borrow."""
    term = WorkerTerm(0, None, at(NOON))
    end = NOON + TERM_MS - AHEAD_MS_MAX
    assert term.through_ms == NOON + TERM_MS
    assert term.covers(at(end))
    assert not term.covers(at(end + 1))
    term.extend(term.next_through(at(end)))
    assert term.through_ms == end + TERM_MS
    assert term.covers(at(end + 1))


def test_a_mark_is_never_moved_back():
    """When the clock went back, or a late answer comes: those times may have been used."""
    term = WorkerTerm(0, None, at(NOON))
    assert term.next_through(at(NOON - 10_000)) == NOON + TERM_MS
    term.extend(NOON)
    assert term.through_ms == NOON + TERM_MS


def test_a_term_that_ends_in_order_gives_back_what_it_did_not_use():
    """By the greatest time that it was asked for, and what may have been borrowed then."""
    term = WorkerTerm(0, mark(NOON - 50), at(NOON))
    assert term.used_through() == NOON - 49 + AHEAD_MS_MAX
    term.covers(at(NOON + 200))
    term.covers(at(NOON + 100))
    term.covers(at(NOON + TERM_MS))
    assert term.used_through() == NOON + 200 + AHEAD_MS_MAX


def test_a_machine_from_before_our_time_gets_a_term_and_no_ids():
    """Its clock is wrong; what it may number begins when the clock is right."""
    term = WorkerTerm(0, None, at(0))
    ids = Snowflake(0, not_before_ms=term.not_before_ms)
    assert term.covers(at(0))
    assert not isinstance(ids.next(at(0)), int)
    assert term.used_through() == EPOCH_MS + AHEAD_MS_MAX


class World:
    """One worker number, its mark, and two processes with clocks of their own that both want it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)
        self._mark: Mark | None = None
        self._now = [NOON, NOON]
        self._terms: dict[int, tuple[WorkerTerm, Snowflake]] = {}
        self._held_by = -1
        self._begun: dict[WorkerTerm, int] = {}
        """What the mark said that the term replaced."""
        self._last: dict[WorkerTerm, int] = {}
        """The greatest time in an id of the term."""
        self.numbered = 0

    def step(self) -> None:
        random = self._random
        process = random.randrange(2)
        what = random.choice(["pass", "jump", "end", "take", "take", "renew", "give back", "number", "number"])
        now = at(self._now[process])
        held = self._terms.get(process)
        if what == "pass":
            passed = random.choice([1, 40, 400, TERM_MS // 2])
            self._now = [ms + passed for ms in self._now]
        elif what == "jump":
            self._now[process] += random.choice([-2 * TERM_MS, -40, -4, -1, 1, 40, TERM_MS])
        elif what == "end" and self._mark is not None:
            # Where it is most likely to go wrong: some process' clock shows about when the mark is past.
            self._now[process] = self._mark.through_ms + random.choice([-AHEAD_MS_MAX, -1, 1, 2, 3, 40])
        elif what == "take" and held is None and (self._mark is None or self._mark.through_ms < now):
            term = WorkerTerm(0, self._mark, now)
            self._begun[term] = self._mark.through_ms if self._mark is not None else 0
            self._terms[process] = term, Snowflake(0, random, not_before_ms=term.not_before_ms)
            self._write(process, term, term.through_ms)
        elif what == "renew" and held is not None:
            self._renew(process, held[0], now)
        elif what == "give back" and held is not None:
            del self._terms[process]
            if self._held_by == process:
                self._write(process, held[0], held[0].used_through())
        elif what == "number" and held is not None:
            self._number(*held, now)

    def _renew(self, process: int, term: WorkerTerm, now: Timestamp) -> None:
        if self._held_by == process:
            through = term.next_through(now)
            self._write(process, term, through)
            term.extend(through)
        elif self._random.random() < 0.5:
            del self._terms[process]  # it learns that it was replaced

    def _number(self, term: WorkerTerm, ids: Snowflake, now: Timestamp) -> None:
        for _ in range(self._random.choice([1, 30, 4_500])):
            mid = ids.next(now) if term.covers(now) else None
            if isinstance(mid, int):
                time = (mid >> 22) + EPOCH_MS
                assert self._begun[term] < time <= term.through_ms, f"I1, I2, seed {self._seed}"
                self._last[term] = time
                self.numbered += 1

    def _write(self, process: int, term: WorkerTerm, through_ms: int) -> None:
        assert through_ms >= self._last.get(term, 0), f"I1, seed {self._seed}: what was used is given away again"
        self._mark = mark(through_ms)
        self._held_by = process


@pytest.mark.spec("ID-02", "MI-07")
def test_no_two_terms_ever_number_the_same_time():
    """I1, I2: whatever clocks do, and with holders that do not know that they were replaced.

    Each term stays between the mark that it replaced and its own, and no mark says less than was used.
    """
    worlds = [World(seed) for seed in range(80)]
    for world in worlds:
        for _ in range(100):
            world.step()
    assert sum(world.numbered for world in worlds) > 5_000, "they do number"
