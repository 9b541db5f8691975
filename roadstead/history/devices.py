"""The invariants of what devices see: I1 loss, I2 phantoms, I8 polls, I9 timelines, I10 unread counts, I13 recalls.

Each function's docstring is the promise, and says what is no violation though it looks like one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from roadstead.history.events import Display, Form, Op, Read, Subscribe, UnreadObs, UnreadPart
from roadstead.history.index import Claim, Device, Step
from roadstead.history.report import Finding, Findings
from roadstead.history.spans import Span, Stamp, inversions
from roadstead.history.views import Channel, Views, between

__all__ = ["check_i1", "check_i2", "check_i8", "check_i9", "check_i10", "check_i13"]

_FORM_OF: dict[Op, Form] = {"send": "message", "edit": "edit", "recall": "recall"}


def _sights(
    events: Iterable[tuple[Stamp, Display | Read]],
) -> Iterator[tuple[Display | Read, int, int, int, str | None]]:
    """Yield (event, cid, seq, mid, digest) of all bodies that were shown or read; digest None: as recalled."""
    for _, event in events:
        if isinstance(event, Display):
            for shown in event.entries:
                yield event, event.cid, shown.seq, shown.mid, shown.digest
        else:
            for entry in event.entries:
                if entry.digest is None or entry.digest:
                    yield event, entry.cid, entry.seq, entry.mid, entry.digest


# ---------------------------------------------------------------- I1


def check_i1(views: Views) -> Finding:
    """What was acknowledged as durable is in the log ("lost" if not), and what is in the log has reached, when it is
    quiet, every device of those that may see it ("unobserved" if not), once in each channel and view ("repeated").

    A message whose outcome is unknown may be in the log or not; if it is, it must be seen. A gap that the device knows
    of is no loss. Getting an entry again after a reconnect, or by reading, is no repetition: its offset is the same.
    """
    history = views.history
    findings = Findings("I1", "acknowledged messages, and entries that devices must have seen")
    own: defaultdict[tuple[Device, int], set[int]] = defaultdict(set)
    for written in history.written.values():
        for attempt in written.oks:
            ok = attempt.ok
            if ok is None or not ok.mid or ok.cid not in history.logs:
                continue
            findings.looked += 1
            own[(attempt.invoke.user, attempt.invoke.device), ok.cid].add(ok.seq)
            if ok.seq >= history.logs[ok.cid].first and not history.log_of(written.key):
                says = f"{written.key} was acknowledged at ({ok.cid}, {ok.seq}), and is in no log"
                findings.add("lost", says, mids=(ok.mid,), keys=(written.key,), at=(ok.at,))
    for device in sorted(history.quiet_devices):
        for cid, members in history.members.items():
            if device[0] in members and cid in history.logs:
                _check_observed(findings, views, device, cid, own)
    _check_repeated(findings, views)
    return findings.done()


def _check_observed(
    findings: Findings, views: Views, device: Device, cid: int, own: dict[tuple[Device, int], set[int]]
) -> None:
    expected = views.entitled_seqs(cid, device[0])
    findings.looked += len(expected)
    missing = set(expected) - views.observed.get((device, cid), set())
    if (device, cid) in own:
        missing -= own[device, cid]
    by_seq = views.history.logs[cid].by_seq
    for seq in sorted(missing):
        if not views.is_gap(device, cid, seq):
            entry = by_seq[seq]
            says = f"{'/'.join(device)} never saw ({cid}, {seq})"
            findings.add("unobserved", says, mids=(entry.mid,), keys=((entry.sender, entry.client_msg_id),))


def _check_repeated(findings: Findings, views: Views) -> None:
    for name, channel in views.channels.items():
        first_at = channel.first_at
        if len(first_at) == len(channel.at):
            continue
        for offset, placed in channel.at.items():
            first = first_at[placed.cid, placed.seq]
            if first != offset:
                says = f"{name} has ({placed.cid}, {placed.seq}) at {first} and at {offset}"
                findings.add("repeated", says, mids=(placed.mid,))
    for stamp, display in views.history.displays:
        mids = [entry.mid for entry in display.entries]
        if len(set(mids)) < len(mids):
            twice = tuple(sorted({mid for mid in mids if mids.count(mid) > 1}))
            says = f"{display.user}/{display.device} shows a message of {display.cid} twice"
            findings.add("repeated", says, mids=twice, at=(stamp.at,))


# ---------------------------------------------------------------- I2


def check_i2(views: Views) -> Finding:
    """Everything that is seen was written by its sender, as it is seen, and is for the eyes of who sees it.

    What was refused on every attempt must not be seen; what the system wrote itself may only be a group change. Where
    nobody said who the members are, everybody may see.
    """
    history = views.history
    findings = Findings("I2", "deliveries, entries read and shown, entries of logs")
    for name in ("deliveries", "read entries", "displayed entries", "log entries"):
        findings.looked += history.counts[name]
    known = {entry.mid for _, entry in history.logged()} | {claim.mid for claim in history.claims}
    for written in history.written.values():
        known.update(attempt.ok.mid for attempt in written.oks if attempt.ok is not None)
    for claim, seen in history.claims.items():
        _check_written(findings, views, claim, "delivered", seen.stamp.at)
    for cid, entry in history.logged():
        names = entry.sender, entry.client_msg_id
        claim = Claim(cid, entry.seq, entry.mid, *names, entry.digest, entry.form, entry.ref)
        if claim not in history.claims:
            _check_written(findings, views, claim, "in the log", 0)
    for (cid, seq, mid), seen in history.placed.items():
        if mid not in known:
            says = f"{'/'.join(seen.by)} saw {mid} at ({cid}, {seq}), which nobody wrote"
            findings.add("phantom", says, mids=(mid,), at=(seen.stamp.at,))
    _check_bodies(findings, views)
    for (device, cid), seqs in views.observed.items():
        _check_entitled(findings, views, device, cid, seqs)
    return findings.done()


def _check_written(findings: Findings, views: Views, claim: Claim, how: str, at: int) -> None:
    said = f"({claim.cid}, {claim.seq}) of {claim.key} is {how}, "
    written = views.history.written.get(claim.key)
    if written is None:
        if claim.form == "change" and not claim.client_msg_id:
            return
        kind, says = "phantom", "and nobody wrote it"
    elif written.effective is None:
        kind, says = "refused", "though every attempt was refused"
    elif claim.digest not in written.digests:
        kind, says = "altered", f"with the body {claim.digest} instead of {' or '.join(sorted(written.digests))}"
    elif not any(_is_of(claim, attempt.invoke.op, attempt.invoke.ref) for attempt in written.attempts):
        kind, says = "altered", f"as {claim.form} of {claim.ref}, which it was not"
    elif written.attempts[0].invoke.cid not in {None, claim.cid}:
        kind, says = "astray", f"but was written to conversation {written.attempts[0].invoke.cid}"
    else:
        return
    findings.add(kind, said + says, mids=(claim.mid,), keys=(claim.key,), at=(at,))


def _is_of(claim: Claim, op: Op, ref: int) -> bool:
    return claim.form == _FORM_OF.get(op, "change") and (claim.form not in {"edit", "recall"} or claim.ref == ref)


def _check_bodies(findings: Findings, views: Views) -> None:
    """Shown and read bodies: the message's, an edit's, or "recalled" if somebody did."""
    bodies = views.bodies
    for event, cid, seq, mid, digest in _sights([*views.history.displays, *views.history.reads]):
        allowed = bodies.get((cid, seq))
        if allowed is not None and digest not in allowed:
            what = "as recalled, which nobody did" if digest is None else f"with the body {digest}, which nobody wrote"
            says = f"{event.user}/{event.device} sees ({cid}, {seq}) {what}"
            findings.add("altered", says, mids=(mid,), at=(event.at,))


def _check_entitled(findings: Findings, views: Views, device: Device, cid: int, seqs: set[int]) -> None:
    if cid not in views.history.members or not seqs:
        return
    lowest, highest = min(seqs), max(seqs)
    for join, leave in views.history.entitled(cid, device[0]):
        if join <= lowest and (leave is None or highest <= leave):
            return
    for seq in sorted(seqs):
        if not views.history.may_see(cid, device[0], seq):
            says = f"{'/'.join(device)} saw ({cid}, {seq}), which is not for {device[0]}"
            entry = views.history.logs[cid].by_seq.get(seq) if cid in views.history.logs else None
            findings.add("not_entitled", says, mids=(entry.mid,) if entry else ())


# ---------------------------------------------------------------- I8


class _Poll:
    """How far one device is on one channel."""

    __slots__ = ("channel", "covered", "last", "live_since")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.last: int | None = None  # the newest that was pushed
        self.live_since = 0  # nothing is missing between this and `last`
        self.covered: int | None = None  # nothing is missing up to here

    def subscribe(self, step: Subscribe) -> list[int]:
        """Return what a recovery from beyond what the device has passed over."""
        skipped: list[int] = []
        if step.is_recovered and self.covered is not None:
            skipped = between(self.channel.offsets, self.covered, step.since)
        if self.covered is None:
            self.covered = step.since
        self.last = self.live_since = step.since
        return skipped

    def read(self, step: Read) -> list[int]:
        """Return what a cursor beyond what the device has passed over. A conversation may be read anywhere."""
        skipped: list[int] = []
        if self.covered is not None and step.cid is None:
            skipped = between(self.channel.offsets, self.covered, step.since)
        if self.covered is None or step.since <= self.covered or step.cid is None:
            self.covered = max(self.covered or 0, step.reached)
        self._join()
        return skipped

    def deliver(self, offset: int) -> list[int]:
        """Return what was passed over."""
        skipped: list[int] = []
        if self.last is None:
            self.live_since = offset - 1
            self.covered = offset if self.covered is None else self.covered
        elif offset > self.last + 1:
            skipped = between(self.channel.offsets, max(self.last, self.covered or 0), offset - 1)
            if skipped:
                self.live_since = offset - 1
        self.last = offset
        self._join()
        return skipped

    def _join(self) -> None:
        if self.last is not None and self.covered is not None and self.covered >= self.live_since:
            self.covered = max(self.covered, self.last)


def check_i8(views: Views) -> Finding:
    """A device is pushed each entry of a channel after the one before: none again or backwards, none passed over.

    A new subscription may begin anywhere, since its device then reads what it misses. But a position from which a
    device reads on in its timeline, or is resumed because the server vouched for continuity, must be one up to which it
    has everything. Views show messages by ascending seq, without a hole that the device does not know of.
    """
    history = views.history
    findings = Findings("I8", "deliveries and views")
    findings.looked = history.counts["deliveries"] + len(history.displays)
    for (device, name), steps in history.steps.items():
        _check_polls(findings, views, device, name, steps)
    for stamp, display in history.displays:
        _check_view(findings, views, display, stamp)
    return findings.done()


def _check_polls(findings: Findings, views: Views, device: Device, name: str, steps: list[Step]) -> None:
    channel = views.channels[name]
    poll = _Poll(channel)
    who = f"{'/'.join(device)} on {name}"
    for step in steps:
        if isinstance(step, Read):
            skipped, what = poll.read(step), f"read on from {step.since}"
        elif isinstance(step, Subscribe):
            skipped, what = poll.subscribe(step), f"was resumed at {step.since}"
        else:
            offset, claim = step
            if poll.last is not None and offset <= poll.last:
                findings.add("nonmonotonic", f"{who} got {offset} after {poll.last}", mids=(claim.mid,))
                continue
            skipped, what = poll.deliver(offset), f"got {offset}"
        hidden = [
            offset for offset in skipped if not views.is_gap(device, channel.at[offset].cid, channel.at[offset].seq)
        ]
        if hidden:
            findings.add("skip", f"{who} {what} and passed over {hidden[:10]}", mids=_mids(channel, hidden))


def _mids(channel: Channel, offsets: list[int]) -> tuple[int, ...]:
    return tuple(channel.at[offset].mid for offset in offsets[:10])


def _check_view(findings: Findings, views: Views, display: Display, stamp: Stamp) -> None:
    seqs = [entry.seq for entry in display.entries]
    who = f"{display.user}/{display.device}"
    if display.is_sorted:
        for above, below in pairwise(seqs):
            if below < above:
                findings.add("view_order", f"{who} shows {display.cid}: {below} below {above}", at=(stamp.at,))
                break
    if not seqs or display.cid not in views.history.logs:
        return
    between_them = between(views.shown_seqs(display.cid, display.user), min(seqs) - 1, max(seqs))
    if len(between_them) == len(seqs):  # what is shown and not in the log is I5's
        return
    shown = set(seqs)
    device = display.user, display.device
    holes = [seq for seq in between_them if seq not in shown and not views.is_gap(device, display.cid, seq)]
    if holes:
        findings.add("view_hole", f"{who} shows {display.cid} without {holes[:10]}", at=(stamp.at,))


# ---------------------------------------------------------------- I9


def check_i9(views: Views) -> Finding:
    """What a timeline's page ended with is closed: no entry appears at or below it. An offset keeps its entry.

    Entries are known from the final timeline, and from what anybody was pushed or read.
    """
    history = views.history
    findings = Findings("I9", "pages of timelines")
    for name, channel in views.channels.items():
        for offset, was, then in channel.rewritten:
            says = f"{name} had ({was.cid}, {was.seq}) and ({then.cid}, {then.seq}) at {offset}"
            findings.add("changed", says, mids=(was.mid, then.mid))
        timeline = history.timelines.get(name)
        if timeline is not None:
            final = {placed.offset for placed in timeline.entries}
            for offset in channel.offsets:
                if offset not in final and offset >= timeline.first:
                    says = f"{name} had an entry at {offset}, and has none at the end"
                    findings.add("vanished", says, mids=_mids(channel, [offset]))
    for stamp, read in history.reads:
        if read.cid is not None:
            continue
        findings.looked += 1
        channel = views.channels[read.channel]
        closed = between(channel.offsets, read.since, read.reached)
        if len(closed) != len(read.entries):
            got = {entry.offset for entry in read.entries}
            late = [offset for offset in closed if offset not in got]
            if late:
                says = f"{read.user}/{read.device} read {read.channel} to {read.reached}, then came {late[:10]}"
                findings.add("late", says, mids=_mids(channel, late), at=(stamp.at,))
    return findings.done()


# ---------------------------------------------------------------- I10


def check_i10(views: Views) -> Finding:
    """A total is the sum of its parts; each part is what the log says at the positions that it was counted at; once it
    is quiet, they are the newest; and a read pointer never goes back.

    What a user asked for is compared with all that was certainly there before; what came unasked only with what the
    same device got before, since nobody knows when it was computed. Parts of conversations that the user left are not
    judged.
    """
    history = views.history
    findings = Findings("I10", "unread counts with their positions")
    pointers: defaultdict[tuple[str, int, str], list[Span[str]]] = defaultdict(list)
    for stamp, seen in history.unread:
        total = sum(part.unread for part in seen.parts)
        if seen.total != total:
            says = f"{seen.user}/{seen.device} was told a total of {seen.total} and parts of {total}"
            findings.add("total", says, at=(stamp.at,))
        for part in seen.parts:
            _check_part(findings, views, seen, part, stamp)
            if part.read_seq is not None:
                what = f"{seen.user}/{seen.device} was told"
                pointers[seen.user, part.cid, seen.device].append(Span(stamp, stamp, part.read_seq, what))
                if seen.asked_at is not None:
                    asked = Stamp(seen.asked_at, "", stamp.order)
                    pointers[seen.user, part.cid, ""].append(Span(asked, stamp, part.read_seq, what))
    for written in history.written.values():
        for attempt in written.oks:
            ok = attempt.ok
            if attempt.invoke.op == "mark_read" and ok is not None:
                what = f"mark_read of {attempt.invoke.user}/{attempt.invoke.device} gave"
                pointers[attempt.invoke.user, ok.cid, ""].append(Span(attempt.stamp, attempt.ok_stamp, ok.seq, what))
    for (_, cid, _), spans in pointers.items():
        for earlier, later in inversions(spans):
            says = f"{later.what} read pointer {later.position} of {cid}, after {earlier.what} {earlier.position}"
            findings.add("went_back", says, at=(earlier.begin.at, later.begin.at))
    return findings.done()


def _check_part(findings: Findings, views: Views, seen: UnreadObs, part: UnreadPart, stamp: Stamp) -> None:
    history = views.history
    if part.read_seq is None or part.max_seq is None or part.cid not in history.logs:
        return
    joins = [range_ for range_ in history.entitled(part.cid, seen.user) if range_[0] <= part.max_seq + 1]
    join, leave = max(joins, key=lambda range_: range_[0]) if joins else (1, None)
    if leave is not None:
        return
    findings.looked += 1
    counting = views.counting[part.cid]
    right = counting.unread(seen.user, floor=max(part.read_seq, join - 1), upto=part.max_seq)
    who = f"{seen.user}/{seen.device}"
    if part.unread != right:
        says = f"{who} was told {part.unread} unread of {part.cid} in ({part.read_seq}, {part.max_seq}]; it is {right}"
        findings.add("oracle", says, at=(stamp.at,))
    is_fresh = seen.asked_at is not None and history.is_after_quiet(Stamp(seen.asked_at, stamp.process, stamp.order))
    newest = counting.countable[-1] if counting.countable else 0
    if is_fresh and part.max_seq < newest:
        says = f"{who} was told of {part.cid} up to {part.max_seq}, long after {newest} was there"
        findings.add("stale", says, at=(stamp.at,))


# ---------------------------------------------------------------- I13


def check_i13(views: Views) -> Finding:
    """Once it is quiet, no device shows or reads a recalled body, nor one older than the last edit.

    The seq stays, and shows as recalled: a view without it has a hole (I8). Who may not see a recall or an edit, having
    left before it, need not be told of it.
    """
    history = views.history
    findings = Findings("I13", "recalled and edited messages, shown or read when it was quiet")
    newest: dict[tuple[str, str, int], tuple[Stamp, Display]] = {}
    for stamp, display in history.displays:
        if history.is_after_quiet(stamp):
            newest[display.user, display.device, display.cid] = stamp, display
    reads = [(stamp, read) for stamp, read in history.reads if history.is_after_quiet(stamp)]
    for event, cid, seq, mid, digest in _sights([*newest.values(), *reads]):
        covers = views.covers.get((cid, seq), ())
        told = [place for place, (at, _) in enumerate(covers) if history.may_see(cid, event.user, at)]
        if not told:
            continue
        findings.looked += 1
        _, right = covers[told[-1]]
        if digest not in {body for _, body in covers[told[-1] :]}:
            kind, what = ("recalled", "recalled") if right is None else ("outdated", "edited since")
            says = f"{event.user}/{event.device} sees a body of ({cid}, {seq}) that was {what}"
            findings.add(kind, says, mids=(mid,), at=(event.at,))
    return findings.done()
