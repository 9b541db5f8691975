"""Conversation ids of pairs: a table of edges, exhaustive small numbers, random pairs, a mixed population."""

from __future__ import annotations

import sqlite3
from itertools import combinations_with_replacement
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im.core.pair_ids import COUNTED_MAX, pair_cid, users_of

numbers = st.integers(1, 2**32 - 1) | st.integers(1, 50) | st.integers(2**31 - 3, 2**31 + 3)
no_numbers = st.text(max_size=12) | st.sampled_from(["alice", "07", "+7", "7 ", "²", "\u0667"])
names = no_numbers | st.integers(0, 2**70).map(str)


def is_numbered(user: str) -> bool:
    """The twin: a user is numbered if writing the number gives the key."""
    return any(user == str(int(user)) for _ in [0] if user.isascii() and user.isdigit()) and 0 < int(user) < 2**32


@pytest.mark.spec("ID-05", "CI-01")
def test_the_smaller_number_stands_above_the_greater():
    """The article's own rule."""
    assert pair_cid("5", "3") == pair_cid("3", "5") == 3 << 32 | 5
    assert pair_cid("9", "10") == 9 << 32 | 10, "by number, not by text"
    assert pair_cid("8", "8") == 8 << 32 | 8, "with oneself"


@pytest.mark.spec("CI-01")
@pytest.mark.parametrize(
    ("one", "other", "cid"),
    [
        ("1", "1", (1 << 32) + 1),
        ("1", "4294967295", (1 << 32) + 0xFFFF_FFFF),
        ("2147483647", "2147483648", (2**31 - 1) << 32 | 2**31),
        ("2147483647", "4294967295", 2**63 - 1),
        # The smaller one would set the sign.
        ("2147483648", "2147483648", None),
        ("2147483648", "4294967295", None),
        # A number of more than 32 bits, and what looks like one of 32.
        ("1", "4294967296", None),
        ("1", "18446744073709551615", None),
        ("1", "99999999999999999999999999999999", None),
        # No numbers as one writes them.
        ("0", "1", None),
        ("1", "", None),
        ("1", "01", None),
        ("1", "alice", None),
        ("1", "-2", None),
        ("1", "+2", None),
        ("1", " 2", None),
        ("1", "1_0", None),
        ("1", "²", None),
        ("1", "\u0662", None),
    ],
)
def test_what_does_not_fit_is_counted(one: str, other: str, cid: int | None):
    """Both ways around."""
    assert pair_cid(one, other) == pair_cid(other, one) == cid


@pytest.mark.spec("CI-01")
def test_small_numbers_have_an_id_for_each_pair():
    """I1, I2 for every pair of the first 150 users."""
    pairs = list(combinations_with_replacement([str(number) for number in range(1, 151)], 2))
    cids = [pair_cid(one, other) for one, other in pairs]
    assert len(set(cids)) == len(pairs)
    assert [users_of(cid) for cid in cids if cid is not None] == pairs


@pytest.mark.spec("ID-05", "CI-01")
@given(one=numbers, other=numbers)
def test_an_id_gives_its_pair_back(one: int, other: int):
    """I1, I2, I3: symmetric, without collisions, positive in 64 bits, and not one of the counter's."""
    cid = pair_cid(str(one), str(other))
    assert cid == pair_cid(str(other), str(one))
    if min(one, other) >= 2**31:
        assert cid is None
    else:
        assert cid is not None
        assert COUNTED_MAX < cid < 2**63
        assert users_of(cid) == (str(min(one, other)), str(max(one, other)))


@given(one=names, other=names)
def test_any_keys_have_an_id_only_if_both_are_numbers(one: str, other: str):
    """Against the twin; and nobody gets into a conversation by another spelling."""
    cid = pair_cid(one, other)
    fits = is_numbered(one) and is_numbered(other) and min(int(one), int(other)) < 2**31
    assert (cid is not None) == fits
    assert cid is None or set(users_of(cid) or ()) == {one, other}


@given(cid=st.integers(-(2**63), 2**64) | st.integers(0, COUNTED_MAX) | numbers.map(lambda number: number << 32 | 7))
def test_only_computed_ids_have_a_pair(cid: int):
    """Those of the counter have none, nor has a number that the rule never gives."""
    pair = users_of(cid)
    assert pair is None or pair_cid(*pair) == cid
    if 0 <= cid <= COUNTED_MAX:
        assert pair is None


@pytest.mark.spec("CI-01")
def test_many_random_pairs_do_not_meet():
    """Forty thousand, half of them of near numbers, where arithmetic would fail first; each symmetric."""
    random = Random(7)
    seen: dict[int, tuple[int, int]] = {}
    for number in range(40_000):
        bound = 2**32 if number % 2 else 2**12
        pair = random.randrange(1, bound), random.randrange(1, bound)
        cid = pair_cid(str(pair[0]), str(pair[1]))
        if cid is not None:
            assert seen.setdefault(cid, (min(pair), max(pair))) == (min(pair), max(pair))
            assert pair_cid(str(pair[1]), str(pair[0])) == cid
    assert len(seen) > 30_000


@pytest.mark.spec("CI-03")
def test_a_population_may_outgrow_32_bits_without_moving_history():
    """The migration: first 32-bit users by the rule, then larger ones too, then the rule is given up.

    The table is looked up first, by an index that is unique; what has an id keeps it.
    """
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE pair (lo TEXT, hi TEXT, cid INTEGER NOT NULL UNIQUE, PRIMARY KEY (lo, hi))")
    counted = 0

    def cid_of(one: str, other: str, *, is_special: bool) -> int:
        nonlocal counted
        pair = min(one, other), max(one, other)
        found = table.execute("SELECT cid FROM pair WHERE lo = ? AND hi = ?", pair).fetchone()
        if found is not None:
            return int(found[0])
        cid = pair_cid(one, other) if is_special else None
        if cid is None:
            counted += 1
            cid = counted
        table.execute("INSERT INTO pair VALUES (?, ?, ?)", (*pair, cid))
        return cid

    random = Random(3)
    old = [str(random.randrange(1, 2**31)) for _ in range(40)]
    new = [str(random.randrange(2**32, 2**64)) for _ in range(40)]
    asked = {
        (one, other): cid_of(one, other, is_special=is_special)
        for users, is_special in ((old, True), (old + new, True), (old + new, False))
        for one, other in [random.sample(users, 2) for _ in range(400)]
    }
    pairs = {frozenset(pair) for pair in asked}
    assert len(set(asked.values())) == len(pairs), "one id for each pair, whichever way round it was asked for"
    assert {cid_of(other, one, is_special=False) == cid for (one, other), cid in asked.items()} == {True}
    computed = [users_of(cid) for cid in asked.values() if cid > COUNTED_MAX]
    assert computed
    assert all(pair is not None and set(pair) <= set(old) for pair in computed)
    assert counted == len({cid for cid in asked.values() if cid <= COUNTED_MAX}) > 0
    table.close()
