"""Loads: what is on the way to a node against a twin that knows each client; shares against who sent how many."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from scheduler.core.load import HISTORY_MAX, SHARE_MIN, Share, Tally
from tests.scheduler.core.fleets import node

WINDOW = 10_000


class Sent(NamedTuple):
    """A client whom the scheduler sent to the node. `arrives`: None for never."""

    at: int
    arrives: int | None


class Twin:
    """One node, and everybody who was sent there."""

    def __init__(self, seed: int, *, abandons: float = 0.0, late: float = 0.0, strangers: float = 0.0) -> None:
        self.dice = Random(seed)
        self.abandons, self.late, self.strangers = abandons, late, strangers
        self.tally = Tally()
        self.sent: list[Sent] = []
        self.arrived_unasked = 0
        self.life = 1
        self.now = 1_000
        self.report = node("a", incarnation=1, reported_at=0)
        assert self.pending() == 0

    def assign(self, count: int) -> None:
        for _ in range(count):
            delay = self.dice.randrange(WINDOW)
            if self.dice.random() < self.late:
                delay += 3 * WINDOW
            arrives = None if self.dice.random() < self.abandons else self.now + delay
            self.sent.append(Sent(self.now, arrives))
            self.tally.assigned += 1
            self.arrived_unasked += self.dice.random() < self.strangers

    def arrived(self) -> int:
        return sum(one.arrives is not None and one.arrives <= self.now for one in self.sent) + self.arrived_unasked

    def reports(self) -> None:
        self.report = node("a", incarnation=self.life, reported_at=self.now, admitted=self.arrived())

    def restarts(self) -> None:
        """Nobody of before is there, and nobody of before arrives any more."""
        self.life += 1
        self.sent.clear()
        self.arrived_unasked = 0
        self.reports()

    def pending(self) -> int:
        found = self.tally.pending(self.report, self.now, WINDOW)
        self.tally.check_invariants()
        return found

    def on_the_way(self) -> int:
        """Sent and not in the last report, though they will arrive."""
        seen = self.report.reported_at
        return sum(one.arrives is not None and one.arrives > seen for one in self.sent)

    def assigned_since(self, at: int) -> int:
        return sum(one.at > at for one in self.sent)


@pytest.mark.parametrize("seed", range(20))
def test_where_everybody_arrives_in_time_it_is_exactly_those_on_the_way(seed: int) -> None:
    """I1, with reports that come seldom or often, and are read again and again."""
    twin = Twin(seed)
    for _ in range(150):
        twin.now += twin.dice.choice((0, 1, 500, 4_000))
        twin.assign(twin.dice.choice((0, 0, 1, 5)))
        if twin.dice.random() < 0.4:
            twin.reports()
        assert twin.pending() == twin.on_the_way()


@pytest.mark.parametrize("seed", range(20))
def test_who_never_arrives_is_written_off(seed: int) -> None:
    """Nobody on the way is forgotten, and nobody counts who was sent before the window; restarts begin anew."""
    twin = Twin(seed, abandons=0.3)
    looked_at = [0]
    for _ in range(150):
        twin.now += twin.dice.choice((0, 1, 500, 4_000))
        twin.assign(twin.dice.choice((0, 0, 1, 5)))
        if twin.dice.random() < 0.4:
            twin.reports()
        if twin.dice.random() < 0.05:
            twin.restarts()
        # It knows how many it had assigned by then only where it looked.
        known = max(at for at in looked_at if at <= max(0, twin.report.reported_at - WINDOW))
        assert twin.on_the_way() <= twin.pending() <= twin.assigned_since(known)
        looked_at.append(twin.now)
    twin.now += 60_000
    twin.reports()
    assert twin.pending() == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_arrives_it_settles(seed: int) -> None:
    """Late ones, strangers who fell back to this node: when it is quiet for a while nobody is pending."""
    twin = Twin(seed, abandons=0.2, late=0.2, strangers=0.2)
    for _ in range(100):
        twin.now += twin.dice.choice((0, 1, 500, 4_000))
        twin.assign(twin.dice.choice((0, 0, 1, 5)))
        if twin.dice.random() < 0.4:
            twin.reports()
        assert 0 <= twin.pending() <= len(twin.sent)
    for _ in range(3):
        twin.now += 5 * WINDOW
        twin.reports()
        twin.pending()
    assert twin.pending() == 0
    twin.assign(2)
    assert twin.pending() == 2


def test_of_a_node_that_does_not_report_little_is_remembered() -> None:
    """All that was assigned since counts, for as long as it may take; memory is bounded."""
    tally = Tally()
    silent = node("a", reported_at=20_000)
    for number in range(500):
        assert tally.pending(silent, 20_000 + number * 100, WINDOW) == number
        tally.assigned += 1
        tally.check_invariants()
    assert len(tally._history) == HISTORY_MAX


def test_a_node_that_is_new_to_this_scheduler_owes_nothing() -> None:
    """Whatever it let in before; one that forgot this scheduler's tickets is believed."""
    tally = Tally()
    assert tally.pending(node("a", admitted=50, reported_at=100), 100, WINDOW) == 0
    tally.assigned += 3
    assert tally.pending(node("a", admitted=51, reported_at=200), 200, WINDOW) == 2
    assert tally.pending(node("a", admitted=0, reported_at=300), 300, WINDOW) == 3
    assert tally.pending(node("a", admitted=0, reported_at=90_000), 90_000, WINDOW) == 0


# ---------------------------------------------------------------- shares


def learned(rates: list[int], seconds: int, seed: int, *, settle_ms: int = 0) -> list[list[float]]:
    """Return each scheduler's share in each second, when they send so many a second to three nodes."""
    dice = Random(seed)
    shares = [Share(settle_ms=settle_ms) for _ in rates]
    admitted = [[0] * len(rates) for _ in range(3)]
    found = []
    for second in range(seconds):
        for issuer, rate in enumerate(rates):
            for _ in range(rate):
                admitted[dice.randrange(3)][issuer] += 1
        found.append(
            [
                share.observe(
                    tuple(
                        node(f"n{place}", admitted=counts[issuer], admitted_of_all=sum(counts))
                        for place, counts in enumerate(admitted)
                    ),
                    second * 1_000,
                    len(rates),
                )
                for issuer, share in enumerate(shares)
            ]
        )
    return found


@pytest.mark.parametrize("rates", [[40, 40, 40], [80, 20, 20], [100, 1, 19]])
def test_shares_become_what_each_sends(rates: list[int]) -> None:
    """I2: from equal ones; and their sum is about one."""
    found = learned(rates, 90, 1)
    assert found[0] == pytest.approx([1 / 3] * 3)
    for share, rate in zip(found[-1], rates, strict=True):
        assert abs(share - rate / sum(rates)) < 0.02
    assert all(0.98 < sum(shares) < 1.02 for shares in found)


def test_before_its_clients_can_have_arrived_a_scheduler_takes_an_equal_share() -> None:
    """Others' clients arrive from the first moment on; it does not conclude that it sends nobody."""
    found = [shares[0] for shares in learned([0, 100], 20, 1, settle_ms=10_000)]
    assert found[:10] == [0.5] * 10
    assert found[10] < 0.3
    assert Share(settle_ms=0).observe((), 5, 0) == 1.0


def test_a_share_is_never_zero_nor_above_one() -> None:
    """I2: a node that restarts or forgets issuers tells nothing; what is alone is all."""
    share = Share(settle_ms=0)
    for second in range(200):
        of_all = 10_000 * second
        assert SHARE_MIN <= share.observe((node("a", admitted_of_all=of_all),), second * 1_000, 8) <= 1
    assert share.observe((node("a", admitted_of_all=of_all),), 200_000, 8) == SHARE_MIN
    assert share.observe((node("a", incarnation=2, admitted=9, admitted_of_all=9),), 200_000, 8) == SHARE_MIN
    alone = Share(settle_ms=0)
    for second, of_all in enumerate((100, 50, 80)):
        assert alone.observe((node("a", admitted=second * 40, admitted_of_all=of_all),), second * 1_000, 1) == 1.0


def test_another_number_of_schedulers_is_learned_anew() -> None:
    """What was before says nothing of who takes over."""
    share = Share(settle_ms=0)
    for second in range(50):
        seen = node("a", admitted=second, admitted_of_all=second * 100)
        share.observe((seen,), second * 1_000, 4)
    assert share.observe((seen,), 50_000, 4) < 0.05
    assert share.observe((seen,), 50_000, 2) == 0.5
