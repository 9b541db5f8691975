"""Every process of a cluster is restarted in order, one after the other, while everybody talks.

What an operator does for an upgrade: message shards are moved away before their process is stopped, and back after it;
access nodes send their clients elsewhere when they are stopped; the others are just stopped. No message is lost, no
status wrong, and no call of a client fails that is tried again.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.process.faults.scene import Scene, add_result, judged, scene
from tests.process.faults.watchers import ASSIGNMENTS, LOOKUPS, SENDS

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.usefixtures("goodbyes")]

COUNTS = {"status": 3, "access": 2, "im": 2, "scheduler": 2}
ORDERLY: dict[str, object] = {"access.stop_drain_ms": 2_000, "status.stop_handover_ms": 10_000}
IDLE_S = 5.0
IS_LONG = os.environ.get("ROADSTEAD_TEST_FAULTS", "short") == "long"
"""The short form restarts one node of each role."""
SENT_MS_MAX = 3_000
"""A call that is answered later than that was given up by somebody."""

Record = Callable[[str, object], None]


@pytest.mark.spec("AR-7")
async def test_nobody_notices_that_every_process_was_restarted(tmp_path: Path, record_property: Record) -> None:
    """Sends are answered, lookups and assignments too."""
    async with scene(tmp_path, counts=COUNTS, settings=ORDERLY) as made:
        for person in made.people:
            person.stays_away = False
        made.watch.take_latencies()
        await asyncio.sleep(IDLE_S)
        figures = {"idle": told(made.watch.take_latencies(), Counter())}
        for role in ("status", "im", "access", "scheduler"):
            before = Counter(made.watch.counts)
            names = sorted(node for node in made.urls if node.startswith(role))
            for name in names if IS_LONG else names[-1:]:
                if role == "im":
                    await restarted_without_shards(made, name)
                else:
                    await restarted(made, name)
                if role == "status":
                    await made.resized(list(made.system.endpoints.status))  # it has its partitions again
                await made.calm()
            figures[role] = told(made.watch.take_latencies(), made.watch.counts - before)
    for what, figure in figures.items():
        record_property(what, figure)
        await asyncio.to_thread(add_result, {"rolling restart": what, **figure})
    report = judged(made)
    assert report.counts["deliveries"]
    for what, figure in figures.items():
        assert figure["sends"]["max"] < SENT_MS_MAX, (what, figure)
        assert not figure["assignments refused"], (what, figure)
    made.file.unlink()


async def restarted(made: Scene, name: str) -> None:
    """Stop it in order, and start it again."""
    with made.absent(name):
        await asyncio.to_thread(made.cluster.stop_node, name)
        await asyncio.to_thread(made.cluster.start_node, name)


async def restarted_without_shards(made: Scene, name: str) -> None:
    """The same, with its shards elsewhere meanwhile."""
    other = next(one for one in made.system.endpoints.im if one != name)
    mine = [shard for shard, owner in enumerate(await made.owners()) if owner == name]
    for shard in mine:
        await made.move(shard, name, other)
        await made.moved(shard, other)
    await restarted(made, name)
    for shard in mine:
        await made.move(shard, other, name)
        await made.moved(shard, name)


def told(latencies: dict[str, list[float]], counts: Counter[str]) -> dict[str, dict[str, float]]:
    """Return the figures of a stretch of time: latencies in ms, and how often something was not normal."""
    figures: dict[str, dict[str, float]] = {
        kind: {"n": len(found), "p50": _at(found, 0.5), "p99": _at(found, 0.99), "max": _at(found, 1.0)}
        for kind, found in latencies.items()
    }
    figures["not normal"] = {
        what: count for what, count in sorted(counts.items()) if what.startswith((LOOKUPS, SENDS, "offline"))
    }
    figures["assignments refused"] = {
        what: count for what, count in counts.items() if what.startswith(f"{ASSIGNMENTS}:")
    }
    return figures


def _at(found: Sequence[float], part: float) -> float:
    return round(sorted(found)[min(len(found) - 1, int(len(found) * part))], 1)
