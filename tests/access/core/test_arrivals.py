"""Clients by arrival, against a twin that sorts all of them for each page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.arrivals import Arrivals


class Member:
    def __init__(self, number: int) -> None:
        self.number = number


def arrivals() -> Arrivals[Member]:
    return Arrivals(lambda member: member.number)


def numbers(members: list[Member]) -> list[int]:
    return [member.number for member in members]


STEPS = st.lists(st.integers(1, 3) | st.integers(-8, -1), max_size=40)
"""A newcomer so much later than the last one, or the one so far from the end leaves."""


@given(steps=STEPS, limit=st.integers(1, 5), newest_first=st.booleans())
def test_pages_are_those_of_a_twin(steps: list[int], limit: int, *, newest_first: bool):
    """After any number, whether somebody has it or not."""
    found, twin, latest = arrivals(), [], 0
    for step in steps:
        if step > 0:
            latest += step
            twin.append(Member(latest))
            found.join(twin[-1])
        elif -step <= len(twin):
            found.leave(twin.pop(step))
        found.check_invariants()
        assert len(found) == len(twin)
    listed = sorted(numbers(twin), reverse=newest_first)
    assert numbers(found.page(None, limit, newest_first=newest_first)) == listed[:limit]
    for number in range(latest + 2):
        assert found.get(number) is next((member for member in twin if member.number == number), None)
    for after in range(latest + 2):
        rest = [number for number in listed if (number < after if newest_first else number > after)]
        assert numbers(found.page(after, limit, newest_first=newest_first)) == rest[:limit]


@given(
    stays=st.sets(st.integers(1, 30)),
    goes=st.lists(st.integers(1, 30), unique=True),
    limit=st.integers(1, 6),
    newest_first=st.booleans(),
)
def test_who_stays_is_listed_once(stays: set[int], goes: list[int], limit: int, *, newest_first: bool):
    """While another one goes, and a newcomer comes, before each next page."""
    found = arrivals()
    leaving = [Member(number) for number in goes if number not in stays]
    everybody = {member.number: member for member in leaving} | {number: Member(number) for number in stays}
    for number in sorted(everybody):
        found.join(everybody[number])
    listed: list[int] = []
    after, latest = None, 30
    while page := numbers(found.page(after, limit, newest_first=newest_first)):
        listed += page
        after = page[-1]
        if leaving:
            found.leave(leaving.pop())
            latest += 1
            found.join(Member(latest))
    assert [number for number in listed if number in stays] == sorted(stays, reverse=newest_first)
    assert len(listed) == len(set(listed))


def test_who_is_not_there_may_leave():
    """It came to nothing before it joined; or it left already. Another one with its number stays."""
    found = arrivals()
    found.leave(Member(1))
    member = Member(2)
    found.join(member)
    found.leave(Member(1))
    found.leave(Member(2))
    found.leave(Member(3))
    assert found.page(None, 9) == [member]
    found.leave(member)
    found.leave(member)
    assert len(found) == 0


def test_nobody_joins_out_of_order():
    """It would not be found again."""
    found = arrivals()
    found.join(Member(2))
    for number in (1, 2):
        with pytest.raises(AssertionError):
            found.join(Member(number))
