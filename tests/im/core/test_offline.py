"""The feed of what was missed: cursors over lives and losses, then random readers against a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from im.core.model import Message
from im.core.offline import Missed, OfflineFeed


def message(n: int) -> Message:
    return Message(n, 1, n, n, 7, "a", "phone", "b", f"k{n}", 0, "text", 0, b"1", b"", Timestamp(1))


def feed(count: int, *, items_max: int = 5, life: str = "life-1") -> OfflineFeed:
    made = OfflineFeed(life, items_max=items_max)
    for n in range(1, count + 1):
        made.add(f"u{n}", message(n))
    return made


def test_a_reader_goes_on_after_its_cursor():
    """I2: page after page; at the end the cursor stays where it is."""
    missed = feed(5)
    first = missed.read("", limit=2)
    assert first is not None
    assert first.items == [Missed("u1", message(1)), Missed("u2", message(2))]
    rest = missed.read(first.cursor, limit=9)
    assert rest is not None
    assert [item.user for item in rest.items] == ["u3", "u4", "u5"]
    assert rest.cursor == missed.end
    assert missed.read(missed.end, limit=9) == ([], missed.end, 0)


def test_who_was_away_for_long_is_told_how_many_are_lost():
    """I1: the newest are kept."""
    missed = feed(9)
    assert (len(missed), missed.last) == (5, 9)
    page = missed.read("life-1-2", limit=1)
    assert page is not None
    assert ([item.user for item in page.items], page.cursor, page.lost) == (["u5"], "life-1-5", 2)


def test_a_cursor_of_another_life_begins_at_the_oldest():
    """Nobody knows what it had; nothing is known to be lost."""
    page = feed(9).read("life-0-8", limit=1)
    assert page is not None
    assert ([item.user for item in page.items], page.lost) == (["u5"], 0)


def test_a_cursor_beyond_the_end_means_the_end():
    """It cannot be ours, and must not skip what comes."""
    assert feed(3).read("life-1-99", limit=9) == ([], "life-1-3", 0)


@pytest.mark.parametrize(
    "cursor", ["x", "-", "-1", "life-1-", "life-1-x", "life-1-\u0663", "life-1-1234567890123456789"]
)
def test_what_is_no_cursor_is_said_to_be_none(cursor: str):
    """Not an empty page, which a reader would wait behind for ever."""
    assert feed(3).read(cursor, limit=9) is None


@given(st.integers(1, 4), st.lists(st.integers(0, 4), max_size=20))
def test_each_item_is_read_once_or_counted_as_lost(items_max: int, steps: list[int]):
    """I1, I2: what a reader got and what it was told is lost add up, in order."""
    missed, cursor, got, lost, added = OfflineFeed("x", items_max=items_max), "x-0", [], 0, 0
    for step in steps:
        if step:
            for _ in range(step):
                added += 1
                missed.add("u", message(added))
        else:
            page = missed.read(cursor, limit=2)
            assert page is not None
            got += [item.message.n for item in page.items]
            cursor, lost = page.cursor, lost + page.lost
            assert got == sorted(set(got))
            assert len(got) + lost == int(cursor.removeprefix("x-"))
        assert len(missed) == min(added, items_max)
