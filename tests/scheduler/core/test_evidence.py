"""Sequential evidence: exact fractions as the twin, Ville's inequality by exhaustion, then peeking by simulation."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.evidence import (
    Interval,
    alpha_of_epoch,
    evidence,
    is_above,
    is_rate_above,
    rate_evidence,
    share_at_ratio,
    upper_confidence,
    wilson,
)

HALF = Fraction(1, 2)


def confidence(events: float, trials: float, alpha: float) -> Interval:
    return Interval(1 - upper_confidence(trials - events, trials, alpha), upper_confidence(events, trials, alpha))


def twin(outcomes: tuple[bool, ...], p: Fraction) -> Fraction:
    """The martingale as a bettor's capital: at each trial the odds of the counts so far against those of p."""
    capital = Fraction(1)
    events = 0
    for trials, outcome in enumerate(outcomes):
        forecast = (events + HALF) / (trials + 1)
        capital *= forecast / p if outcome else (1 - forecast) / (1 - p)
        events += outcome
    return capital


# ---------------------------------------------------------------- a probability


@given(st.lists(st.booleans(), max_size=40).map(tuple), st.fractions("0.001", "0.999"))
def test_the_evidence_is_what_a_bettor_would_have_won(outcomes: tuple[bool, ...], p: Fraction):
    """In any order of the events: only the counts matter."""
    assert evidence(sum(outcomes), len(outcomes), float(p)) == pytest.approx(math.log(twin(outcomes, p)), abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_the_evidence_reaches_a_limit_as_rarely_as_promised(p: float):
    """Ville's inequality over all histories of 150 trials: at any time in a history, not only at its end."""
    reached = 0.0
    unreached = {0: 1.0}
    for trials in range(1, 151):
        after: dict[int, float] = {}
        for events, probability in unreached.items():
            after[events] = after.get(events, 0) + probability * (1 - p)
            after[events + 1] = after.get(events + 1, 0) + probability * p
        over = {events for events in after if evidence(events, trials, p) >= math.log(20)}
        reached += sum(after.pop(events) for events in over)
        unreached = after
    assert reached + sum(unreached.values()) == pytest.approx(1)
    assert 0.001 < reached <= 1 / 20


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_the_evidence_against_the_truth_is_worth_nothing_on_average(p: float):
    """The mean of the martingale stays 1, so that nobody can win against the truth by choosing when to stop."""
    mean = sum(math.comb(60, k) * p**k * (1 - p) ** (60 - k) * math.exp(evidence(k, 60, p)) for k in range(61))
    assert mean == pytest.approx(1)


def test_impossible_events_are_proof():
    """Something that cannot happen and did; nothing that cannot happen and did not."""
    assert evidence(1, 10, 0.0) == evidence(9, 10, 1.0) == math.inf
    assert evidence(0, 10, 0.0) == evidence(10, 10, 1.0) < 0
    assert evidence(0, 0, 0.0) == evidence(0, 0, 0.3) == pytest.approx(0)


@given(
    st.integers(0, 10**9).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))),
    st.sampled_from([1e-2, 1e-6]),
)
@settings(max_examples=60)
def test_a_probability_is_in_the_interval_unless_something_is_proven_against_it(counts: tuple[int, int], alpha: float):
    """The interval holds the estimate; just inside nothing is proven, and just outside it is."""
    events, trials = counts
    low, high = confidence(events, trials, alpha)
    assert 0 <= low <= (events / trials if trials else 0) <= high <= 1
    width = high - low
    assert not is_above(events, trials, low + 1e-6 * width + 1e-14, alpha)
    assert low == 0 or is_above(events, trials, low - 1e-6 * width, alpha)
    assert high == 1 or is_above(trials - events, trials, 1 - high - 1e-6 * width - 1e-14, alpha)


def test_a_billion_trials_lose_no_digit_that_matters():
    """By Stirling's formula the evidence against the truth itself is half the logarithm of 2 / (pi n)."""
    trials = 10**9
    assert evidence(trials / 2, trials, 0.5) == pytest.approx(math.log(2 / math.pi / trials) / 2, abs=2e-5)
    low, high = confidence(5_000_000, trials, 0.001)
    error = math.sqrt(0.005 * 0.995 / trials)
    reach = math.sqrt(2 * (math.log(1000) + math.log(trials * math.pi / 2) / 2))
    assert low == pytest.approx(0.005 - reach * error, rel=1e-4)
    assert high == pytest.approx(0.005 + reach * error, rel=1e-4)
    assert confidence(0, trials, 0.001).high < 2e-8


def test_nothing_is_known_without_trials():
    """And all events of few trials prove little."""
    assert confidence(0, 0, 0.01) == wilson(0, 0, 2) == Interval(0, 1)
    assert confidence(3, 3, 0.01).high == 1
    assert not is_above(3, 3, 0.5, 0.01)
    assert is_above(3, 3, 0.01, 0.01)


def test_whoever_looks_after_every_trial_is_as_safe_as_promised():
    """The truth is outside the confidence sequence at any of 300 looks in at most 5 % of 300 series."""
    rng = random.Random(11)
    wrong = looked_once = 0
    for _ in range(300):
        events = ever = naive = 0
        for trials in range(1, 301):
            events += rng.random() < 0.2
            low, high = wilson(events, trials, 1.96)
            naive |= not low <= 0.2 <= high
            ever |= evidence(events, trials, 0.2) >= math.log(20)
        wrong += ever
        looked_once += naive
    assert wrong <= 15
    assert looked_once > 90, "the same, with a test that is made for one look"


# ---------------------------------------------------------------- a rate


@given(st.integers(0, 200), st.integers(0, 1_000), st.floats(0.001, 5))
def test_the_evidence_on_a_rate_is_its_mixture(events: int, trials: int, rate: float):
    """Each event forecast from those before it: the negative binomial, one step of exposure after the other."""
    forecast = sum(math.log(k + 0.5) for k in range(events)) - (events + 0.5) * math.log1p(trials)
    assert rate_evidence(events, trials, rate) == pytest.approx(
        forecast + rate * trials - events * math.log(rate), abs=1e-6
    )


def test_the_evidence_on_a_rate_reaches_a_limit_as_rarely_as_promised():
    """Events at a rate of 2 a trial, looked at after each of 100 trials: wrong in at most 5 % of 300 series."""
    rng = random.Random(12)
    wrong = 0
    for _ in range(300):
        at, events, ever = rng.expovariate(2), 0, False
        for trials in range(1, 101):
            while at < trials:
                events += 1
                at += rng.expovariate(2)
            ever |= rate_evidence(events, trials, 2) >= math.log(20)
        wrong += ever
    assert wrong <= 15


def test_a_rate_above_its_bound_is_found():
    """With more events than trials too; never from the wrong side."""
    assert rate_evidence(0, 5, 0) == 0
    assert rate_evidence(1, 5, 0) == math.inf
    assert is_rate_above(300, 100, 2, 1e-6)
    assert not is_rate_above(100, 100, 2, 1e-6)
    assert is_rate_above(120, 1_000, 0.05, 1e-6)
    assert not is_rate_above(55, 1_000, 0.05, 1e-2)


# ---------------------------------------------------------------- two series, parts of alpha, hints


def test_the_share_of_events_follows_from_the_ratio_of_rates():
    """Equal rates: the share of the trials. Then events at twice the rate are found, those at the same are not."""
    assert share_at_ratio(100, 900, 1) == 0.1
    assert share_at_ratio(100, 900, 2) == pytest.approx(200 / 1_100)
    assert is_above(200, 1_100, share_at_ratio(100, 900, 1.2), 1e-3)
    assert not is_above(100, 1_000, share_at_ratio(100, 900, 1.2), 1e-3)


def test_all_epochs_together_use_up_alpha_and_no_more():
    """The first one the most."""
    parts = [alpha_of_epoch(0.01, epoch) for epoch in range(1, 20_000)]
    assert parts == sorted(parts, reverse=True)
    assert 0.00999 < sum(parts) < 0.01
    with pytest.raises(AssertionError):
        alpha_of_epoch(0.01, 0)


@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilsons_interval_ends_where_the_estimate_is_z_errors_away(counts: tuple[int, int]):
    """The equation that it solves: (p' - p)^2 = z^2 p (1 - p) / n."""
    events, trials = counts
    for end in wilson(events, trials, 2):
        assert (events / trials - end) ** 2 == pytest.approx(4 * end * (1 - end) / trials, abs=1e-9)
