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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from roadstead.history.check import INVARIANTS, check
from roadstead.history.events import DisplayEntry, LogEntry, TimelineEntry
from roadstead.history.recorder import digest, load
from roadstead.history.report import Report
from tests.process.message_network import KINDS
from tests.process.message_witness import NOTES, Entry, Listed, Witness, log_entry, note_mid, notes_of
from tests.process.message_world import PAGE, World

pytestmark = [pytest.mark.process, pytest.mark.timeout(7_200), pytest.mark.usefixtures("goodbyes")]

MESSAGES = int(os.environ.get("ROADSTEAD_TEST_MESSAGES", "100000"))
"""Twice as many take a gigabyte more to check."""
HISTORIES = int(os.environ.get("ROADSTEAD_TEST_HISTORIES", "1"))

Record = Callable[[str, object], None]


async def write_logs_down(world: World) -> None:
    """Read every timeline and every conversation, and write them down, and who could see what."""
    readers: dict[int, str] = {cid: group.owner for cid, group in world.traffic.groups.items()}
    for user in world.users:
        readers |= await write_timeline_down(world, user)
    for cid, user in readers.items():
        await write_log_down(world, cid, user)


async def write_timeline_down(world: World, user: str) -> dict[int, str]:
    """Write a timeline down, with its notes; return the single conversations that are in it."""
    recorder, channel, notes_cid = world.recorder, f"inbox:{user}", notes_of(user)
    singles: dict[int, str] = {}
    since, has_more = 0, True
    while has_more:
        page = await world.timeline(user, since, PAGE)
        entries, notes = [], []
        for placed in page.entries:
            offset, entry = placed.offset, placed.data
            if entry.kind in NOTES:
                mid = note_mid(notes_cid, offset)
                entries.append(TimelineEntry(offset, notes_cid, offset, mid))
                notes.append(LogEntry(offset, 0, mid, "", "", "", "change"))
            else:
                entries.append(TimelineEntry(offset, int(entry.cid), entry.seq, int(entry.mid)))
                if entry.to:
                    singles[int(entry.cid)] = user
            since = offset
        recorder.final_timeline(user=user, channel=channel, entries=entries)
        recorder.final_log(cid=notes_cid, entries=notes, mode="monotonic")
        has_more = page.has_more
    recorder.members(cid=notes_cid, user=user)
    return singles


async def write_log_down(world: World, cid: int, user: str) -> None:
    """Write a conversation down as one of those sees it who could see all of it."""
    witness, written = Witness(world.recorder, user, "reader"), world.traffic.written
    members: defaultdict[str, list[tuple[int, int | None]]] = defaultdict(list)
    channel, since, head = f"conv:{cid}", 0, 1
    while since < head:
        page = await world.history(user, cid, since, PAGE)
        witness.read(channel, since, page.entries[-1].seq, page.head, [(entry.seq, entry) for entry in page.entries])
        digests = [written.get((entry.sender, entry.client_msg_id), "") for entry in page.entries]
        entries = [log_entry(entry, told) for entry, told in zip(page.entries, digests, strict=True)]
        world.recorder.final_log(cid=cid, entries=entries, channel=channel)
        for entry in page.entries:
            mind_members(members, entry)
        since, head = page.entries[-1].seq, page.head
    for member, stretches in members.items():
        for first, last in stretches:
            world.recorder.members(cid=cid, user=member, join_seq=first, leave_seq=last)


def mind_members(members: defaultdict[str, list[tuple[int, int | None]]], entry: Entry) -> None:
    """Mind whom an entry makes a member, and whom it puts out."""
    if entry.to and not members:
        members[entry.sender] = [(1, None)]
        members[entry.to] = [(1, None)]
    if entry.kind == "group":
        for user in entry.group.users:
            if entry.group.event in {"create", "invite"}:
                members[user].append((entry.seq, None))
            elif entry.group.event == "kick":
                members[user][-1] = (members[user][-1][0], entry.seq)


async def write_lists_down(world: World) -> None:
    """Ask for everybody what is unread."""
    for user in world.users:
        asked_at = world.recorder.now()
        listed = await world.call("POST", f"/v1/users/{user}/im/conversations", Listed, {"limit": 1_000})
        Witness(world.recorder, user, "reader").unread(listed, asked_at)


def write_views_down(world: World) -> None:
    """Write down what the windows of all views show."""
    for device in world.sdk:
        if not device.has_view:
            continue
        for conversation in device.client.view.conversations():
            device.client.open_window(conversation.cid)
            rows = [row for row in conversation.rows() if row.seq and row.data["kind"] == "message"]
            entries = [DisplayEntry(row.seq, int(row.data["mid"]), _shown(row.data)) for row in rows]
            world.recorder.display(user=device.user, device="view", cid=int(conversation.cid), entries=entries)


def _shown(message: dict[str, object]) -> str | None:
    return None if message.get("recalled") else digest(msgspec.json.encode(message["body"]))


def told(report: Report) -> str:
    """The report in lines, for people."""
    lines = [f"{finding.invariant} {finding.looked} {finding.what}: {finding.found}" for finding in report.findings]
    lines += [f"{one.invariant} {one.kind}: {one.says} at {one.at}" for one in report.violations[:100]]
    return "\n".join([str(report.counts), *lines, *report.blind])


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_no_promise_is_broken_while_everything_else_is(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    """All invariants hold, each had much to look at, and every kind of fault was there."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as http, asyncio.TaskGroup() as tasks:
        world = World(tmp_path, MESSAGES, seed=seed, http=http, tasks=tasks)
        began = time.monotonic()
        async with world.running():
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
