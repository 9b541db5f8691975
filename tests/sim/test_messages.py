"""The message history: clients see what they should, over hundreds of seeds, and no guard can be removed unnoticed.

Services crash at every step of a transaction, transactions fail with an unknown outcome, access nodes and devices
crash, stall and are cut off, pushes are lost, doubled and reordered; users send, queue, edit, recall, read, hide, make
and change groups; an operator switches strategies meanwhile. What clients saw is judged by the checker.

The seeds are fixed, so that a failure here is a change of the code and never luck. More seeds:
`make sim ARGS="--history messages --count 10000"`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from im.core import timelines
from roadstead.history.check import INVARIANTS
from roadstead.sim.messages import FAULTS, run_history
from roadstead.sim.messages_guards import Guards
from roadstead.sim.messages_service import POINTS
from roadstead.sim.report import Violation
from tests.conftest import SEEN_BY_SIMULATOR

PARTS = 6
SEEDS_PER_PART = 50
SEEDS_PER_POINT = int(os.environ.get("ROADSTEAD_TEST_SEEDS", "4"))
SEEDS_TO_CATCH = 120
CAUGHT: dict[str, tuple[int, str]] = {
    "seq_in_transaction": (0, "I4 hole|I5"),
    "commit_first": (0, "I1 lost|I11 lost"),
    "dedupe": (0, "I3 logged_twice"),
    "dequeue_with_write": (4, "I12 neither"),
    "failure_notes": (0, "I12 neither"),
    "fan_out_resumed": (4, "H4"),
    "fan_out_place": (4, "I1 repeated"),
    "boundaries": (0, "I2 not_entitled"),
    "overlays": (0, "I13"),
    "read_forward": (1, "I10 went_back"),
    "lanes_by_sender": (4, "I6 timeline"),
    "cursor_closed": (0, "I1 unobserved|I8 skip"),
    "audit": (1, "H1"),
    "sync_versions": (9, "H2|I1 unobserved"),
}
"""Where the absence of each guard was noticed last time, which is the first seed to try, and what is said of it."""
SEEN = (
    *("crashes", "failed transactions", "lives with drafts", "lives with fan-outs", "failures", "switches", "trims"),
    *("resumed", "caught up", "too old", "gaps read", "lists", "counted"),
    *("refused no_conversation", "refused muted", "refused recalled", "refused not_allowed", "refused window_closed"),
)


@pytest.mark.spec("CC-10", "FO-08", "DT-01", "OR-01", "OR-04", "MD-04", "UN-01")
@pytest.mark.parametrize("part", range(PARTS))
def test_clients_see_what_they_should(part: int, record_property: Callable[[str, object], None]) -> None:
    """I1 to I13 of the checker and H1 to H4 of the history, each of which had something to judge."""
    totals: Counter[str] = Counter()
    for seed in range(part * SEEDS_PER_PART, (part + 1) * SEEDS_PER_PART):
        totals.update(run_history(seed).counts)
    for what in ("deliveries", "crashes"):
        record_property(f"{SEEN_BY_SIMULATOR}: {what}", totals[what])
    record_property(f"{SEEN_BY_SIMULATOR}: histories of messages", SEEDS_PER_PART)
    for what in (*SEEN, *(f"judged {invariant}" for invariant in INVARIANTS)):
        assert totals[what] > 0, f"these histories never saw: {what}"


@pytest.mark.parametrize("guard", Guards.names())
def test_without_a_guard_the_checker_finds_a_broken_promise(
    guard: str, record_property: Callable[[str, object], None]
) -> None:
    """A green run means something: each rule that keeps the promises is needed, and its absence is called by name."""
    first, called = CAUGHT[guard]
    for seed in dict.fromkeys((first, *range(SEEDS_TO_CATCH))):
        try:
            run_history(seed, guards=Guards().without(guard))
        except Violation as violation:
            if re.match(called, violation.message):
                record_property("caught at seed", seed)
                return
    pytest.fail(f"nobody noticed in {SEEDS_TO_CATCH} histories")


@pytest.mark.spec("FO-05", "FO-06", "MI-06")
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_step_of_a_transaction_is_survived(point: str) -> None:
    """Before it is durable, between that and the answer, and between the answer and the push; in fine weather else."""
    fine = FAULTS.healed()
    for seed in range(SEEDS_PER_POINT):
        report = run_history(seed, crash_at=point, faults=fine)
        assert report.counts[f"reached {point}"] > 0


def test_a_message_history_is_its_seed() -> None:
    """Equal reports, digest included: whatever a failure says can be replayed."""
    assert run_history(3) == run_history(3)
    assert run_history(3).digest != run_history(4).digest


def test_a_history_leaves_the_sizes_of_steps_as_they_were() -> None:
    """It makes them small for itself, also when it fails."""
    before = timelines.AT_ONCE_MAX, timelines.STEP_MAX, timelines.TURN_MAX
    with pytest.raises(Violation):
        run_history(0, guards=Guards().without("dedupe"))
    assert before == (timelines.AT_ONCE_MAX, timelines.STEP_MAX, timelines.TURN_MAX)


def test_the_command_knows_the_message_history_in_another_process_with_another_hash_seed() -> None:
    """Nothing that reaches an effect hangs on the order of a set."""
    digest = run_history(3).digest
    result = subprocess.run(
        [sys.executable, "-m", "roadstead.sim", "--history", "messages", "--seed", "3"],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f", {digest}, " in result.stdout
