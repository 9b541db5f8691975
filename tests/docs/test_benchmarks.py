"""The page of what was measured last: it has every benchmark there is, and none that failed or was a quick one."""

from __future__ import annotations

import re

import pytest

from bench.__main__ import NAMES
from tests.docs.commands import DOCS

PAGE = DOCS / "reference" / "benchmarks.md"


@pytest.mark.spec("AR-9")
def test_the_page_has_every_benchmark() -> None:
    """In their order, each with a figure beside its goal."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| [≤≥] \S+ \| (?:met|missed) \| ", text, flags=re.MULTILINE)
    assert rows == list(NAMES)
    assert "quick" not in text
