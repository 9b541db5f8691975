"""The message services, from outside, while everything breaks: what all clients saw is judged by the checker.

`roadstead up` in a process of its own, killed and started again, stopped for a while and continued; its connections cut
in the middle of frames, reset, delayed, black-holed and half-closed; and clients that send again, with the same keys,
whatever they have no answer for. ROADSTEAD_TEST_MESSAGES sets how many messages a history has, which breaks the more
often the longer it is; ROADSTEAD_TEST_HISTORIES how many histories there are.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from roadstead.history.check import INVARIANTS, check
from roadstead.history.recorder import load
from roadstead.history.report import Report
from tests.process.message_logs import told, write_lists_down, write_logs_down, write_views_down
from tests.process.message_network import KINDS
from tests.process.message_world import World

pytestmark = [pytest.mark.process, pytest.mark.timeout(7_200), pytest.mark.usefixtures("goodbyes")]

MESSAGES = int(os.environ.get("ROADSTEAD_TEST_MESSAGES", "100000"))
"""Twice as many take a gigabyte more to check."""
HISTORIES = int(os.environ.get("ROADSTEAD_TEST_HISTORIES", "1"))

Record = Callable[[str, object], None]


@pytest.mark.spec("CC-10", "DT-01", "OR-01", "MD-04")
@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_no_promise_is_broken_while_everything_else_is(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    """All invariants hold, each had much to look at, and every kind of fault was there."""
    async with asyncio.TaskGroup() as tasks:
        world = World(tmp_path, MESSAGES, seed=seed, tasks=tasks)
        began = time.monotonic()
        async with world.asking(), world.running():
            await world.break_everything()
            await world.settle()
            record_property("s until everybody had everything", round(time.monotonic() - began, 1))
            write_views_down(world)
            await write_lists_down(world)
            await write_logs_down(world)
    assert world.errors == []
    began = time.monotonic()
    report = check(load([world.file]))
    record_property("s for checking", round(time.monotonic() - began, 1))
    for name, count in {**report.counts, **world.counts()}.items():
        record_property(name, count)
    assert report.holds(frozenset(INVARIANTS)), told(report)
    assert_enough(world, report)
    world.file.unlink()  # it is large, and was right


def assert_enough(world: World, report: Report) -> None:
    """It was no quiet walk: so much happened, so much of it was judged, and so often something broke."""
    looked = {finding.invariant: finding.looked for finding in report.findings}
    assert len(world.users) >= 20
    assert looked["I3"] >= MESSAGES
    for invariant in ("I1", "I2", "I4", "I5", "I6", "I7", "I8", "I11"):
        assert looked[invariant] >= MESSAGES / 2, invariant
    for invariant in ("I9", "I10", "I12", "I13"):
        assert looked[invariant] >= MESSAGES / 2_000, invariant
    assert report.counts["send calls"] > MESSAGES, "some were sent again"
    assert report.counts["failure notices"]
    counts = world.counts()
    for kind in ("kill", "stop", "switch"):
        assert counts[kind] >= 3, kind
    for kind in (*KINDS, "leave"):
        assert counts[kind] >= max(3, MESSAGES // 10_000), kind
    assert counts["messages by the SDK"] >= MESSAGES // 2_000
