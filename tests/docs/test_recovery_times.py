"""The page of recovery times is what its figures say, and they are good."""

from __future__ import annotations

import msgspec

from tests.process.faults.table import FOLDER, Figures, page

FIGURES = msgspec.json.decode((FOLDER / "recovery-times.json").read_bytes(), type=Figures)


def test_the_page_is_made_from_the_figures() -> None:
    """`python -m tests.process.faults.table` writes it."""
    assert (FOLDER / "recovery-times.md").read_text() == page(FIGURES)


def test_no_status_was_wrong_and_bounds_are_kept() -> None:
    """By each try."""
    assert FIGURES.rows
    for row in FIGURES.rows:
        assert row.wrong == 0, row
        assert not row.bound_ms or row.times["lookups"].max <= row.bound_ms, row
