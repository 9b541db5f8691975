"""The breaker: examples of each turn, then random fleets against a twin that keeps every sample."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant
from scheduler.core.breaker import PROBE, REST_MS, Breaker, Condition, Sample

PANIC = Condition("panic", counts=True)
DRAIN = Condition("access-1 drains", counts=False)


def step(
    breaker: Breaker, at: int, *, told: int = 0, verified: int = 0, away: int = 0, why: Condition | None = None
) -> str:
    breaker.step(Sample(Instant(at), told, verified, away), why)
    return breaker.state


def opened() -> Breaker:
    breaker = Breaker()
    step(breaker, 0, why=PANIC)
    return breaker


def test_it_is_closed_at_first_and_bounds_nothing():
    """Nothing is wrong with a plan that told nobody."""
    breaker = Breaker()
    assert step(breaker, 0) == step(breaker, 60_000) == "closed"
    assert (breaker.allowance, breaker.reason, breaker.openings) == (None, "", 0)


def test_a_condition_opens_it_at_once_and_holds_it():
    """B1, B2: and while another stands it is the reason."""
    breaker = Breaker()
    breaker.spent(Instant(0), 500)
    assert step(breaker, 0, why=PANIC) == "open"
    assert (breaker.allowance, breaker.reason, breaker.openings) == (0, "panic", 1)
    assert step(breaker, REST_MS - 1) == "open"
    assert step(breaker, REST_MS, why=DRAIN) == "open"
    assert (breaker.reason, breaker.openings) == ("access-1 drains", 1)
    assert step(breaker, REST_MS + 1) == "probing"


def test_what_ends_by_itself_does_not_count():
    """B4: or each drain of a rolling restart would be one of three."""
    breaker = Breaker()
    assert step(breaker, 0, why=DRAIN) == "open"
    assert breaker.openings == 0


def test_a_good_batch_closes_it_10_s_after_its_last():
    """B4: and what was before is forgotten."""
    breaker = opened()
    step(breaker, 15_000)
    assert breaker.allowance == PROBE
    breaker.spent(Instant(15_000), 15)
    step(breaker, 15_500, told=15)
    breaker.spent(Instant(15_500), 8)
    breaker.spent(Instant(15_500), -3)
    assert breaker.allowance == 0
    for at in range(16_000, 26_000, 500):
        assert step(breaker, at, told=20, verified=18) == "probing"
    assert step(breaker, 26_000, told=20, verified=18) == "closed"
    assert breaker.openings == 0


def test_a_batch_that_nobody_was_told_is_still_to_come():
    """However long it takes until somebody can be told; an order that was taken back told nobody."""
    breaker = opened()
    step(breaker, 15_000)
    breaker.spent(Instant(15_000), 5)
    breaker.spent(Instant(15_000), -5)
    breaker.spent(Instant(15_000), 0)
    assert step(breaker, 90_000) == "probing"
    assert breaker.allowance == PROBE


def test_a_bad_batch_opens_it_again():
    """B3: 17 of 20 are fewer than 90 %, whatever went well before."""
    breaker = Breaker()
    step(breaker, 0, told=0)
    step(breaker, 1_000, told=5_000, verified=5_000, why=PANIC)
    assert step(breaker, 16_000, told=5_000, verified=5_000) == "probing"
    breaker.spent(Instant(16_000), 20)
    step(breaker, 16_500, told=5_020, verified=5_000)
    assert step(breaker, 26_499, told=5_020, verified=5_017) == "probing"
    assert step(breaker, 26_500, told=5_020, verified=5_017) == "open"
    assert breaker.reason == "only 17 of 20 clients arrived within 10 s"
    assert breaker.openings == 2


def test_a_condition_opens_it_while_it_probes():
    """B3."""
    breaker = opened()
    step(breaker, 15_000)
    assert step(breaker, 15_500, why=PANIC) == "open"
    assert (breaker.openings, breaker.allowance) == (2, 0)


def test_clients_may_take_10_s_and_fewer_than_20_are_not_judged():
    """Nobody is missed before the time is over."""
    breaker = Breaker()
    step(breaker, 0)
    assert step(breaker, 1_000, told=19) == "closed"
    assert step(breaker, 11_500, told=500) == "closed"
    assert step(breaker, 21_499, told=500, verified=19) == "closed"
    assert step(breaker, 21_500, told=500, verified=449) == "open"


def test_arrivals_of_an_hour_ago_hide_nothing():
    """What is older than a minute is not looked at."""
    breaker = Breaker()
    for at in range(0, 3_600_000, 5_000):
        assert step(breaker, at, told=at, verified=at) == "closed"
    for at in range(3_600_000, 3_620_000, 5_000):
        step(breaker, at, told=at, verified=3_595_000)
    assert breaker.state == "open"


def test_doors_that_turn_newcomers_away_open_it():
    """More than a tenth of those who were told, and ten at least."""
    for told, away, expected in ((50, 9, "closed"), (50, 10, "open"), (100, 10, "closed"), (100, 11, "open")):
        breaker = Breaker()
        step(breaker, 0, away=7)
        assert step(breaker, 2_000, told=told, verified=told, away=7 + away) == expected
    assert breaker.reason == "the targets turned 11 clients away while 100 were told"


def test_an_operator_resets_it():
    """B4: closed, and nothing remembered."""
    breaker = opened()
    breaker.reset()
    assert (breaker.state, breaker.openings, breaker.allowance) == ("closed", 0, None)
    assert step(breaker, 1_000) == "closed"


class BreakerAgainstHistory(RuleBasedStateMachine):
    """The twin keeps all samples and computes anew what should be wrong; it knows the states from the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0
        self.told = self.verified = self.away = self.batch = 0
        self.opened_at: int | None = None
        self.history: list[tuple[int, int, int, int]] = []

    @rule(count=st.integers(0, 60))
    def tell(self, count: int) -> None:
        allowance = self.breaker.allowance
        count = count if allowance is None else min(count, allowance)
        self.told += count
        self.batch += count
        self.breaker.spent(Instant(self.now), count)
        assert self.breaker.state == "closed" or self.batch <= PROBE, "B1"

    @rule(percent=st.sampled_from([0, 50, 100]), away=st.sampled_from([0, 0, 0, 1, 20]))
    def arrive(self, percent: int, away: int) -> None:
        self.verified += (self.told - self.verified) * percent // 100
        self.away += away

    def is_wrong(self) -> bool:
        """Judge by all samples since the batch began, a minute at most."""
        seen = [sample for sample in self.history if sample[0] >= self.now - 60_000]
        past = [sample for sample in seen if sample[0] <= self.now - 10_000] or seen[:1]
        sent, came = past[-1][1] - seen[0][1], self.verified - seen[0][2]
        away = self.away - past[-1][3]
        return (sent >= 20 and came < 0.9 * sent) or (away >= 10 and away > 0.1 * (self.told - past[-1][1]))

    @rule(ms=st.integers(100, 6_000), condition=st.sampled_from([None, None, None, None, PANIC, DRAIN]))
    def step(self, ms: int, condition: Condition | None) -> None:
        self.now += ms
        before, openings = self.breaker.state, self.breaker.openings
        self.history.append((self.now, self.told, self.verified, self.away))
        wrong = condition is not None or (before != "open" and self.is_wrong())
        step(self.breaker, self.now, told=self.told, verified=self.verified, away=self.away, why=condition)
        after = self.breaker.state
        if before == "open":
            assert self.opened_at is not None
            is_rested = self.now - self.opened_at >= REST_MS and condition is None
            assert after == ("probing" if is_rested else "open"), "B2"
        else:
            assert (after == "open") is wrong, "B3"
        if after == "closed" and before == "probing":
            assert self.batch > 0
            assert self.breaker.openings == 0, "B4"
        elif after == "open" and before != "open":
            self.opened_at = self.now
            assert self.breaker.openings == openings + (condition is not DRAIN), "B4"
        if after != before:
            self.batch = 0
            if after == "probing":
                self.history = self.history[-1:]

    @invariant()
    def it_allows_what_its_state_does(self) -> None:
        """B1."""
        expected = {"closed": None, "open": 0, "probing": PROBE - self.batch}[self.breaker.state]
        assert self.breaker.allowance == expected, "B1"


TestBreakerAgainstHistory = BreakerAgainstHistory.TestCase
TestBreakerAgainstHistory.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
