"""The analysis: each metric with sentences and bounds, the mix of regions, then false alarms and harm by simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.core.histogram import BOUNDARIES, Histogram
from scheduler.core import analysis
from scheduler.core.analysis import Finding, Verdict, judge
from scheduler.core.ledger import Ledger, NodeTotals
from scheduler.core.rollout import FULL, Analysis, Check, Rollout, Step

NOW = 1_700_000_000_000
SUCCESS = "connect_success"
CLOSES = "abnormal_close_rate"
P99 = "handshake_p99_ms"


@dataclass(frozen=True)
class Arm:
    """What one arm counted in one region; replies are `(ms, how many)`."""

    rejected: int = 0
    replies: Sequence[tuple[float, int]] = ()
    accepted: int = 0
    abnormal: int = 0
    pushes: Sequence[tuple[float, int]] = ()


def connects(total: int, rejected: int = 0) -> Arm:
    return Arm(rejected, [(20, total - rejected)])


def closes(accepted: int, abnormal: int) -> Arm:
    return Arm(accepted=accepted, abnormal=abnormal)


def histogram(durations: Sequence[tuple[float, int]]) -> Histogram:
    counts = [0] * (len(BOUNDARIES) + 1)
    for ms, count in durations:
        counts[sum(boundary <= ms for boundary in BOUNDARIES)] += count
    return Histogram(counts)


def ledger(canary: Arm | dict[str, Arm], stable: Arm | dict[str, Arm] | None = None, *, epoch: int = 1) -> Ledger:
    """A ledger that saw a node of each arm in each region, first with nothing."""
    made = Ledger("2.0", epoch=epoch)
    views: list[list[NodeTotals]] = [[], []]
    for version, arms in (("2.0", canary), ("1.9", stable or {})):
        for region, arm in (arms if isinstance(arms, dict) else {"sh": arms}).items():
            node = f"{version}-{region}"
            views[0].append(NodeTotals(node=node, incarnation=1, report=1, version=version, region=region))
            views[1].append(
                NodeTotals(
                    node=node,
                    incarnation=1,
                    report=2,
                    version=version,
                    region=region,
                    accepted=arm.accepted,
                    rejected=arm.rejected,
                    abnormal=arm.abnormal,
                    handshakes=histogram(arm.replies),
                    pushes=histogram(arm.pushes),
                )
            )
    for view in views:
        made.observe(view)
    return made


def rollout(*checks: Check) -> Rollout:
    return Rollout("r", "2.0", "seed", (Step(10_000),), analysis=Analysis(checks=checks))


def finding(check: Check, counted: Ledger, *, percent: int = 10_000) -> Finding:
    (found,) = judge(rollout(check), counted, now=NOW, percent=percent).findings
    return found


def outcome(check: Check, counted: Ledger, *, percent: int = 10_000) -> str:
    return finding(check, counted, percent=percent).outcome


# ---------------------------------------------------------------- the verdict as a whole


def test_a_verdict_is_as_bad_as_its_worst_finding():
    """Failed before inconclusive before passed; who made it when and on what is in it."""
    good, doubtful, bad = Check(SUCCESS, min=0.5), Check(CLOSES, max=0.1), Check(SUCCESS, min=0.99)
    counted = ledger(connects(100, 20), epoch=3)
    assert [judge(rollout(*checks), counted, now=NOW, percent=1).outcome for checks in (
        (), (good,), (good, doubtful), (doubtful, bad, good),
    )] == ["passed", "passed", "inconclusive", "failed"]  # fmt: skip
    verdict = judge(rollout(), counted, now=NOW, percent=1)
    assert verdict == Verdict(NOW, 3, "passed", 100, ())


def test_nothing_is_decided_below_the_least_sample():
    """Not even if everybody was rejected."""
    checks = (Check(SUCCESS, min=0.99), Check("promql", max=1, query="up"))
    below, at = (
        judge(rollout(*checks), ledger(connects(n, n)), now=NOW, percent=1, connects_min=500, promql={1: 9.0})
        for n in (499, 500)
    )
    assert (below.outcome, below.connects) == ("inconclusive", 499)
    assert below.findings[0].sentence == (
        "connect_success: 499 of at least 500 clients connected to the canary: too few to tell"
    )
    assert {found.outcome for found in below.findings} == {"inconclusive"}
    assert {found.outcome for found in at.findings} == {"failed"}


def test_the_false_alarms_are_shared_by_all_epochs_and_bounds():
    """What just suffices for one bound in the first epoch does not for one of two, nor in the second epoch."""
    check = Check(SUCCESS, min=0.9)
    rejected = next(n for n in range(100) if outcome(check, ledger(connects(200, n))) == "failed")
    counted = ledger(connects(200, rejected))
    assert judge(rollout(check, Check(SUCCESS, max=0.9)), counted, now=NOW, percent=1).outcome != "failed"
    assert outcome(check, ledger(connects(200, rejected), epoch=2)) != "failed"
    assert judge(rollout(check), counted, now=NOW, percent=1, alpha=0.001).outcome != "failed"
    assert judge(rollout(check, Check("promql", max=1, query="up")), counted, now=NOW, percent=1).outcome == "failed"


@pytest.mark.parametrize(
    ("check", "size", "least"),
    [
        (Check(SUCCESS, vs_stable=0), 1_000, 30),
        (Check(P99, vs_stable=0), 1_000, 10),
        (Check(CLOSES, vs_stable=0), 1_000, 50),
    ],
)
def test_what_is_proven_depends_on_how_sure_one_wants_to_be(check: Check, size: int, least: int):
    """For comparisons too: the fewest events that are proof of harm are none for a smaller alpha."""

    def counted(events: int) -> Ledger:
        stable = Arm(180, [(20, 8_820)], 9_000, 450)
        return ledger(Arm(events, [(20, size - events), (40, events)], size, events), stable)

    def outcomes(events: int, alpha: float) -> str:
        return judge(rollout(check), counted(events), now=NOW, percent=1, alpha=alpha).outcome

    events = next(events for events in range(least, size) if outcomes(events, 0.01) == "failed")
    assert least < events < 2 * least + 20
    assert outcomes(events, 0.005) == "inconclusive"


# ---------------------------------------------------------------- connect_success


def test_a_sentence_has_the_numbers_and_what_follows():
    """Both arms' estimates and samples."""
    counted = ledger(connects(612, 30), connects(54_010, 270))
    assert finding(Check(SUCCESS, vs_stable=-0.002), counted) == Finding(
        SUCCESS,
        "failed",
        "connect_success canary 95.10 % (n=612), stable 99.50 % (n=54,010): more than 0.2 % below stable is proven",
        612,
        1 - 30 / 612,
        1 - 270 / 54_010,
    )


@pytest.mark.parametrize(
    ("rejected", "expected"), [(0, "passed"), (5, "passed"), (8, "passed"), (12, "inconclusive"), (25, "failed")]
)
def test_success_below_its_least_is_first_doubtful_then_proven(rejected: int, expected: str):
    """Of 1,000 connects 5 may fail."""
    assert outcome(Check(SUCCESS, min=0.995), ledger(connects(1_000, rejected))) == expected


@pytest.mark.parametrize(
    ("rejected", "expected"), [(0, "passed"), (7, "passed"), (11, "passed"), (18, "inconclusive"), (40, "failed")]
)
def test_success_below_stables_is_first_doubtful_then_proven(rejected: int, expected: str):
    """Of 1,000 connects 5 would fail at stable, and 7 may."""
    counted = ledger(connects(1_000, rejected), connects(9_000, 45))
    assert outcome(Check(SUCCESS, vs_stable=-0.002), counted) == expected


def test_stable_can_be_too_small_to_prove_anything_against_it():
    """Its own uncertainty counts."""
    check = Check(SUCCESS, vs_stable=0)
    assert outcome(check, ledger(connects(1_000, 60), connects(9_000, 180))) == "failed"
    assert outcome(check, ledger(connects(1_000, 60), connects(50, 1))) == "passed"


def test_all_bounds_that_are_broken_are_named():
    """And if none is, that."""
    check = Check(SUCCESS, min=0.995, vs_stable=-0.002)
    bad, doubtful, good = (
        finding(check, ledger(connects(1_000, rejected), connects(9_000, 45))).sentence for rejected in (50, 13, 5)
    )
    assert bad.endswith(": below 99.5 % is proven; more than 0.2 % below stable is proven")
    assert doubtful.endswith(": looks below 99.5 %, which is not proven")
    assert good == "connect_success canary 99.50 % (n=1,000), stable 99.50 % (n=9,000): within its bounds"


def test_without_connects_there_is_no_success_rate():
    """No numbers either."""
    expected = Finding(SUCCESS, "inconclusive", "connect_success: nobody connected to the canary")
    assert finding(Check(SUCCESS, min=0.9), ledger({})) == expected


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Check(SUCCESS, vs_stable=-0.002), "more than 0.2 % below stable"),
        (Check(SUCCESS, vs_stable=0), "below stable"),
        (Check(SUCCESS, vs_stable=0.001), "less than 0.1 % above stable"),
        (Check(CLOSES, vs_stable=0.2), "more than 20 % above stable"),
        (Check(CLOSES, vs_stable=0), "above stable"),
        (Check(CLOSES, vs_stable=-0.1), "less than 10 % below stable"),
    ],
)
def test_a_relative_bound_is_said_in_words(check: Check, text: str):
    """Whichever side of stable it is on."""
    counted = ledger(Arm(500, [(1, 500)], 1_000, 500), Arm(50, [(1, 9_000)], 9_000, 500))
    assert finding(check, counted).sentence.endswith(f": {text} is proven")


# ---------------------------------------------------------------- what there is to compare with


@pytest.mark.parametrize("check", [Check(SUCCESS, vs_stable=0), Check(CLOSES, vs_stable=0), Check(P99, vs_stable=0)])
def test_without_stable_in_the_same_region_nothing_can_be_compared(check: Check):
    """Which is by design at 100 %, and doubtful before."""
    canary = Arm(0, [(20, 1_000)], 1_000, 10)
    for stable in (None, Arm(), {"gz": canary}):
        assert outcome(check, ledger(canary, stable)) == "inconclusive"
        alone = finding(check, ledger(canary, stable), percent=FULL)
        assert alone.outcome == "passed"
        assert alone.sentence.endswith("there is no stable to compare it with")
        assert alone.stable is None
    assert outcome(check, ledger(canary, canary)) == "passed"


def test_a_canary_in_the_worst_region_is_compared_with_stable_there():
    """Both arms fail 5 % in one region and 0.1 % in the other: overall the canary looks four times as bad."""
    canary = {"worst": connects(9_000, 450), "best": connects(1_000, 1)}
    stable = {"worst": connects(10_000, 500), "best": connects(90_000, 90)}
    found = finding(Check(SUCCESS, vs_stable=0), ledger(canary, stable))
    assert found.outcome == "passed"
    assert found.stable == pytest.approx(found.canary)
    worse = {"worst": connects(9_000, 900), "best": connects(1_000, 1)}
    assert outcome(Check(SUCCESS, vs_stable=0), ledger(worse, stable)) == "failed"


def test_the_mix_of_regions_is_evened_out_for_every_metric():
    """As above, for closes and for latency."""
    canary = {"worst": Arm(0, [(20, 8_500), (900, 500)], 9_000, 4_500), "best": Arm(0, [(20, 1_000)], 1_000, 100)}
    stable = {"worst": Arm(0, [(20, 9_400), (900, 600)], 10_000, 5_000), "best": Arm(0, [(20, 90_000)], 90_000, 9_000)}
    for check in (Check(CLOSES, vs_stable=0), Check(P99, vs_stable=0)):
        found = finding(check, ledger(canary, stable))
        assert found.outcome == "passed"
        assert found.canary == pytest.approx(found.stable)


def test_a_region_with_next_to_no_stable_does_not_thin_all_of_it():
    """Up to 5 % of the canary's samples are left out for it; more than that are not."""
    stable = {"a": connects(90_000, 450), "b": connects(5, 0)}
    few, many = (
        finding(Check(SUCCESS, vs_stable=0), ledger({"a": connects(10_000 - n, 0), "b": connects(n, 0)}, stable))
        for n in (500, 501)
    )
    assert "stable 99.50 % (n=90,000)" in few.sentence
    assert "(n=100)" in many.sentence
    assert few.samples == many.samples == 10_000
    close = {"a": connects(90_000, 450), "b": connects(3_000, 15)}
    found = finding(Check(SUCCESS, vs_stable=0), ledger({"a": connects(9_500, 0), "b": connects(500, 0)}, close))
    assert "(n=60,000)" in found.sentence, "it would not double what is left"


# ---------------------------------------------------------------- abnormal_close_rate


@pytest.mark.parametrize(
    ("abnormal", "expected"), [(0, "passed"), (50, "passed"), (60, "passed"), (66, "inconclusive"), (110, "failed")]
)
def test_more_abnormal_closes_than_allowed_are_first_doubtful_then_proven(abnormal: int, expected: str):
    """Of 1,000 that were let in 50 may end so."""
    assert outcome(Check(CLOSES, max=0.05), ledger(closes(1_000, abnormal))) == expected


@pytest.mark.parametrize(
    ("abnormal", "expected"), [(0, "passed"), (300, "passed"), (390, "passed"), (410, "inconclusive"), (500, "failed")]
)
def test_more_abnormal_closes_than_stables_are_first_doubtful_then_proven(abnormal: int, expected: str):
    """Of 1,000 that were let in 300 would end so at stable, and 360 may."""
    check = Check(CLOSES, vs_stable=0.2)
    assert outcome(check, ledger(closes(1_000, abnormal), closes(9_000, 2_700))) == expected


def test_a_bad_hour_of_the_network_is_not_the_canarys():
    """Ten times as many in both arms prove nothing, even more of them than were let in."""
    check = Check(CLOSES, vs_stable=0.1)
    assert outcome(check, ledger(closes(1_000, 3_000), closes(9_000, 27_000))) == "passed"
    assert outcome(check, ledger(closes(1_000, 6_000), closes(9_000, 27_000))) == "failed"


def test_without_newcomers_there_is_no_rate():
    """Whatever became of those who were there before."""
    expected = Finding(CLOSES, "inconclusive", "abnormal_close_rate: the canary let nobody in")
    assert finding(Check(CLOSES, max=0.1), ledger(closes(0, 5))) == expected


# ---------------------------------------------------------------- p99


@pytest.mark.parametrize(("slow", "expected"), [(0, "passed"), (10, "passed"), (18, "inconclusive"), (45, "failed")])
def test_a_p99_above_its_most_is_first_doubtful_then_proven(slow: int, expected: str):
    """Of 1,000 replies 10 may take longer."""
    counted = ledger(Arm(replies=[(20, 1_000 - slow), (500, slow)]))
    assert outcome(Check(P99, max=400), counted) == expected


def test_the_width_of_a_bucket_speaks_for_the_canary():
    """401 ms may be 399: what counts is above 416."""
    assert outcome(Check(P99, max=400), ledger(Arm(replies=[(401, 1_000)]))) == "passed"
    assert outcome(Check(P99, max=400), ledger(Arm(replies=[(416, 1_000)]))) == "failed"
    beyond = finding(Check(P99, max=70_000), ledger(Arm(replies=[(80_000, 1_000)])))
    assert beyond.sentence == "handshake_p99_ms canary over 65,536 ms (n=1,000): within its bounds"


def test_a_p99_is_compared_with_stables():
    """100 ms against 15 % above 60 ms; a wide step of the buckets away it is not sure."""
    stable = Arm(replies=[(20, 88_000), (58, 2_000)])
    for ms, expected in ((58, "passed"), (66, "passed"), (100, "failed")):
        canary = Arm(replies=[(20, 9_700), (ms, 300)])
        assert outcome(Check(P99, vs_stable=0.15), ledger(canary, stable)) == expected
    canary = Arm(replies=[(20, 9_870), (100, 130)])
    found = finding(Check(P99, vs_stable=0.15), ledger(canary, stable))
    assert found.sentence == (
        "handshake_p99_ms canary 104 ms (n=10,000), stable 60 ms (n=90,000): "
        "looks more than 15 % above stable, which is not proven"
    )


def test_pushes_have_a_p99_of_their_own():
    """Handshakes play no part in it."""
    counted = ledger(Arm(replies=[(9_000, 500)], pushes=[(4, 1_000)]), Arm(pushes=[(2, 1_000)]))
    assert outcome(Check("push_p99_ms", max=10), counted) == "passed"
    assert outcome(Check("push_p99_ms", vs_stable=0.3), counted) == "failed"


def test_a_hundred_samples_have_a_p99_and_fewer_have_none():
    """On either side."""
    assert finding(Check(P99, max=10), ledger(connects(99))) == Finding(
        P99, "inconclusive", "handshake_p99_ms: 99 samples of the canary have no p99"
    )
    check = Check(P99, vs_stable=0)
    assert [outcome(check, ledger(connects(100), connects(n))) for n in (99, 100)] == ["inconclusive", "passed"]


@given(st.lists(st.integers(0, 40), min_size=113, max_size=113).filter(any), st.sampled_from([0.25, 1.0]))
def test_a_tail_counts_as_its_histogram_does(counts: list[int], part: float):
    """At every boundary, and the p99 that it has."""
    counted = Histogram(counts)
    tail = analysis._tail([(counted, part)])
    assert tail[0] == part * counted.total
    for boundary in (*BOUNDARIES, math.inf):
        assert tail[analysis._index(boundary)] == part * counted.count_above(boundary)
    assert analysis._p99_at_most(tail, analysis._estimate) == counted.quantile(0.99)


# ---------------------------------------------------------------- promql


@pytest.mark.parametrize(
    ("value", "expected", "sentence"),
    [
        (0.5, "passed", "promql 0.5: within its bounds"),
        (0.01, "failed", "promql 0.01: below 0.1"),
        (2.0, "failed", "promql 2: above 1"),
        (math.nan, "inconclusive", "promql: no data"),
        ("no answer within 5000 ms", "inconclusive", "promql: no answer within 5000 ms"),
        (None, "inconclusive", "promql: it was not asked"),
    ],
)
def test_a_value_is_held_against_its_bounds(value: float | str | None, expected: str, sentence: str):
    """No value decides nothing."""
    check = Check("promql", min=0.1, max=1.0, query="rate(errors[1m])")
    answers = {} if value is None else {1: value}
    verdict = judge(rollout(Check(SUCCESS, min=0.1), check), ledger(connects(9)), now=NOW, percent=1, promql=answers)
    assert (verdict.findings[1].outcome, verdict.findings[1].sentence) == (expected, sentence)


# ---------------------------------------------------------------- over time


def drawn(rng: random.Random, trials: int, p: float) -> int:
    """A binomial count, by the distances between events."""
    events = at = 0
    while True:
        at += 1 + int(math.log(1 - rng.random()) / math.log(1 - p))
        if at > trials:
            return events
        events += 1


def test_a_version_that_is_like_stable_hardly_ever_fails_a_check():
    """All metrics on the very edge of all bounds, judged 20 times in each of 120 epochs: at most 1 % ever fail."""
    rng = random.Random(5)
    checks = (
        Check(SUCCESS, min=0.98, vs_stable=0),
        Check(P99, max=512, vs_stable=0),
        Check(CLOSES, max=0.1, vs_stable=0),
    )
    failed = doubtful = 0
    for _ in range(120):
        sums = {"2.0": [0] * 3, "1.9": [0] * 3}
        counted = Ledger("2.0")
        verdicts = []
        for number in range(21):
            view = []
            for version, size in (("2.0", 100), ("1.9", 400)):
                total = sums[version]
                view.append(
                    NodeTotals(
                        node=version,
                        incarnation=1,
                        report=number + 1,
                        version=version,
                        accepted=number * size,
                        rejected=total[0],
                        abnormal=total[2],
                        handshakes=histogram([(20, number * size - total[0] - total[1]), (512, total[1])]),
                    )
                )
                for index, p in enumerate((0.02, 0.0098, 0.1)):
                    total[index] += drawn(rng, size, p)
            counted.observe(view)
            verdicts.append(judge(rollout(*checks), counted, now=NOW, percent=20_000).outcome)
        failed += "failed" in verdicts
        doubtful += verdicts[-1] == "inconclusive"
    assert failed <= 1
    assert doubtful <= 24
