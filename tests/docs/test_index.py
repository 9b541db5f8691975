"""docs/README.md lists the pages: all of them, each once, with what it answers."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"


def pages() -> set[str]:
    """Every file under docs/ that git knows or would add, but for the index."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "docs"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    files = [ROOT / name for name in listed]
    return {str(file.relative_to(DOCS)) for file in files if file.exists() and file != INDEX}


def entries() -> list[str]:
    """What the index links to within docs/."""
    return re.findall(r"\]\((?!\.\.|https?:)([^)]+)\)", INDEX.read_text())


def test_every_page_is_in_the_index_once() -> None:
    """None is missing, none is there twice, and none is there that is gone."""
    assert Counter(entries()) == Counter(pages())


def test_every_line_says_what_the_page_answers() -> None:
    """A link and some words beside it."""
    rows = [line for line in INDEX.read_text().splitlines() if line.startswith("| [")]
    assert len(rows) > 60
    for row in rows:
        assert re.fullmatch(r"\| \[[^]]+\]\([^)]+\) \| .{15,} \|", row), row


def test_decisions_stand_in_their_order() -> None:
    """Under the numbers that their files have."""
    numbered = re.findall(r"^\| \[(\d+)\. [^]]+\]\(adr/(\d{4})-", INDEX.read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _ in numbered] == [int(file) for _, file in numbered]
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
