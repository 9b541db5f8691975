"""Negative controls: a small system keeps all promises, and loses the right one for each way in which it is broken."""

from __future__ import annotations

import pytest

from roadstead.history.check import INVARIANTS, check
from roadstead.history.report import Report
from tests.roadstead.history.tiny_model import Bug
from tests.roadstead.history.tiny_system import System

SEEDS_MAX = 80
"""Seeds in which a bug must have shown itself."""

BROKEN: dict[Bug, set[str]] = {
    Bug.SEQ_OUTSIDE_TRANSACTION: {"I4 hole", "I5 late"},
    Bug.ACK_BEFORE_COMMIT: {"I1 lost", "I11 lost", "I5 vanished"},
    Bug.NO_DEDUPE: {"I3 logged_twice", "I3 two_places"},
    Bug.QUEUE_OFFSET_BEFORE_WRITE: {"I12 neither"},
    Bug.SHARDED_BY_RECIPIENT: {"I6 timeline"},
    Bug.NO_SYNC: {"I1 lost", "I11 lost", "I5 changed", "I7 real_time"},
    Bug.COUNTERS_NOT_IDEMPOTENT: {"I10 oracle"},
    Bug.TOTAL_APART: {"I10 total"},
    Bug.CURSOR_IS_NEWEST_SEEN: {"I8 skip", "I1 unobserved"},
    Bug.RECALL_NOT_FOR_LATE_DEVICES: {"I13 recalled", "I1 unobserved", "I9 late"},
    Bug.BOUNDARY_IGNORED: {"I2 not_entitled"},
    Bug.READ_POINTER_GOES_BACK: {"I10 went_back"},
    Bug.PUSH_OUT_OF_ORDER: {"I8 nonmonotonic", "I8 skip"},
    Bug.VIEW_BY_ARRIVAL: {"I8 view_order"},
    Bug.TIMELINE_ENTRY_LATE: {"I9 late", "I1 unobserved"},
    Bug.TWO_SEQUENCERS: {"I7 real_time", "I4 hole", "I5 late"},
    Bug.EDIT_REWRITES_LOG: {"I5 rewritten", "I2 altered"},
    Bug.REFUSED_BUT_WRITTEN: {"I2 refused"},
    Bug.FAILURE_OF_WHAT_WAS_WRITTEN: {"I12 both"},
    Bug.CONFLICT_ACCEPTED: {"I2 altered"},
}
"""What must be said of each, in one seed or another."""

ONLY: dict[Bug, set[str]] = {
    Bug.NO_DEDUPE: {"I3"},
    Bug.QUEUE_OFFSET_BEFORE_WRITE: {"I12"},
    Bug.SHARDED_BY_RECIPIENT: {"I6"},
    Bug.COUNTERS_NOT_IDEMPOTENT: {"I10"},
    Bug.TOTAL_APART: {"I10"},
    Bug.BOUNDARY_IGNORED: {"I2"},
    Bug.READ_POINTER_GOES_BACK: {"I10"},
    Bug.REFUSED_BUT_WRITTEN: {"I2"},
    Bug.FAILURE_OF_WHAT_WAS_WRITTEN: {"I12"},
    Bug.CONFLICT_ACCEPTED: {"I2", "I3"},
}
"""Bugs that break one promise, and no other may be blamed."""


def said(report: Report) -> set[str]:
    return {f"{violation.invariant} {violation.kind}" for violation in report.violations}


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_a_system_without_a_bug_breaks_no_promise(seed: int):
    """Whatever the weather, and every invariant had something to judge over the seeds together."""
    looked: dict[str, int] = dict.fromkeys(INVARIANTS, 0)
    for nearby in range(seed, seed + 5):
        report = check(System(nearby).run())
        assert report.violations == ()
        assert report.blind == ()
        assert report.holds()
        for finding in report.findings:
            looked[finding.invariant] += finding.looked
    assert all(looked[name] for name in looked.keys() - {"I11"}), looked


def test_crashes_happen_to_the_system_without_a_bug():
    """Else its silence about I11 would prove nothing."""
    assert any("I11" not in check(System(seed, steps=800).run()).vacuous for seed in range(5))


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_each_bug_is_found_and_called_by_its_name(bug: Bug):
    """By the invariant whose promise it breaks; where it breaks only one, no other is blamed."""
    missing = set(BROKEN[bug])
    for seed in range(SEEDS_MAX):
        report = check(System(seed, frozenset({bug})).run())
        assert report.violated <= ONLY.get(bug, set(INVARIANTS))
        assert not report.violated or not report.holds()
        missing -= said(report)
        if not missing:
            return
    pytest.fail(f"nothing was said of {missing}")


def test_every_invariant_has_a_bug_that_breaks_it():
    """None of them is there only for show."""
    assert {name.split()[0] for names in BROKEN.values() for name in names} == set(INVARIANTS)


def test_a_history_is_a_function_of_its_seed():
    """So that what was found once is found again."""
    assert System(7).run() == System(7).run()
    assert System(7).run() != System(8).run()
