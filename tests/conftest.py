"""At the end of a run: what the simulator saw, so that a green line can be told from an empty one."""

from __future__ import annotations

from collections import Counter

import pytest

SEEN_BY_SIMULATOR = "seen by the simulator"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the histories of all workers counted: each test records a pair of name and number."""
    totals: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name.startswith(SEEN_BY_SIMULATOR):
                totals[name.removeprefix(f"{SEEN_BY_SIMULATOR}: ")] += int(str(value))
    if totals:
        counted = ", ".join(f"{totals[name]:,} {name}" for name in sorted(totals))
        terminalreporter.write_sep("-", f"{SEEN_BY_SIMULATOR}, all right: {counted}")
