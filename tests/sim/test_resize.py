"""The resize history: no lookup is ever wrong, over a thousand seeds, and no guard can be removed unnoticed.

Nodes are added, removed and weighted anew, resizes paused and aborted, leaders deposed, hosts crashed and stalled, the
network cut, messages lost, doubled and reordered, the registry cut off; every answer is checked against the truth.

The seeds are fixed, so that a failure here is a change of the code and never luck. More seeds:
`make sim ARGS="--history resize --count 100000"`. ROADSTEAD_TEST_SEEDS sets how many there are of each special kind: a
crash at a point, nodes that are apart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from roadstead.sim.report import Report, Violation
from roadstead.sim.resize import run_history
from roadstead.sim.resize_hosts import Guards
from status.core.faultpoints import POINTS
from status.core.partitions import Stage
from tests.conftest import SEEN_BY_SIMULATOR

PARTS = 10
SEEDS_PER_PART = 100
SEEDS_TO_CATCH = 500
CAUGHT_AT = {"promise": 5, "recovery_barrier": 35, "tombstones": 50, "recovery": 12, "echo": 90, "lock_is_lease": 84}
"""Where a guard was missed last time: the first to try. Where that is no longer so, all other seeds are tried."""
SEEDS_PER_POINT = int(os.environ.get("ROADSTEAD_TEST_SEEDS", "10"))
SEEDS_APART = SEEDS_PER_POINT
APART_MS = 30_000


@pytest.mark.spec("PR-04")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_lookup_is_ever_wrong(part: int, record_property: Callable[[str, object], None]) -> None:
    """I1 to I5 and I7 of the status cluster, each checked after every event; and all that was wanted comes true."""
    totals: Counter[str] = Counter()
    for seed in range(part * SEEDS_PER_PART, (part + 1) * SEEDS_PER_PART):
        report = run_history(seed)
        totals.update(report.counts)
    assert totals["lookups"] > 10_000
    for what in ("lookups", "commit", "recover"):
        record_property(f"{SEEN_BY_SIMULATOR}: {what}", totals[what])
    record_property(f"{SEEN_BY_SIMULATOR}: histories", SEEDS_PER_PART)
    for what in ("online", "offline", "unknown", "commit", "parked", "recover"):
        assert totals[what] > 0, f"these histories never saw: {what}"


@pytest.mark.parametrize("guard", Guards.names())
def test_without_a_guard_the_referee_finds_a_wrong_answer(guard: str) -> None:
    """A green run means something: each rule that keeps the answers right is needed, and its absence is seen."""

    def run_all() -> None:
        for seed in dict.fromkeys((CAUGHT_AT.get(guard, 0), *range(SEEDS_TO_CATCH))):
            run_history(seed, guards=Guards().without(guard))

    with pytest.raises(Violation):
        run_all()


@pytest.mark.spec("PR-04")
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_of_a_move_is_survived(point: str) -> None:
    """One role dies at one stage, on top of all weather: no answer is wrong, and what was wanted comes true."""
    seed = reached = 0
    while seed < SEEDS_PER_POINT or reached <= SEEDS_PER_POINT // 5:
        assert seed < 10 * SEEDS_PER_POINT, "these histories hardly ever came by"
        report = run_history(seed, crash_at=point)
        reached += report.counts.get(f"reached {point}", 0) > 0
        seed += 1


def apart(stage: Stage, seeds: int) -> int:
    """Histories in fine weather, but that the nodes of a move are apart from this stage on. Return in how many."""
    reports = [run_history(seed, apart_at=stage, chaos_ms=APART_MS) for seed in range(seeds)]
    return sum(report.counts.get("apart", 0) for report in reports)


@pytest.mark.parametrize("stage", [Stage.COPY, Stage.CATCHUP, Stage.SEAL])
def test_a_move_whose_nodes_are_apart_does_not_last(stage: Stage) -> None:
    """H2: both reach the leader and not each other, and no partition answers nobody for long."""
    assert apart(stage, SEEDS_APART) > SEEDS_APART // 2, "these histories hardly ever came by"


def test_without_patience_the_referee_finds_a_seal_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A green run of the test before means something."""
    monkeypatch.setattr("status.core.patience._PATIENCE_MS", {})
    with pytest.raises(Violation, match="H2"):
        apart(Stage.SEAL, SEEDS_APART)


def test_a_seed_gives_the_same_history_again() -> None:
    """Whatever a failure says can be replayed."""

    def digest(report: Report) -> str:
        return report.digest

    assert digest(run_history(7)) == digest(run_history(7)) != digest(run_history(8))
