"""The invariants of logs: I3 duplicates, I4 density, I5 immutability, I6 and I7 order, I11 crashes, I12 queued sends.

Each function's docstring is the promise, and says what is no violation though it looks like one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from im.core.shards import shard_of_cid
from roadstead.history.events import CRASHES, Key, LogEntry, Read
from roadstead.history.index import Attempt, Claim, Log, Seen, Timeline, Written
from roadstead.history.report import Finding, Findings
from roadstead.history.spans import Span, Stamp, inversions
from roadstead.history.views import Views, between

__all__ = ["check_i3", "check_i4", "check_i5", "check_i6", "check_i7", "check_i11", "check_i12"]


def check_i3(views: Views) -> Finding:
    """One key is at one (cid, seq, mid): over all attempts, answers, deliveries and logs.

    A key that was acknowledged with two bodies broke it too: the second should have been a conflict.
    """
    history = views.history
    findings = Findings("I3", "keys with a position")
    places: defaultdict[Key, dict[tuple[int, int, int], int]] = defaultdict(dict)
    for written in history.written.values():
        for attempt in written.oks:
            ok = attempt.ok
            if ok is not None and ok.mid:
                places[written.key].setdefault((ok.cid, ok.seq, ok.mid), ok.at)
        if len({attempt.invoke.digest for attempt in written.oks}) > 1:
            findings.add("two_bodies", f"{written.key} was acknowledged with two bodies", keys=(written.key,))
    for claim, seen in history.claims.items():
        if claim.client_msg_id:
            places[claim.key].setdefault((claim.cid, claim.seq, claim.mid), seen.stamp.at)
    for key, logged in history.logged_keys.items():
        if key[1]:
            for cid, entry in logged:
                places[key].setdefault((cid, entry.seq, entry.mid), 0)
            if len(logged) > 1:
                mids = tuple(entry.mid for _, entry in logged)
                findings.add("logged_twice", f"{key} is {len(logged)} times in the logs", mids=mids, keys=(key,))
    findings.looked = len(places)
    for key, found in places.items():
        if len(found) > 1:
            where = ", ".join(f"({cid}, {seq})" for cid, seq, _ in found)
            mids = tuple(mid for _, _, mid in found)
            findings.add("two_places", f"{key} is at {where}", mids=mids, keys=(key,), at=tuple(found.values()))
    return findings.done()


def check_i4(views: Views) -> Finding:
    """A continuous log is `first`..N without a hole; a monotonic one ascends. Links between entries form one chain.

    `cseq` counts by one at most, and only where there is something that can be unread. No mid is used twice.
    """
    findings = Findings("I4", "log and timeline entries")
    mids: dict[int, tuple[int, int]] = {}
    for log in views.history.logs.values():
        findings.looked += len(log.entries)
        _check_numbers(findings, f"conversation {log.cid}", log, [entry.seq for entry in log.entries])
        _check_links(findings, log)
        for entry in log.entries:
            if mids.setdefault(entry.mid, (log.cid, entry.seq)) != (log.cid, entry.seq):
                says = f"mid {entry.mid} is at {mids[entry.mid]} and at ({log.cid}, {entry.seq})"
                findings.add("mid_twice", says, mids=(entry.mid,))
    for timeline in views.history.timelines.values():
        findings.looked += len(timeline.entries)
        _check_numbers(findings, timeline.channel, timeline, [placed.offset for placed in timeline.entries])
    return findings.done()


def _check_numbers(findings: Findings, name: str, log: Log | Timeline, numbers: list[int]) -> None:
    before = log.first - 1
    for place, number in enumerate(numbers):
        if number <= before:
            findings.add("order", f"{name}: {number} comes after {before}", mids=(log.entries[place].mid,))
        elif log.mode == "continuous" and number != before + 1:
            findings.add("hole", f"{name}: {number} follows {before}", mids=(log.entries[place].mid,))
        before = number


def _check_links(findings: Findings, log: Log) -> None:
    is_whole = log.first == 1
    before, cseq = 0, 0
    for place, entry in enumerate(log.entries):
        if place or is_whole:
            steps = (0,) if entry.form in {"edit", "recall"} else (0, 1)
            if entry.cseq - cseq not in steps:
                says = f"conversation {log.cid}: cseq {entry.cseq} at seq {entry.seq} follows {cseq}"
                findings.add("cseq", says, mids=(entry.mid,))
            if entry.prev not in {None, before}:
                says = f"conversation {log.cid}: {entry.seq} links to {entry.prev}, {before} is before it"
                findings.add("chain", says, mids=(entry.mid,))
        before, cseq = entry.seq, entry.cseq


def check_i5(views: Views) -> Finding:
    """What was seen at (cid, seq) stays there, unchanged; what a page ended with is closed: nothing appears below.

    "Seen" is acknowledged, delivered, read or shown. What is older than the log's `first` may be gone.
    """
    history = views.history
    findings = Findings("I5", "places that were seen, and pages")
    findings.looked = len(history.claims) + len(history.placed)
    first_seen: dict[tuple[int, int], Claim] = {}
    for claim, seen in history.claims.items():
        was = first_seen.setdefault((claim.cid, claim.seq), claim)
        if was != claim:
            says = f"({was.cid}, {was.seq}) was delivered as {was.mid} of {was.key} and as {claim.mid} of {claim.key}"
            findings.add("changed", says, mids=(was.mid, claim.mid), keys=(was.key, claim.key), at=(seen.stamp.at,))
        _check_place(findings, views, (claim.cid, claim.seq, claim.mid), seen)
        entry = history.logs[claim.cid].by_seq.get(claim.seq) if claim.cid in history.logs else None
        if entry is not None and entry.mid == claim.mid and _claim(claim.cid, entry) != claim:
            says = f"({claim.cid}, {claim.seq}) was delivered otherwise than the log has it: {claim} and {entry}"
            findings.add("rewritten", says, mids=(claim.mid,), keys=(claim.key,), at=(seen.stamp.at,))
    for place, seen in history.placed.items():
        _check_place(findings, views, place, seen)
    for stamp, read in history.reads:
        if read.cid is not None and read.cid in history.logs:
            findings.looked += 1
            _check_closed(findings, views, read, read.cid, stamp)
    return findings.done()


def _claim(cid: int, entry: LogEntry) -> Claim:
    return Claim(cid, entry.seq, entry.mid, entry.sender, entry.client_msg_id, entry.digest, entry.form, entry.ref)


def _check_place(findings: Findings, views: Views, place: tuple[int, int, int], seen: Seen) -> None:
    cid, seq, mid = place
    log = views.history.logs.get(cid)
    if log is None or seq < log.first:
        return
    entry = log.by_seq.get(seq)
    who = "/".join(seen.by) if any(seen.by) else "an answer"
    if entry is None:
        findings.add("vanished", f"({cid}, {seq}) was {mid} for {who} and is nothing", mids=(mid,), at=(seen.stamp.at,))
    elif entry.mid != mid:
        says = f"({cid}, {seq}) was {mid} for {who} and is {entry.mid}"
        findings.add("changed", says, mids=(mid, entry.mid), at=(seen.stamp.at,))


def _check_closed(findings: Findings, views: Views, read: Read, cid: int, stamp: Stamp) -> None:
    expected = between(views.entitled_seqs(cid, read.user), read.since, read.reached)
    got = {entry.seq for entry in read.entries}
    missing = [seq for seq in expected if seq not in got] if len(got) != len(expected) or got != set(expected) else []
    if missing:
        log = views.history.logs[cid]
        says = f"{read.user}/{read.device} read ({read.since}, {read.reached}] of {cid} without {missing[:10]}"
        findings.add("late", says, mids=tuple(log.by_seq[seq].mid for seq in missing[:10]), at=(stamp.at,))


def check_i6(views: Views) -> Finding:
    """What one device wrote is in the order in which it was written: in each conversation, and over all of them in the
    timeline that its user's other devices read. In a system of several shards that is over all conversations of one.

    A message that was tried again after the next one was begun may come after it: nobody can tell which try it was.
    """
    history = views.history
    findings = Findings("I6", "messages with a predecessor of the same device")
    in_conversation: defaultdict[tuple[str, str, int], list[Span[Written]]] = defaultdict(list)
    by_user: defaultdict[str, list[tuple[tuple[int, int], str, Span[Written]]]] = defaultdict(list)
    for written in history.written.values():
        place, effective = history.place_of(written), written.effective
        devices = {attempt.invoke.device for attempt in written.attempts}
        if place is None or effective is None or len(devices) > 1:
            continue
        (device,) = devices
        span = Span(*effective, place[1], written)
        by_user[written.key[0]].append((place, device, span))
        in_conversation[written.key[0], device, place[0]].append(span)
    for (user, device, cid), spans in in_conversation.items():
        findings.looked += len(spans) - 1
        _check_order(findings, spans, "conversation", f"{user}/{device} in conversation {cid}")
    for name, channel in views.channels.items():
        in_timeline: defaultdict[tuple[str, str, int], list[Span[Written]]] = defaultdict(list)
        for user in channel.users:
            for place, device, span in by_user.get(user, []):
                offset = channel.first_at.get(place)
                if offset is not None:
                    shard = shard_of_cid(place[0], views.shards)
                    in_timeline[user, device, shard].append(span._replace(position=offset))
        for (user, device, _), spans in in_timeline.items():
            findings.looked += len(spans) - 1
            _check_order(findings, spans, "timeline", f"{user}/{device} in {name}")
    return findings.done()


def check_i7(views: Views) -> Finding:
    """What was acknowledged before another message of its conversation was begun has the lower seq."""
    history = views.history
    findings = Findings("I7", "acknowledged messages with another one in the conversation")
    by_cid: defaultdict[int, list[Span[Written]]] = defaultdict(list)
    for written in history.written.values():
        place, effective = history.place_of(written), written.effective
        if place is not None and effective is not None:
            by_cid[place[0]].append(Span(effective[0], written.acknowledged, place[1], written))
    for cid, spans in by_cid.items():
        findings.looked += len(spans) - 1
        _check_order(findings, spans, "real_time", f"conversation {cid}")
    return findings.done()


def _check_order(findings: Findings, spans: Iterable[Span[Written]], kind: str, where: str) -> None:
    for earlier, later in inversions(spans):
        says = (
            f"{where}: {earlier.what.key} was certainly before {later.what.key}, "
            f"but has {earlier.position} and not less than {later.position}"
        )
        ended = (earlier.end or earlier.begin).at
        findings.add(kind, says, keys=(earlier.what.key, later.what.key), at=(ended, later.begin.at))


def check_i11(views: Views) -> Finding:
    """What was acknowledged, or seen by anybody, before a crash is in the log after it, at the same place."""
    history = views.history
    findings = Findings("I11", "messages acknowledged or seen before a crash")
    crashes = [stamp for stamp, fault in history.faults if fault.kind in CRASHES]
    if not crashes:
        return findings.done()
    for written in history.written.values():
        for attempt in written.oks:
            ok = attempt.ok
            if ok is not None and ok.mid and _precedes(attempt.ok_stamp, crashes):
                findings.looked += 1
                what = "acknowledged", written.key
                _check_survived(findings, views, (ok.cid, ok.seq, ok.mid), what, ok.at)
    for claim, seen in history.claims.items():
        if _precedes(seen.stamp, crashes):
            findings.looked += 1
            what = f"delivered to {'/'.join(seen.by)}", claim.key
            _check_survived(findings, views, (claim.cid, claim.seq, claim.mid), what, seen.stamp.at)
    return findings.done()


def _precedes(stamp: Stamp | None, crashes: list[Stamp]) -> bool:
    return stamp is not None and any(stamp.is_before(crash) for crash in reversed(crashes))


def _check_survived(
    findings: Findings, views: Views, place: tuple[int, int, int], what: tuple[str, Key], at: int
) -> None:
    cid, seq, mid = place
    log = views.history.logs.get(cid)
    if log is None or seq < log.first:
        return
    entry = log.by_seq.get(seq)
    if entry is None or entry.mid != mid:
        says = f"{what[1]} was {what[0]} at ({cid}, {seq}) before a crash, and is not there any more"
        findings.add("lost", says, mids=(mid,), keys=(what[1],), at=(at,))


def check_i12(views: Views) -> Finding:
    """What was acknowledged as queued is in the log, or else exactly one failure notice reached each device told of it.

    A notice for what was acknowledged as durable, or certainly never queued, broke it too. What has no answer may have
    been queued.
    """
    history = views.history
    findings = Findings("I12", "queued messages")
    for written in history.written.values():
        if any(attempt.queued for attempt in written.attempts):
            findings.looked += 1
            if not history.log_of(written.key) and written.key not in history.failures:
                says = f"{written.key} was queued, and neither logged nor failed"
                findings.add("neither", says, keys=(written.key,))
    for key, notices in history.failures.items():
        devices = [notice.device for _, notice in notices]
        if len(devices) > len(set(devices)):
            findings.add("twice", f"a failure notice for {key} came twice", keys=(key,))
        attempts: list[Attempt] = history.written[key].attempts if key in history.written else []
        if history.log_of(key):
            findings.add("both", f"{key} is in the log, and a failure notice came", keys=(key,))
        elif not any(attempt.queued or not (attempt.ok or attempt.failed) for attempt in attempts):
            findings.add("unasked", f"a failure notice came for {key}, which was not queued", keys=(key,))
    return findings.done()
