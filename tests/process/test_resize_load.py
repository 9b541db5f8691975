"""A cluster of processes grows from three status nodes to five and shrinks to two, while it is asked and told.

The same run as `python -m bench status_resize`, smaller; `ROADSTEAD_TEST_SESSIONS=200000` for the size of that.
"""

from __future__ import annotations

import os

import pytest

from bench.status_resize import resize_processes

pytestmark = pytest.mark.process

SESSIONS = int(os.environ.get("ROADSTEAD_TEST_SESSIONS", "20000"))
LOOKUPS_PER_S, CHANGES_PER_S = SESSIONS // 10, SESSIONS // 40
STARVED_MS = 900
"""A batch that took so long ran into its deadline: this machine was too busy to answer, which is no fault."""


@pytest.mark.spec("PR-04")
async def test_no_answer_is_wrong_and_nobody_sees_an_error() -> None:
    """All users are online all the time: "offline" would be wrong, and "unknown" an error that a client sees."""
    seen = await resize_processes(SESSIONS, LOOKUPS_PER_S, CHANGES_PER_S)
    assert seen.lookups > 1_000
    assert seen.wrong == 0
    if max(seen.latencies_ms) < STARVED_MS:
        assert seen.unknown == 0
    # 1,638 of 4,096 partitions go to the two new nodes, and 2,457 or 2,458 leave the three that go.
    assert 4_095 <= len(seen.pauses_ms) <= 4_096 * 1.02
