"""Counts by issuer, against a list of all tickets that came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.issuers import Issuers


class Twin:
    """Keeps who is known by looking at everything again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: dict[str, int] = {}
        self.last: dict[str, int] = {}

    def count(self, issuer: str, number: int) -> None:
        self.last[issuer] = number
        self.counts[issuer] = self.counts.get(issuer, 0) + 1
        if len(self.counts) > self.limit:
            del self.counts[min(self.counts, key=self.last.__getitem__)]


@given(issuers=st.lists(st.sampled_from("abcdef"), max_size=60), limit=st.integers(1, 7))
def test_the_most_recent_issuers_are_counted(issuers: list[str], limit: int):
    """Who was forgotten begins anew."""
    found, twin = Issuers(limit=limit), Twin(limit)
    for number, issuer in enumerate(issuers):
        found.count(issuer)
        twin.count(issuer, number)
        found.check_invariants()
        assert found.counts() == twin.counts


def test_what_is_returned_is_a_copy():
    """A report of an earlier second does not change."""
    issuers = Issuers()
    before = issuers.counts()
    issuers.count("a")
    assert before == {}
    assert issuers.counts() == {"a": 1}


def test_nobody_known_is_no_use():
    """A limit of 0 would count nothing, silently."""
    with pytest.raises(AssertionError):
        Issuers(limit=0)
