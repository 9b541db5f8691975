"""Parts of a file that is copied twice: what differs the second time, and whether the whole is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from im.core.pages import PART_BYTES, Parts

FILES = st.lists(st.sampled_from([b"a", b"b", b"a" * PART_BYTES, b"c" * 7]), max_size=8)


def looked_at(parts: Parts, file: list[bytes]) -> list[int]:
    """Return the places that differ from what was seen before."""
    differing = [place for place, part in enumerate(file) if parts.differs(place, part)]
    parts.cut(len(file))
    return differing


@given(FILES, FILES)
def test_a_second_look_names_what_differs_and_nothing_else(first: list[bytes], second: list[bytes]):
    """Whether the file grew, shrank or changed in the middle; a copy by what was named is the file."""
    parts = Parts()
    assert looked_at(parts, first) == list(range(len(first)))
    copy = list(first)
    for place in looked_at(parts, second):
        copy[place : place + 1] = [second[place]]
    assert copy[: len(second)] == second
    assert len(parts) == len(second)
    assert looked_at(parts, second) == []


@given(FILES, FILES)
def test_digests_are_the_same_for_the_same_parts_only(one: list[bytes], other: list[bytes]):
    """However they came about."""
    first, second = Parts(), Parts()
    looked_at(first, one)
    looked_at(second, [*other, b"more"])
    looked_at(second, other)
    assert (first.digest() == second.digest()) == (one == other)
