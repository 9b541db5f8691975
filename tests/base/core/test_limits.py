"""Limits: tables, then buckets against exact fractions and counts against a multiset."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from base.clock import Instant
from base.core.limits import SLOTS, Counts, KeyedBuckets, Places, TokenBucket, address_key


class Twin:
    """A bucket as the textbook has it: tokens that grow with time, as exact fractions."""

    def __init__(self, rate: Fraction, burst: int, now: int) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = Fraction(burst)
        self.at = now

    def at_instant(self, now: int) -> Fraction:
        return min(Fraction(self.burst), self.tokens + self.rate * (now - self.at) / 1_000)

    def take(self, now: int) -> int:
        self.tokens, self.at = self.at_instant(now), now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        missing = (1 - self.tokens) * 1_000 / self.rate
        return -(-missing.numerator // missing.denominator)


THOUSANDTHS = st.one_of(st.integers(1, 3_000), st.integers(1, 3_000_000))
STEPS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 3_000)), max_size=60)


# ---------------------------------------------------------------- one bucket


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate():
    """I1."""
    bucket = TokenBucket(rate=2, burst=3)
    assert [bucket.take(Instant(1_000)) for _ in range(5)] == [0, 0, 0, 500, 500]
    assert [bucket.take(Instant(at)) for at in (1_499, 1_500, 1_501, 2_000)] == [1, 0, 499, 0]


def test_a_bucket_fills_to_its_burst_and_no_further():
    """I1: an hour of silence is worth no more than the time of filling."""
    bucket = TokenBucket(rate=10, burst=2)
    for at in (0, 3_600_000):
        assert [bucket.take(Instant(at)) for _ in range(3)] == [0, 0, 100]


def test_rates_below_one_a_second_are_exact():
    """One in three seconds is rounded to a thousandth a second, and counted exactly from there."""
    bucket = TokenBucket(rate=1 / 3, burst=1)
    assert bucket.take(Instant(0)) == 0
    assert bucket.take(Instant(0)) == 3_004
    assert bucket.take(Instant(3_003)) == 1
    assert bucket.take(Instant(3_004)) == 0


def test_a_rate_of_zero_is_no_limit():
    """And keeps nothing."""
    bucket = TokenBucket(rate=0, burst=1)
    keyed = KeyedBuckets(rate=0, burst=1, keys_max=1)
    assert {bucket.take(Instant(0)) for _ in range(100)} == {0}
    assert {keyed.take(f"k{number}", Instant(0)) for number in range(100)} == {0}
    assert len(keyed) == 0


@pytest.mark.parametrize(("rate", "burst"), [(-1, 1), (0.000_1, 1), (1, 0)])
def test_limits_that_mean_nothing_are_our_own_bug(rate: float, burst: int):
    """The configuration refuses them before."""
    with pytest.raises(AssertionError):
        TokenBucket(rate, burst)
    with pytest.raises(AssertionError):
        KeyedBuckets(rate, burst, keys_max=1)


@given(THOUSANDTHS, st.integers(1, 20), STEPS)
def test_a_bucket_answers_as_exact_fractions_do(thousandths: int, burst: int, steps: list[int]):
    """I1, over any pauses; alone and under a key."""
    now = 5
    twin = Twin(Fraction(thousandths, 1_000), burst, now)
    bucket = TokenBucket(thousandths / 1_000, burst)
    keyed = KeyedBuckets(thousandths / 1_000, burst, keys_max=1)
    for step in steps:
        now += step
        expected = twin.take(now)
        assert bucket.take(Instant(now)) == expected
        assert keyed.wait("k", Instant(now)) == expected
        assert keyed.take("k", Instant(now)) == expected
        keyed.check_invariants()


@given(THOUSANDTHS, st.integers(1, 20), STEPS)
def test_the_time_that_is_told_is_when_the_next_token_is_there(thousandths: int, burst: int, steps: list[int]):
    """Retry-After: then it is, and a ms before it is not."""
    now = 0
    bucket = TokenBucket(thousandths / 1_000, burst)
    for step in steps:
        now += step
        wait = bucket.take(Instant(now))
        if wait:
            assert bucket.take(Instant(now + wait - 1)) == 1
            assert bucket.take(Instant(now + wait)) == 0
            now += wait


# ---------------------------------------------------------------- buckets by key


def test_each_key_has_its_own_bucket():
    """One that asks too much costs the others nothing."""
    buckets = KeyedBuckets(rate=1, burst=1, keys_max=10)
    assert [buckets.take(key, Instant(0)) for key in "aab"] == [0, 1_000, 0]


def test_asking_how_long_to_wait_takes_nothing():
    """Nor does it make a key known."""
    buckets = KeyedBuckets(rate=1, burst=1, keys_max=10)
    assert [buckets.wait("a", Instant(0)) for _ in range(3)] == [0, 0, 0]
    assert len(buckets) == 0
    buckets.take("a", Instant(0))
    assert [buckets.wait("a", Instant(at)) for at in (0, 0, 999, 1_000, 2_000)] == [1_000, 1_000, 1, 0, 0]


def test_full_buckets_are_forgotten_by_themselves():
    """Whoever asks next, or the same key again."""
    buckets = KeyedBuckets(rate=1, burst=1, keys_max=10)
    for key in "abc":
        buckets.take(key, Instant(0))
    buckets.take("d", Instant(1_050))
    assert len(buckets) == 1


def test_a_full_bucket_is_forgotten_rather_than_one_with_something_missing():
    """I3: though it was used last."""
    buckets = KeyedBuckets(rate=1, burst=10, keys_max=2)
    for _ in range(10):
        buckets.take("hog", Instant(0))
    buckets.take("late", Instant(1))
    buckets.take("new", Instant(1_500))
    assert buckets.take("hog", Instant(1_500)) == 0
    assert buckets.take("hog", Instant(1_500)) == 500


def test_if_none_is_full_the_closest_to_it_is_forgotten():
    """I3: newcomers are let in, and who is far over its limit stays known."""
    buckets = KeyedBuckets(rate=1, burst=10, keys_max=2)
    for _ in range(10):
        buckets.take("hog", Instant(0))
    for number in range(1_000):
        assert buckets.take(f"flood{number}", Instant(0)) == 0
        assert len(buckets) == 2
    assert buckets.take("hog", Instant(0)) == 1_000


def test_a_key_that_goes_on_asking_is_found_where_it_moved_to():
    """I4: its place on the wheel is that of its first token, its filling is much later."""
    buckets = KeyedBuckets(rate=1, burst=10, keys_max=2)
    for at in range(5):
        buckets.take("slow", Instant(at))
    buckets.take("other", Instant(0))
    buckets.take("other", Instant(0))
    buckets.take("new", Instant(5))
    assert len(buckets) == 2
    assert [buckets.take("slow", Instant(5)) for _ in range(6)] == [0, 0, 0, 0, 0, 995]


class BucketsAgainstTwins(RuleBasedStateMachine):
    """The twins are never forgotten, unless the buckets may forget: then it must have been right."""

    def __init__(self) -> None:
        super().__init__()
        self.setup(1_000, 1, 3)

    @initialize(thousandths=THOUSANDTHS, burst=st.integers(1, 6), keys_max=st.integers(1, 5))
    def setup(self, thousandths: int, burst: int, keys_max: int) -> None:
        self.now = 7
        self.rate = Fraction(thousandths, 1_000)
        self.burst = burst
        self.keys_max = keys_max
        self.buckets = KeyedBuckets(thousandths / 1_000, burst, keys_max)
        self.twins: dict[str, Twin] = {}

    @property
    def tick_ms(self) -> int:
        filling_ms = -(-self.burst * 1_000 * self.rate.denominator // self.rate.numerator)
        return -(-filling_ms // (SLOTS - 2))

    def filling(self, twin: Twin) -> int:
        """The first tick at which it is full, or was."""
        at = (twin.at + (self.burst - twin.tokens) * 1_000 / self.rate) / self.tick_ms
        return -(-at.numerator // at.denominator)

    @rule(key=st.sampled_from("abcdefgh"), repeat=st.integers(1, 7))
    def take(self, key: str, repeat: int) -> None:
        for _ in range(repeat):
            before = set(self.buckets._full_at)
            fillings = {held: self.filling(self.twins[held]) for held in before}
            answer = self.buckets.take(key, Instant(self.now))
            forgotten = before - set(self.buckets._full_at)
            pushed_out = {held for held in forgotten if fillings[held] > self.now // self.tick_ms}
            if pushed_out:
                assert key not in before, "I3: only a newcomer pushes out"
                assert len(before) == self.keys_max, "I3: only when there is no room"
                assert forgotten == pushed_out, "I3: only when none is full"
                assert len(pushed_out) == 1, "I3: only one"
                assert fillings[min(pushed_out)] == min(fillings.values()), "I3: the closest to full"
            for held in pushed_out:
                self.twins[held] = Twin(self.rate, self.burst, self.now)
            assert answer == self.twins.setdefault(key, Twin(self.rate, self.burst, self.now)).take(self.now), "I1"

    @rule(ms=st.integers(0, 2_000))
    def pass_time(self, ms: int) -> None:
        self.now += ms

    @precondition(lambda self: self.twins)
    @rule(percent=st.integers(0, 120))
    def pass_part_of_a_filling(self, percent: int) -> None:
        self.now += int(self.burst * 1_000 / self.rate * percent / 100)

    @invariant()
    def it_is_bounded_and_in_order(self) -> None:
        self.buckets.check_invariants()


TestBucketsAgainstTwins = BucketsAgainstTwins.TestCase
TestBucketsAgainstTwins.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- counts


def test_as_many_as_the_limit_may_be_there():
    """I5: one more when one has left, and each key for itself."""
    counts = Counts(2)
    for _ in range(2):
        assert not counts.is_full("a")
        counts.enter("a")
    assert counts.is_full("a")
    assert not counts.is_full("b")
    counts.leave("a")
    assert not counts.is_full("a")


def test_a_key_that_nobody_has_is_not_kept():
    """I5: what is held is bounded by who is there."""
    counts = Counts(2)
    for _ in range(2):
        counts.enter("a")
    for held in (1, 0):
        counts.leave("a")
        assert len(counts) == held


def test_a_limit_of_zero_is_none():
    """And keeps nothing."""
    counts = Counts(0)
    for _ in range(100):
        assert not counts.is_full("a")
        counts.enter("a")
    assert len(counts) == 0
    counts.leave("a")


def test_leaving_without_having_entered_is_our_own_bug():
    """It would let in one too many later."""
    counts = Counts(1)
    counts.enter("a")
    with pytest.raises(KeyError):
        counts.leave("b")


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_counts_are_those_of_a_multiset(limit: int, acts: list[tuple[str, bool]]):
    """I5."""
    counts = Counts(limit)
    twin: Counter[str] = Counter()
    for key, is_entry in acts:
        if is_entry:
            counts.enter(key)
            twin[key] += 1
        elif twin[key]:
            counts.leave(key)
            twin[key] -= 1
        assert len(counts) == len(+twin)
        assert counts.is_full(key) is (twin[key] >= limit)


# ---------------------------------------------------------------- places


@given(st.integers(1, 7), st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), max_size=60))
def test_nobody_takes_more_than_its_share_of_the_places(limit: int, acts: list[tuple[str | None, bool]]):
    """I6: half of them, rounded up; who is not known yet is bounded by the sum alone."""
    places = Places(limit)
    twin: Counter[str | None] = Counter()
    for key, is_arrival in acts:
        if is_arrival:
            has_room = twin.total() < limit and (key is None or 2 * twin[key] < limit)
            assert places.take(key) is has_room
            twin[key] += has_room
        elif twin[key]:
            places.leave(key)
            twin[key] -= 1
        assert len(places) == twin.total()


def test_a_place_that_nobody_has_cannot_be_given_back():
    """It would let in one too many later."""
    with pytest.raises(AssertionError):
        Places(1).leave(None)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:0DB8:0000:0001:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("unix", "unix"),
        ("192.0.2.1:80", "192.0.2.1:80"),
    ],
)
def test_an_address_has_the_key_of_its_subscriber(host: str, key: str):
    """All of IPv4, 64 bits of IPv6, and what is no address as it is."""
    assert address_key(host) == key


@given(st.ip_addresses(v=6).filter(lambda address: not address.ipv4_mapped), st.integers(0, 127))
def test_addresses_share_a_key_if_they_differ_in_the_last_64_bits_only(address: IPv6Address, bit: int):
    """One bit changed, anywhere."""
    other = IPv6Address(int(address) ^ 1 << bit)
    shares = address_key(str(address)) == address_key(str(other))
    assert shares is (bit < 64) or other.ipv4_mapped is not None
