"""Quotas: examples, then random commands against three tables of exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from base.clock import Instant
from im.core.quotas import Quotas, QuotaSettings

UNLIMITED = QuotaSettings(
    user_rate=0,
    user_burst=1,
    device_rate=0,
    device_burst=1,
    conversation_rate=0,
    conversation_burst=1,
    keys_max=100,
)


def at(ms: int) -> Instant:
    return Instant(ms)


def test_rates_of_zero_limit_nobody():
    """Any of the three may be left out."""
    quotas = Quotas(UNLIMITED)
    assert {quotas.take(at(0), "ann", "phone", 1) for _ in range(1_000)} == {0}


def test_a_user_is_limited_over_all_devices_and_conversations():
    """And whoever else sends is not."""
    quotas = Quotas(replace(UNLIMITED, user_rate=1, user_burst=2))
    answers = [quotas.take(at(0), "ann", device, cid) for device, cid in (("phone", 1), ("laptop", 2), ("", 3))]
    assert answers == [0, 0, 1_000]
    assert quotas.take(at(0), "bob", "phone", 1) == 0


def test_a_device_is_limited_for_itself():
    """Another user's of the same name is another one; a backend has none."""
    quotas = Quotas(replace(UNLIMITED, device_rate=1))
    answers = [quotas.take(at(0), "ann", device, 1) for device in ("phone", "phone", "laptop", "", "")]
    assert answers == [0, 1_000, 0, 0, 0]
    assert quotas.take(at(0), "bob", "phone", 1) == 0


def test_a_conversation_is_limited_whoever_sends():
    """One that is not known yet is not."""
    quotas = Quotas(replace(UNLIMITED, conversation_rate=1))
    assert [quotas.take(at(0), user, "phone", 7) for user in ("ann", "bob")] == [0, 1_000]
    assert [quotas.take(at(0), "ann", "phone", cid) for cid in (8, 0, 0)] == [0, 0, 0]


def test_what_is_refused_costs_nothing():
    """All or none: a conversation's limit takes nothing from the user and the device."""
    quotas = Quotas(
        replace(UNLIMITED, user_rate=0.1, user_burst=2, device_rate=0.1, device_burst=2, conversation_rate=1)
    )
    assert quotas.take(at(0), "ann", "phone", 7) == 0
    assert {quotas.take(at(0), "ann", "phone", 7) for _ in range(10)} == {1_000}
    assert quotas.take(at(0), "ann", "phone", 8) == 0
    assert quotas.take(at(0), "ann", "phone", 9) == 10_000


def test_the_longest_wait_is_told():
    """Coming again earlier would be in vain."""
    quotas = Quotas(replace(UNLIMITED, user_rate=0.5, device_rate=0.25, conversation_rate=1))
    assert [quotas.take(at(0), "ann", "phone", 7) for _ in range(2)] == [0, 4_000]
    assert quotas.take(at(3_999), "ann", "phone", 7) == 1
    assert quotas.take(at(4_000), "ann", "phone", 7) == 0


RATES = st.sampled_from([0, 250, 1_000, 3_000])
BURSTS = st.integers(1, 3)
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 100, 400, 5_000]),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from(["", "phone", "laptop"]),
        st.integers(0, 2),
    ),
    max_size=40,
)


@given(st.tuples(RATES, RATES, RATES), st.tuples(BURSTS, BURSTS, BURSTS), COMMANDS)
@settings(deadline=None, max_examples=200)
def test_commands_take_of_all_that_limit_them_or_of_none(
    rates: tuple[int, int, int], bursts: tuple[int, int, int], commands: list[tuple[int, str, str, int]]
):
    """Against tokens that grow with time; rates in thousandths."""
    quotas = Quotas(
        QuotaSettings(
            user_rate=rates[0] / 1_000,
            user_burst=bursts[0],
            device_rate=rates[1] / 1_000,
            device_burst=bursts[1],
            conversation_rate=rates[2] / 1_000,
            conversation_burst=bursts[2],
            keys_max=100,
        )
    )
    tokens: dict[Any, Fraction] = {}
    now = 5
    for pause, user, device, cid in commands:
        now += pause
        for key, there in tokens.items():
            tokens[key] = min(Fraction(bursts[key[0]]), there + Fraction(rates[key[0]] * pause, 1_000_000))
        keys = [(0, user), (1, user, device), (2, cid)]
        limiting = [key for key, is_there in zip(keys, (True, device, cid), strict=True) if is_there and rates[key[0]]]
        for key in limiting:
            tokens.setdefault(key, Fraction(bursts[key[0]]))
        waits = [-(-(1 - tokens[key]) * 1_000_000 // rates[key[0]]) for key in limiting if tokens[key] < 1]
        assert quotas.take(at(now), user, device, cid) == max(waits, default=0)
        if not waits:
            for key in limiting:
                tokens[key] -= 1
