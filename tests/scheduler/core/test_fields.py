"""Readers of values: tables of what each takes and refuses, then mappings and lists with all their faults at once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.document import FAULTS_MAX, Faults, Node, read_tree
from scheduler.core.fields import (
    Fields,
    Read,
    choice,
    duration,
    entries,
    items,
    name,
    named_twice,
    number,
    rate,
    relative,
    share,
    text,
    whole,
)

DURATION = duration(1_000, 3_600_000)
COLOUR = choice("red", "green")


def node_of(source: str) -> tuple[Node, Faults]:
    faults = Faults()
    node = read_tree(source, faults)
    assert node is not None
    return node, faults


def read(reader: Read[Any], source: str) -> Any:
    """The value, or what is wrong with it."""
    node, faults = node_of(source)
    value = reader(node, faults)
    if value is not None:
        assert not faults
        return value
    (fault,) = faults.listed()
    return fault


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("reader", "source", "value"),
    [
        (text, "2.4.0", "2.4.0"),
        (text, '"2.4"', "2.4"),
        (text, '"on"', "on"),
        (name, "access-2.4.0", "access-2.4.0"),
        (name, "a" * 63, "a" * 63),
        (COLOUR, "red", "red"),
        (number(0, 1), "0.995", 0.995),
        (number(0, 1), "1", 1.0),
        (number(0, 1), "0", 0.0),
        (whole(1, 1_000), "1e3", 1_000),
        (whole(1, 1_000), "2.0", 2),
        (whole(0, 1_000), "0", 0),
        (share, "1", 1_000),
        (share, "12.5", 12_500),
        (share, "12.5%", 12_500),
        (share, "0.001%", 1),
        (share, "0.29", 290),
        (share, "0", 0),
        (share, "100", 100_000),
        (relative, "-0.2%", -0.002),
        (relative, "+15%", 0.15),
        (relative, '"0%"', 0.0),
        (DURATION, "1000ms", 1_000),
        (DURATION, "30s", 30_000),
        (DURATION, "10m", 600_000),
        (DURATION, "1h", 3_600_000),
        (duration(0, 10**9), "1d", 86_400_000),
        (rate, "200/s", 200.0),
        (rate, "30/m", 0.5),
        (rate, "0.5/s", 0.5),
    ],
)
def test_values_are_read_exactly(reader: Read[Any], source: str, value: object):
    """In their own units."""
    found = read(reader, source)
    assert found == value
    assert type(found) is type(value)


DISPUTED = "do not agree"


@pytest.mark.parametrize(
    ("reader", "source", "words"),
    [
        (text, "2.4", '"2.4"'),
        (text, "true", '"true"'),
        (text, "on", DISPUTED),
        (text, "2024-01-01", DISPUTED),
        (text, "~", "no value"),
        (text, '" "', "must not be empty"),
        (text, "[a]", "single value"),
        (text, "{a: b}", "single value"),
        (name, "Access", "is not a name"),
        (name, "-a", "is not a name"),
        (name, "a" * 64, "is not a name"),
        (name, "用户", "is not a name"),
        (name, "7", '"7"'),
        (COLOUR, "grean", "did you mean green?"),
        (COLOUR, "blue", "it must be red or green"),
        (COLOUR, "1", '"1"'),
        (number(0, 1), "1.001", "from 0 to 1"),
        (number(0, 1), "-0.001", "from 0 to 1"),
        (number(0, 1), "x", '"x" is not a number'),
        (number(0, 1), '"1"', '"1" is not a number'),
        (number(0, 1), "true", '"true" is not a number'),
        (number(0, 1), "0x1", DISPUTED),
        (number(0, 1), "null", "no value"),
        (number(0, 1), "[1]", "needs a number"),
        (whole(1, 1_000), "1.5", "whole number from 1 to 1,000"),
        (whole(1, 1_000), "0", "whole number"),
        (whole(1, 1_000), "1001", "whole number"),
        (whole(1, 1_000), "0100", DISPUTED),
        (share, "100.001", "0 to 100"),
        (share, "-1", "0 to 100"),
        (share, "1.0001", "three decimals"),
        (share, "1e2%", '"1e2%" is not a number'),
        (share, "ten", '"ten" is not a number'),
        (relative, "0.15", "in percent"),
        (relative, "15", "in percent"),
        (relative, "[1%]", "in percent"),
        (DURATION, "10", "must be a duration"),
        (DURATION, "10 minutes", "must be a duration"),
        (DURATION, "1.5h", "must be a duration"),
        (DURATION, "1:30", "must be a duration"),
        (DURATION, "[1s]", "must be a duration"),
        (DURATION, "999ms", "from 1s to 1h"),
        (DURATION, "61m", "from 1s to 1h"),
        (duration(0, 86_400_000), "25h", "from 0s to 1d"),
        (duration(1_500, 90_000), "91s", "from 1500ms to 90s"),
        (rate, "200", "must be a rate"),
        (rate, "0/s", "must be a rate"),
        (rate, "200/h", "must be a rate"),
        (rate, "-1/s", "must be a rate"),
        (rate, "[1/s]", "must be a rate"),
    ],
)
def test_what_a_value_is_not_is_said(reader: Read[Any], source: str, words: str):
    """With what would be right, where that is known."""
    fault = read(reader, f"\n{source}")
    assert fault.line == 2
    assert words in fault.message


@pytest.mark.parametrize("reader", [text, name, COLOUR, number(0, 1), whole(0, 1), share, relative, DURATION, rate])
def test_a_value_that_was_refused_before_has_one_fault(reader: Read[Any]):
    """Its reader adds none."""
    node, faults = node_of('"\\0"')
    assert reader(node, faults) is None
    assert len(faults) == 1


@given(st.integers(0, 100_000))
def test_every_thousandth_of_a_percent_can_be_written(thousandths: int):
    """As a number and as text, and neither is off by one."""
    written = str(Decimal(thousandths) / 1_000)
    assert read(share, written) == read(share, f"{Decimal(thousandths) / 1_000:f}%") == thousandths


# ---------------------------------------------------------------- mappings


def test_a_mapping_gives_its_fields_and_defaults():
    """Those that are there, and those that need not be."""
    node, faults = node_of("{a: x, b: 2}")
    fields = Fields(node, faults)
    assert "a" in fields
    assert "c" not in fields
    assert fields.required("a", text, "") == "x"
    assert fields.optional("b", number(0, 9), 0.0) == 2.0
    assert fields.optional("c", text, "default") == "default"
    assert fields.close()
    assert not faults


def test_all_that_is_wrong_with_a_mapping_is_found_in_one_pass():
    """Each at its own line, with its path."""
    node, faults = node_of("top:\n  first: 1\n  secnd: x\n  third: 5\n  zzz: 0\n")
    top = Fields(node, faults)

    def read_inner(inner: Node, faults: Faults) -> str | None:
        fields = Fields(inner, faults)
        assert fields.required("first", text, "filler") == "filler"
        assert not fields.is_good
        assert fields.required("second", text, "filler") == "filler"
        assert fields.optional("third", text, "default") == "default"
        fields.fault("third", "says something")
        fields.fault("fourth", "is not there")
        return "good" if fields.close() else None

    assert top.required("top", read_inner, "filler") == "filler"
    assert not top.close()
    assert [(fault.line, fault.message.partition(" ")[0]) for fault in faults.listed()] == [
        (2, "top.first:"),
        (2, "top:"),
        (2, "top:"),
        (3, "top:"),
        (4, "top.third:"),
        (4, "top:"),
        (5, "top:"),
    ]
    said = " ".join(fault.message for fault in faults.listed())
    assert "second is missing" in said
    assert "did you mean second?" in said
    assert "known are first, second, third" in said


def test_what_is_no_mapping_has_one_fault():
    """Not one more for each field that is missing."""
    node, faults = node_of("- a")
    fields = Fields(node, faults)
    assert fields.required("a", text, "filler") == "filler"
    assert not fields.close()
    ((line, message),) = faults.listed()
    assert (line, message) == (1, "needs keys and values here")


def test_a_thousand_unknown_keys_are_not_all_looked_up():
    """The list of faults is full long before."""
    node, faults = node_of("\n".join(f"knowm{number}: 1" for number in range(1_000)))
    fields = Fields(node, faults)
    fields.optional("known", text, "")
    assert not fields.close()
    listed = faults.listed()
    assert len(listed) == FAULTS_MAX + 1
    assert all("did you mean known?" in fault.message for fault in listed[:-1])


# ---------------------------------------------------------------- lists


def test_a_list_is_read_if_all_of_it_is_good():
    """From one entry to as many as are allowed."""
    assert read(items(text, most=2), "[a, b]") == ("a", "b")
    assert "3 entries; 1 to 2" in read(items(text, most=2), "[a, b, c]").message
    assert "0 entries" in read(items(text, most=2), "[]").message
    assert "needs a list" in read(items(text, most=2), "a").message


def test_faulty_entries_of_a_list_are_all_named():
    """And the list is none."""
    node, faults = node_of("- a\n- 1\n- b\n- 2\n")
    assert items(text, most=9)(node, faults) is None
    assert [fault.line for fault in faults.listed()] == [2, 4]


def test_entries_keep_their_places_and_leave_gaps():
    """For checks across a list that has faults of its own."""
    node, faults = node_of("- a\n- 1\n- b\n")
    found = entries(text, most=3)(node, faults)
    assert found == (((1, "[0]"), "a"), ((2, "[1]"), None), ((3, "[2]"), "b"))


def test_a_name_that_was_there_before_is_a_fault():
    """The first one may keep it, however often it comes."""
    node, faults = node_of("- a\n- b\n- a\n- a\n")
    found = entries(text, most=9)(node, faults)
    assert found is not None
    named_twice([(place, value or "") for place, value in found], faults)
    assert [(fault.line, fault.message) for fault in faults.listed()] == [
        (3, "[2]: a is a name already, in line 1"),
        (4, "[3]: a is a name already, in line 1"),
    ]
