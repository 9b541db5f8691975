"""The page on what of the article is there: it is current, its claims hold, and each false claim would be noticed."""

from __future__ import annotations

import msgspec
import pytest

from tests.docs.spec_coverage import PAGE, Row, Section, Shown, State, collected, faults, page, sections, shown_in

SOMEWHERE = Shown("tests/test_it.py", "test_that")

MARKED = """
import pytest
pytestmark = [pytest.mark.process, pytest.mark.spec("A-1")]
@pytest.mark.parametrize("n", [1])
@pytest.mark.spec("A-2", "B-1")
async def test_one(n): ...
@pytest.mark.spec("A-2")
class TestAll: ...
def test_other(): ...
"""


def test_the_page_is_current() -> None:
    """`python -m tests.docs.spec_coverage` writes it anew."""
    assert PAGE.read_text() == page(sections(), collected())


def test_its_claims_hold() -> None:
    """What is done is shown, what is not done is not, and every mark is of a row."""
    assert faults(sections(), collected()) == []


def rows(*states: State) -> list[Section]:
    """A section of rows as they should be."""
    made = [
        Row(f"A-{number}", "much", state, missing="" if state == "done" else "most of it")
        for number, state in enumerate(states, 1)
    ]
    return [Section("All", made)]


def test_good_claims_have_no_faults() -> None:
    """Of each state."""
    shown = {"A-1": [SOMEWHERE], "A-2": [SOMEWHERE]}
    assert faults(rows("done", "partly", "not done"), shown) == []


@pytest.mark.parametrize(
    ("all_sections", "ids", "fault"),
    [
        (rows("done"), [], "A-1 is said to be done, but nothing shows it"),
        (rows("partly"), [], "A-1 is said to be partly, but nothing shows it"),
        (rows("not done"), ["A-1"], "A-1 is said to be not done, but tests/test_it.py shows something of it"),
        (rows("done"), ["A-1", "A-7"], "A-7: tests/test_it.py bears an id that no row has"),
        ([*rows("done"), *rows("done")], ["A-1"], "A-1 is there 2 times"),
        ([Section("All", [Row("A-2", "much", "done")])], ["A-2"], "A-2 comes after A-00"),
        (
            [Section("All", [Row("A-1", "much", "partly")])],
            ["A-1"],
            "A-1 is said to be partly, and what is missing is not told",
        ),
        (
            [Section("All", [Row("A-1", "much", "done", missing="a bit")])],
            ["A-1"],
            "A-1 is said to be done, and what is missing is a bit",
        ),
        (
            [Section("All", [Row("A-1", "much", "partly", as_="x", missing="y")])],
            ["A-1"],
            "A-1 is not done, in whatever form",
        ),
    ],
)
def test_each_false_claim_is_noticed(all_sections: list[Section], ids: list[str], fault: str) -> None:
    """And nothing else is said."""
    assert faults(all_sections, {row: [SOMEWHERE] for row in ids}) == [fault]


@pytest.mark.parametrize("state", [{}, {"state": "nearly"}])
def test_a_row_needs_a_state(state: dict[str, str]) -> None:
    """One of the three."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"id": "A-1", "asks": "much", **state}, Row)


def test_marks_are_found_where_they_may_stand() -> None:
    """On tests, on classes of them, and on a whole module; in benchmarks in a constant."""
    assert sorted(shown_in("t.py", MARKED)) == [
        ("A-1", Shown("t.py", "")),
        ("A-2", Shown("t.py", "TestAll")),
        ("A-2", Shown("t.py", "test_one")),
        ("B-1", Shown("t.py", "test_one")),
    ]
    assert list(shown_in("b.py", 'SPEC = ("A-1", "A-2")')) == [("A-1", Shown("b.py", "")), ("A-2", Shown("b.py", ""))]


@pytest.mark.parametrize(
    "text",
    [
        'CASES = [pytest.param(1, marks=pytest.mark.spec("A-1"))]',
        "@pytest.mark.spec(1)\ndef test_one(): ...",
        "@pytest.mark.spec\ndef test_one(): ...",
        '@pytest.mark.spec("A-1")\ndef helper(): ...',
        "SPEC = (1,)",
    ],
)
def test_marks_that_would_be_overlooked_are_refused(text: str) -> None:
    """Rather than a row being without its test."""
    with pytest.raises((ValueError, TypeError)):
        list(shown_in("t.py", text))


def test_the_page_says_what_shows_a_row() -> None:
    """By file and test; a benchmark, or a whole file, by its name alone."""
    shown = {"A-1": [SOMEWHERE, Shown("bench/that.py", "")]}
    text = page(rows("done", "not done"), shown)
    assert "| [All](#all) | 1 | 0 | 1 |\n| all | 1 | 0 | 1 |\n" in text
    assert "| A-1 | much | **done** | [bench/that](../bench/that.py)<br>[test_it](../tests/test_it.py): that |" in text
    assert text.endswith("| A-2 | much | **not done**: most of it |  |\n")
