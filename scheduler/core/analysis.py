"""Whether the canary does worse than its document allows: a verdict on the totals of both arms.

A check *failed* if it is proven that the canary breaks a bound, by evidence that holds however often somebody looks
(`scheduler.core.evidence`). It is *inconclusive* without enough samples, and where the canary looks worse than a bound
by more than chance explains at one look while nothing is proven. Otherwise it *passed*.

- `connect_success`: connect commands that got their reply, of those and the rejected ones. Newcomers that were refused
  before the upgrade are left out: they say how full a node is, not how good.
- `handshake_p99_ms`, `push_p99_ms`: a p99 above x means that more than 1 % take longer than x. That is a probability,
  which is tested at the next boundary of the histogram: the width of a bucket speaks for the canary.
- `abnormal_close_rate`: connections that ended without a close code, per newcomer that was let in. Not per hour of
  connection: young connections end that way far oftener than old ones, and the canary's are all young, so that the same
  version would look worse. And not per close: a version that loses everybody twice as often would look the same. Per
  newcomer, the canary's have had less time to end than stable's. As long as its share only grows it looks no worse than
  it is, and as bad as it is once its connections are as old as stable's. Of all abnormal closes together the canary's
  are a binomial count, so that a bad hour of the network, which is one for both arms, plays no part.
- `promql`: the value against the bounds. Its false alarms are the operator's own, outside the budget below.

Compared with stable are regions in which both arms have samples. Stable's are thinned until its mix of regions is the
canary's: a canary that begins where the network is worst would look bad otherwise. This takes expected counts in place
of a drawn subset, which vary less. Where a small part of the canary's samples would thin stable to almost nothing, that
part is left out instead. Segments are not evened out: a document that sends old clients to stable compares them too.

False alarms: in a whole rollout of a version that is like stable any check fails with a probability of `alpha` at most.
The epochs share it (`alpha_of_epoch`), in an epoch all bounds of all checks equally, and where both arms are uncertain
the two equally (union bounds). That a verdict must fail several times before the rollout does comes on top.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from base.core.histogram import BOUNDARIES, Histogram
from scheduler.core.evidence import alpha_of_epoch, is_above, is_rate_above, share_at_ratio, upper_confidence, wilson
from scheduler.core.ledger import ArmTotals, Ledger
from scheduler.core.rollout import FULL, Check, Rollout

__all__ = ["ALPHA", "Finding", "Outcome", "Verdict", "judge"]

ALPHA: Final = 0.01
HINT_ERRORS: Final = 2.0
"""More standard errors than this are more than chance explains at one look."""
TAIL: Final = 0.01
"""What is above a p99."""
TAIL_SAMPLES_MIN: Final = 100
"""Fewer samples have no p99."""
LEFT_OUT_MAX: Final = 0.05
"""The part of the canary's samples that a comparison may leave out."""

Outcome: TypeAlias = Literal["passed", "failed", "inconclusive"]
Count: TypeAlias = Callable[[ArmTotals], float]
Totals: TypeAlias = Mapping[str, ArmTotals]
"""Of one arm, by region."""
Upper: TypeAlias = Callable[[float, float], float]
"""Returns a probability of which events and trials say that the true one is not higher."""


class Finding(msgspec.Struct, frozen=True):
    """What one check came to. `canary` and `stable` are estimates, where there are samples."""

    metric: str
    outcome: Outcome
    sentence: str
    """For people: the numbers, and what follows from them."""
    samples: int = 0
    """The canary's."""
    canary: float | None = None
    stable: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What all checks came to: failed if one did; else inconclusive if one was."""

    at: int
    """Wall time in ms."""
    epoch: int
    outcome: Outcome
    connects: int
    """Clients that connected to the canary, or tried to, in this epoch."""
    findings: tuple[Finding, ...] = ()


class _Result(NamedTuple):
    """What one bound of a check came to, and how the sentence on it ends."""

    outcome: Outcome
    text: str


_WITHIN: Final = _Result("passed", "")


class _Pair(NamedTuple):
    """Events and trials of the canary, and of stable thinned to the canary's mix of regions."""

    events: float
    trials: float
    stable_events: float
    stable_trials: float


def judge(
    rollout: Rollout,
    ledger: Ledger,
    *,
    now: int,
    percent: int,
    connects_min: int = 0,
    promql: Mapping[int, float | str] | None = None,
    alpha: float = ALPHA,
) -> Verdict:
    """Make all checks of the rollout's document.

    Args:
        rollout: whose checks.
        ledger: what was counted in its epoch.
        now: wall time in ms.
        percent: the canary's share of new assignments, as a step has it. At 100 % there is nothing to compare with.
        connects_min: without as many connects at the canary nothing is decided.
        promql: by the number of the check in the document, what its query came to, or in words why to nothing.
        alpha: how probable a false alarm in the whole rollout may be.
    """
    checks = rollout.analysis.checks
    canary = ledger.totals("canary")
    connects = sum(totals.connects for totals in canary.values())
    if connects < connects_min:
        text = f"{connects:,} of at least {connects_min:,} clients connected to the canary: too few to tell"
        findings = tuple(Finding(check.metric, "inconclusive", f"{check.metric}: {text}") for check in checks)
        return Verdict(now, ledger.epoch, "inconclusive", connects, findings)
    bounds = sum(
        bound is not None
        for check in checks
        if check.metric != "promql"
        for bound in (check.min, check.max, check.vs_stable)
    )
    part = alpha_of_epoch(alpha, ledger.epoch) / max(bounds, 1)
    arms = _Arms(canary, ledger.totals("stable"), part, is_alone=percent >= FULL)
    answers = promql or {}
    findings = tuple(
        _promql(check, answers.get(number, "it was not asked")) if check.metric == "promql" else arms.make(check)
        for number, check in enumerate(checks)
    )
    return Verdict(now, ledger.epoch, _worst(finding.outcome for finding in findings), connects, findings)


def _promql(check: Check, value: float | str) -> Finding:
    if isinstance(value, str) or math.isnan(value):
        return Finding("promql", "inconclusive", f"promql: {value if isinstance(value, str) else 'no data'}")
    results = [_WITHIN]
    if check.min is not None and value < check.min:
        results.append(_Result("failed", f"below {check.min:g}"))
    if check.max is not None and value > check.max:
        results.append(_Result("failed", f"above {check.max:g}"))
    outcome, text = _conclude(results)
    return Finding("promql", outcome, f"promql {value:g}: {text}", canary=value)


class _Arms:
    """The totals of both arms, and the checks on them that count samples."""

    def __init__(self, canary: Totals, stable: Totals, alpha: float, *, is_alone: bool) -> None:
        """`alpha`: for one bound. `is_alone`: no newcomer goes to stable."""
        self._canary = canary
        self._stable = stable
        self._alpha = alpha
        self._is_alone = is_alone

    def make(self, check: Check) -> Finding:
        """Make one check."""
        match check.metric:
            case "connect_success":
                return self._success(check)
            case "abnormal_close_rate":
                return self._abnormal(check)
            case "handshake_p99_ms":
                return self._p99(check, attrgetter("handshakes"))
            case _:
                assert check.metric == "push_p99_ms"
                return self._p99(check, attrgetter("pushes"))

    # ---------------------------------------------------------------- parts of events

    def _success(self, check: Check) -> Finding:
        rejected, connects = attrgetter("rejected"), attrgetter("connects")
        events, trials = self._own(rejected), self._own(connects)
        if not trials:
            return _without(check, "nobody connected to the canary")
        canary = 1 - events / trials, trials
        results = []
        if check.min is not None:
            results.append(self._beyond(events, trials, 1 - check.min, f"below {100 * check.min:g} %"))
        if check.vs_stable is None:
            return _finding(check, results, _percent, canary)
        pair = self._pair(rejected, connects)
        if not pair.trials:
            return _finding(check, [*results, self._uncompared()], _percent, canary)
        results.append(self._success_vs(pair, check.vs_stable))
        stable = 1 - pair.stable_events / pair.stable_trials, pair.stable_trials
        return _finding(check, results, _percent, canary, stable)

    def _success_vs(self, pair: _Pair, vs_stable: float) -> _Result:
        def bound(failing: float) -> float:
            return 1 - (1 - failing) * (1 + vs_stable)

        events, trials, stable_events, stable_trials = pair
        text = _relative(vs_stable, "below")
        if events / trials <= bound(stable_events / stable_trials):
            return _WITHIN
        half = self._alpha / 2
        if is_above(events, trials, bound(upper_confidence(stable_events, stable_trials, half)), half):
            return _proven(text)
        highest = wilson(stable_events, stable_trials, HINT_ERRORS).high
        return _hint(text, is_doubtful=wilson(events, trials, HINT_ERRORS).low > bound(highest))

    def _abnormal(self, check: Check) -> Finding:
        abnormal, accepted = attrgetter("abnormal"), attrgetter("accepted")
        events, trials = self._own(abnormal), self._own(accepted)
        if not trials:
            return _without(check, "the canary let nobody in")
        canary = events / trials, trials
        results = []
        if check.max is not None:
            text, expected = f"above {100 * check.max:g} %", check.max * trials
            if is_rate_above(events, trials, check.max, self._alpha):
                results.append(_proven(text))
            else:
                results.append(_hint(text, is_doubtful=events - expected > HINT_ERRORS * math.sqrt(expected)))
        if check.vs_stable is None:
            return _finding(check, results, _percent, canary)
        pair = self._pair(abnormal, accepted)
        if not pair.trials:
            return _finding(check, [*results, self._uncompared()], _percent, canary)
        share = share_at_ratio(pair.trials, pair.stable_trials, 1 + check.vs_stable)
        both = pair.events + pair.stable_events
        results.append(self._beyond(pair.events, both, share, _relative(check.vs_stable, "above")))
        stable = pair.stable_events / pair.stable_trials, pair.stable_trials
        return _finding(check, results, _percent, canary, stable)

    # ---------------------------------------------------------------- tails

    def _p99(self, check: Check, histogram: Callable[[ArmTotals], Histogram]) -> Finding:
        own = _tail((histogram(totals), 1.0) for totals in self._canary.values())
        if own[0] < TAIL_SAMPLES_MIN:
            return _without(check, f"{own[0]:,.0f} samples of the canary have no p99")
        results = []
        if check.max is not None:
            above = own[_index(check.max)]
            results.append(self._beyond(above, own[0], TAIL, f"above {check.max:g} ms"))
        p99 = _p99_at_most(own, _estimate), own[0]
        if check.vs_stable is None:
            return _finding(check, results, _milliseconds, p99)
        thinned = self._thinned(lambda totals: histogram(totals).total)
        canary = _tail((histogram(self._canary[region]), 1.0) for region in thinned)
        stable = _tail((histogram(self._stable[region]), part) for region, part in thinned.items())
        if min(canary[0], stable[0]) < TAIL_SAMPLES_MIN:
            return _finding(check, [*results, self._uncompared()], _milliseconds, p99)
        results.append(self._p99_vs(canary, stable, check.vs_stable))
        return _finding(check, results, _milliseconds, p99, (_p99_at_most(stable, _estimate), stable[0]))

    def _p99_vs(self, canary: list[float], stable: list[float], vs_stable: float) -> _Result:
        def above(upper: Upper) -> float:
            """How many of the canary's are above the bound, if stable's p99 is as high as it may be."""
            return canary[_index(_p99_at_most(stable, upper) * (1 + vs_stable))]

        text = _relative(vs_stable, "above")
        if above(_estimate) <= TAIL * canary[0]:
            return _WITHIN
        # The p99 of stable is wrong only if its test at the one boundary below the true p99 is: no bound per boundary.
        half = self._alpha / 2
        if is_above(above(lambda events, trials: upper_confidence(events, trials, half)), canary[0], TAIL, half):
            return _proven(text)
        events = above(lambda events, trials: wilson(events, trials, HINT_ERRORS).high)
        return _hint(text, is_doubtful=wilson(events, canary[0], HINT_ERRORS).low > TAIL)

    # ---------------------------------------------------------------- counts

    def _own(self, count: Count) -> float:
        return sum(map(count, self._canary.values()))

    def _thinned(self, trials: Count) -> dict[str, float]:
        return _thinning(
            {region: trials(totals) for region, totals in self._canary.items()},
            {region: trials(totals) for region, totals in self._stable.items()},
        )

    def _pair(self, events: Count, trials: Count) -> _Pair:
        thinned = self._thinned(trials)
        return _Pair(
            sum(events(self._canary[region]) for region in thinned),
            sum(trials(self._canary[region]) for region in thinned),
            sum(part * events(self._stable[region]) for region, part in thinned.items()),
            sum(part * trials(self._stable[region]) for region, part in thinned.items()),
        )

    def _beyond(self, events: float, trials: float, p: float, text: str) -> _Result:
        """Whether the probability of an event is above `p`."""
        if is_above(events, trials, p, self._alpha):
            return _proven(text)
        return _hint(text, is_doubtful=wilson(events, trials, HINT_ERRORS).low > p)

    def _uncompared(self) -> _Result:
        if self._is_alone:
            return _Result("passed", "newcomers all go to the canary, there is no stable to compare it with")
        return _Result("inconclusive", "too few samples of both arms in the same regions to compare them")


def _thinning(canary: Mapping[str, float], stable: Mapping[str, float]) -> dict[str, float]:
    """Return which part of stable's trials to take in each region, so that both arms have the same mix of regions.

    Regions that are not named are left out of both arms.
    """
    ratios = {region: stable[region] / trials for region, trials in canary.items() if trials and stable.get(region)}
    ascending = sorted(ratios, key=lambda region: (ratios[region], region))
    spare = LEFT_OUT_MAX * sum(canary[region] for region in ascending)
    for region, following in list(pairwise(ascending)):
        # Worth it only if it at least doubles what is left of stable.
        if canary[region] > spare or ratios[following] < 2 * ratios[region]:
            break
        spare -= canary[region]
        ascending.remove(region)
    return {region: ratios[ascending[0]] / ratios[region] for region in ascending}


def _tail(histograms: Iterable[tuple[Histogram, float]]) -> list[float]:
    """Return how many samples there are, then how many at or above each boundary, then 0 above infinity."""
    counts = [0.0] * (len(BOUNDARIES) + 1)
    for histogram, part in histograms:
        counts = [count + part * its for count, its in zip(counts, histogram.counts, strict=True)]
    return [*reversed(list(accumulate(reversed(counts)))), 0.0]


def _index(ms: float) -> int:
    """Return where in a tail are the samples that are surely at or above `ms`."""
    return bisect_left(BOUNDARIES, ms) + 1


def _p99_at_most(tail: list[float], upper: Upper) -> float:
    """Return the lowest boundary of which `upper` says that at most 1 % are above it; infinity if there is none."""
    index = bisect_left(range(len(BOUNDARIES)), 1, key=lambda index: upper(tail[index + 1], tail[0]) <= TAIL)
    return BOUNDARIES[index] if index < len(BOUNDARIES) else math.inf


def _estimate(events: float, trials: float) -> float:
    return events / trials


# ---------------------------------------------------------------- sentences


def _worst(outcomes: Iterable[Outcome]) -> Outcome:
    found = set(outcomes)
    return "failed" if "failed" in found else "inconclusive" if "inconclusive" in found else "passed"


def _proven(text: str) -> _Result:
    return _Result("failed", f"{text} is proven")


def _hint(text: str, *, is_doubtful: bool) -> _Result:
    return _Result("inconclusive", f"looks {text}, which is not proven") if is_doubtful else _WITHIN


def _conclude(results: list[_Result]) -> _Result:
    """Return what all bounds of a check came to: those that are as bad as the worst of them speak."""
    outcome = _worst(result.outcome for result in results)
    texts = [result.text for result in results if result.outcome == outcome and result.text]
    return _Result(outcome, "; ".join(texts) or "within its bounds")


def _without(check: Check, text: str) -> Finding:
    return Finding(check.metric, "inconclusive", f"{check.metric}: {text}")


def _finding(
    check: Check,
    results: list[_Result],
    shown: Callable[[float], str],
    canary: tuple[float, float],
    stable: tuple[float, float] | None = None,
) -> Finding:
    """`shown`: how a value is written. Of each arm the estimate and how many samples it rests on."""
    outcome, text = _conclude(results)
    value, samples = canary
    numbers = f"canary {shown(value)} (n={samples:,.0f})"
    if stable is not None:
        numbers += f", stable {shown(stable[0])} (n={stable[1]:,.0f})"
    sentence = f"{check.metric} {numbers}: {text}"
    return Finding(check.metric, outcome, sentence, int(samples), value, None if stable is None else stable[0])


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"


def _milliseconds(ms: float) -> str:
    return f"{ms:g} ms" if ms < math.inf else f"over {BOUNDARIES[-1]:,} ms"


def _relative(vs_stable: float, worse: Literal["above", "below"]) -> str:
    """Say what breaks a bound that is relative to stable."""
    if not vs_stable:
        return f"{worse} stable"
    side = "above" if vs_stable > 0 else "below"
    return f"{'more' if side == worse else 'less'} than {abs(100 * vs_stable):.4g} % {side} stable"
