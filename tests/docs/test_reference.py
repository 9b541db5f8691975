"""The generated pages are what the code would generate now."""

from __future__ import annotations

from pathlib import Path

import pytest

from roadstead.reference import pages

REFERENCE = Path(__file__).parents[2] / "docs/reference"


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_generated_page_is_current(name: str) -> None:
    """`make docs` writes it anew."""
    assert (REFERENCE / name).read_text() == pages()[name]


@pytest.mark.spec("AR-2")
def test_every_setting_and_metric_has_a_meaning() -> None:
    """A row whose last cell is empty is a setting that nobody explained."""
    for name, text in pages().items():
        for line in text.splitlines():
            assert not line.endswith("|  |"), f"{name}: {line}"
