"""Buckets: golden vectors of flagd's own evaluator, the size of shares, and the independence of seeds."""

from __future__ import annotations

import cbor2
import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from scheduler.core.buckets import BUCKETS, bucket

KEYS = [f"user-{number}" for number in range(2_000)]


@pytest.mark.spec("AL-05")
@pytest.mark.parametrize("percent", [1, 10, 50, 12.5])
def test_every_key_is_in_the_arm_that_flagd_puts_it_in(percent: float):
    """Weights in thousandths of a percent add up to our number of buckets, so that flagd's are the same."""
    seed = f"access-{percent}"
    weight = round(percent * 1_000)
    shares = [["canary", weight], ["stable", BUCKETS - weight]]
    flag = {
        "state": "ENABLED",
        "variants": {"canary": True, "stable": False},
        "defaultVariant": "stable",
        "targeting": {"fractional": [{"cat": [seed, {"var": "targetingKey"}]}, *shares]},
    }
    flagd = FlagdCore()
    flagd.set_flags({"flags": {"rollout": flag}})
    for key in KEYS:
        answer = flagd.resolve_boolean_value("rollout", False, EvaluationContext(key))
        assert answer.value is (bucket(seed, key) < weight), key


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 2**31 - 1))
def test_a_bucket_is_the_hash_of_the_encoded_text_times_the_total(seed: str, key: str, total: int):
    """With a CBOR library as the twin."""
    number = mmh3.hash(cbor2.dumps(seed + key, canonical=True), 0, signed=False)
    assert bucket(seed, key, total) == number * total // 2**32 < total


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_lengths_are_encoded_in_as_few_bytes_as_possible(size: int):
    """At each size where one more is needed."""
    key = "k" * size
    assert bucket("", key) == mmh3.hash(cbor2.dumps(key, canonical=True), 0, signed=False) * BUCKETS >> 32


def test_a_key_that_is_no_unicode_has_a_bucket():
    """Half a character, as a careless client may send it."""
    assert 0 <= bucket("seed", "\ud800") < BUCKETS


def test_golden_buckets_stay():
    """A change would move live users between arms."""
    keys = ["alice", "bob", "用户", "", "u" * 300]
    assert [bucket("access-2.4.0", key) for key in keys] == [94_469, 98_849, 59_897, 29_349, 63_918]


def test_shares_are_as_large_as_they_say():
    """Within four standard deviations of a fair draw, with a fixed seed."""
    numbers = [bucket("fair", f"u{number}") for number in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        within = sum(number < share * BUCKETS for number in numbers)
        assert abs(within - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_two_seeds_choose_independently():
    """Of those in one half, half are in the other's: not the same users are always first."""
    keys = [f"u{number}" for number in range(20_000)]
    first = {key for key in keys if bucket("rollout-1", key) < BUCKETS // 2}
    second = {key for key in keys if bucket("rollout-2", key) < BUCKETS // 2}
    expected = len(first) * len(second) / len(keys)
    assert abs(len(first & second) - expected) < 4 * (20_000 / 16) ** 0.5
