"""Ranges of versions: tables, and the orderings of a twin that compares tuples."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.versions import is_in_range, parse_range, parse_version

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq}
TRIPLES = st.tuples(*[st.integers(0, 3)] * 3)


def is_in(version: str, version_range: str) -> bool:
    bounds = parse_range(version_range)
    assert not isinstance(bounds, str), bounds
    parsed = parse_version(version)
    assert parsed is not None
    return is_in_range(parsed, bounds)


@given(TRIPLES, st.lists(st.tuples(st.sampled_from(sorted(SIGNS)), TRIPLES), min_size=1, max_size=3), st.data())
@settings(max_examples=60)
def test_a_version_is_in_a_range_if_it_fulfils_every_bound(
    version: tuple[int, int, int], bounds: list[tuple[str, tuple[int, int, int]]], data: st.DataObject
):
    """Whatever stands between the bounds."""
    separator = data.draw(st.sampled_from([" ", ", ", ",", "  "]))
    blank = data.draw(st.sampled_from(["", " "]))
    version_range = separator.join(f"{sign}{blank}{'.'.join(map(str, bound))}" for sign, bound in bounds)
    twin = all(SIGNS[sign](version, bound) for sign, bound in bounds)
    assert is_in(".".join(map(str, version)), version_range) is twin


@pytest.mark.parametrize(
    ("version", "version_range", "inside"),
    [
        ("5", "<5.0", False),
        ("4.9.9", "<5", True),
        ("5.0.0-beta", "<5.0", True),
        ("5.0.0-beta", ">=5.0.0-alpha", True),
        ("5.0.0-beta.11", ">5.0.0-beta.2", True),
        ("5.0.0+build", "=5.0.0", True),
        ("v5.1", ">=5.1", True),
        ("V5.1", ">=5.1.1", False),
        ("5.1-rc.1", "<5.1", True),
    ],
)
def test_partial_versions_are_filled_with_zeros_and_early_ones_come_before(
    version: str,
    version_range: str,
    inside: bool,  # noqa: FBT001
):
    """As semantic versions are ordered."""
    assert is_in(version, version_range) is inside


@pytest.mark.parametrize(
    "version", ["", "v", "x", "5.x", "5.1.0.7", "05.1", "5.1.0-", "-1", "5..1", " 5.1", "1." + "9" * 70, "vv5"]
)
def test_what_is_no_version_is_none(version: str):
    """Nor what is too long to be looked at."""
    assert parse_version(version) is None


@pytest.mark.parametrize(
    ("version_range", "words"),
    [
        ("", "not a range"),
        ("  ", "not a range"),
        ("5.0", "not a range"),
        ("^5.0", "not a range"),
        ("~>5.0.0", "not a range"),
        ("==5.0.0", "not a range"),
        ("!=5.0.0", "not a range"),
        ("<5.0 or >6", "not a range"),
        ("<5.0 ||", "not a range"),
        ("<", "not a range"),
        ("<5.x", '"5.x" is not a version'),
        ("<5.0.0.1", '"5.0.0.1" is not a version'),
        (">5", "write all three numbers, >5.0.0"),
        ("<=5.1", "write all three numbers, <=5.1.0"),
        ("=5.1-beta.1.2", "write all three numbers, =5.1.0-beta.1.2"),
        (">=4 =5.1+a.b.c", "write all three numbers, =5.1.0+a.b.c"),
    ],
)
def test_a_range_that_is_none_says_what_is_wrong(version_range: str, words: str):
    """So does one that other tools would read differently."""
    wrong = parse_range(version_range)
    assert isinstance(wrong, str)
    assert words in wrong


@given(st.text("<>=., 0123456789-+ab", max_size=20))
@settings(max_examples=60)
def test_any_text_is_a_range_or_is_said_to_be_none(text: str):
    """And no exception."""
    bounds = parse_range(text)
    if not isinstance(bounds, str):
        again = parse_range(" ".join(f"{bound.sign}{bound.version}" for bound in bounds))
        assert again == bounds
