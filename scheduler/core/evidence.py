"""Whether counts prove something, however often somebody looks at them meanwhile.

A test that is made once may be wrong in one case of a hundred; made after each interval of a long rollout it is wrong
almost surely at some time. The tests here hold for all times together. Suppose that each trial is an event with
probability p. The probability of the counts under a mixture of all p', divided by that under p, is a martingale that
begins with 1; so with probability 1 - alpha it never reaches 1 / alpha (Ville's inequality). Where it does, p is not
the probability. The p for which it does not are an interval, the confidence sequence, which holds p at all times.

Mixtures: for a probability Beta(1/2, 1/2), which is never worse than the best p' by more than half the logarithm of the
trials (Krichevsky and Trofimov); for a rate Gamma(1/2, 1), in units of events a trial.

What is right for a given p is right for all below it, or above it, by the same interval: a bound may be composite.
The trials have to be independent given what came before. A machine that dies with a thousand connections is one trial.

Counts may be fractions, of samples that were weighted. Exact to about 1e-6 in the logarithm up to 1e9 trials.

Sources: H. Robbins, "Statistical methods related to the law of the iterated logarithm" (Ann. Math. Statist. 41, 1970);
S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Ann.
Statist. 49, 2021); R. Krichevsky, V. Trofimov, "The performance of universal encoding" (IEEE Trans. Inf. Theory 27,
1981); J. Przyborowski, H. Wilenski, "Homogeneity of results in testing samples from Poisson series" (Biometrika 31,
1940); E. Wilson, "Probable inference" (J. Amer. Statist. Assoc. 22, 1927).
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = [
    "Interval",
    "alpha_of_epoch",
    "evidence",
    "is_above",
    "is_rate_above",
    "rate_evidence",
    "share_at_ratio",
    "upper_confidence",
    "wilson",
]

_BISECTIONS = 50
_LOG_PI = math.log(math.pi)


class Interval(NamedTuple):
    """Probabilities from `low` to `high`, both in it."""

    low: float
    high: float


def alpha_of_epoch(alpha: float, epoch: int) -> float:
    """Return the part of `alpha` that the `epoch`-th run of tests may use, 1, 2, 3 ...: all parts together are `alpha`.

    Evidence that starts anew is a new test. How many there will be is not known, so that the parts are those of a
    series that converges: 6 / (pi k)^2.
    """
    assert epoch > 0
    return alpha * 6 / (math.pi * epoch) ** 2


def evidence(events: float, trials: float, p: float) -> float:
    """Return the logarithm of the evidence that the probability of an event is not `p`. Ends of 0 and 1 are allowed."""
    assert 0 <= events <= trials
    return _mixture(events, trials) - _likelihood(events, trials, p)


def is_above(events: float, trials: float, p: float, alpha: float) -> bool:
    """Whether it is proven that the probability of an event is above `p`."""
    return events > p * trials and evidence(events, trials, p) >= -math.log(alpha)


def upper_confidence(events: float, trials: float, alpha: float) -> float:
    """Return the upper end of the confidence sequence at this time: above it, every probability is disproved.

    It is 1 without trials. Exact to 1e-15, and rounded up. The lower end is one minus that of the misses.
    """
    if not trials:
        return 1.0
    limit = _mixture(events, trials) + math.log(alpha)
    inside, outside = events / trials, 1.0
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if _likelihood(events, trials, middle) > limit:
            inside = middle
        else:
            outside = middle
    return outside


def _mixture(events: float, trials: float) -> float:
    """Return the logarithm of the probability of one order of the events, mixed over all probabilities of an event."""
    return math.lgamma(events + 0.5) + math.lgamma(trials - events + 0.5) - math.lgamma(trials + 1) - _LOG_PI


def _likelihood(events: float, trials: float, p: float) -> float:
    """Return the same if the probability of an event is `p`."""
    misses = trials - events
    if (p <= 0 < events) or (p >= 1 and misses > 0):
        return -math.inf
    return (events * math.log(p) if events else 0.0) + (misses * math.log1p(-p) if misses else 0.0)


def rate_evidence(events: float, trials: float, rate: float) -> float:
    """Return the logarithm of the evidence that there are not `rate` events a trial, any number of them at one."""
    assert events >= 0
    if rate <= 0:
        return math.inf if events else 0.0
    mixture = math.lgamma(events + 0.5) - _LOG_PI / 2 - (events + 0.5) * math.log1p(trials)
    return mixture + rate * trials - events * math.log(rate)


def is_rate_above(events: float, trials: float, rate: float, alpha: float) -> bool:
    """Whether it is proven that there are more than `rate` events a trial."""
    return events > rate * trials and rate_evidence(events, trials, rate) >= -math.log(alpha)


def share_at_ratio(trials: float, other_trials: float, ratio: float) -> float:
    """Return the part of all events that comes from the first of two series, if its rate is `ratio` of the other's.

    Given how many events there were, those of the first one are then a count with this probability: how many there are
    at all, which differs by the hour, plays no part.
    """
    weighted = ratio * trials
    return weighted / (weighted + other_trials)


def wilson(events: float, trials: float, z: float) -> Interval:
    """Return Wilson's interval at `z` standard errors, for one look: a hint, nothing that is proven."""
    if not trials:
        return Interval(0.0, 1.0)
    square = z * z
    middle = (events + square / 2) / (trials + square)
    reach = z / (trials + square) * math.sqrt(events * (trials - events) / trials + square / 4)
    return Interval(max(middle - reach, 0.0), min(middle + reach, 1.0))
