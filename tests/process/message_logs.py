"""The end of a history: every timeline, log, list and view is written down as it is when everything is calm."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from roadstead.history.events import DisplayEntry, LogEntry, TimelineEntry
from roadstead.history.recorder import digest
from roadstead.history.report import Report
from tests.process.message_witness import NOTES, Entry, Listed, Witness, log_entry, note_mid, notes_of
from tests.process.message_world import PAGE, World

__all__ = ["told", "write_lists_down", "write_logs_down", "write_views_down"]


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
