"""A messaging system of one server in memory, its clients and its mishaps, all from one seed; and each way to break it.

The server's state is the fold of a journal, which is what a crash leaves. Requests wait in queues by sender, one is
handled at a time; what is stored goes to every member's timeline, and is pushed to the members' devices. Pushes get
lost, connections break, answers with them, the server is killed or loses its power. In the end everything is mended,
and everybody catches up.

`Bug` has one switch for each mistake that real systems made. Without any the system keeps all promises.
"""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import msgspec

from base.clock import SimClock
from roadstead.history.events import DisplayEntry, Event, LogEntry, Op, ReadEntry, TimelineEntry, UnreadPart
from roadstead.history.recorder import Recorder, digest
from tests.roadstead.history.tiny_model import (
    FORMS,
    GROUP,
    SINGLES,
    USERS,
    Bug,
    Device,
    MemoryRecorder,
    Request,
    initial,
)

PAGE = 5


class System:
    """Server, clients and weather. `run` makes the history."""

    def __init__(self, seed: int, bugs: frozenset[Bug] = frozenset(), *, steps: int = 400) -> None:
        self.random = Random(seed)
        self.bugs = bugs
        self.steps = steps
        self.clock = SimClock()
        self.events: list[Event] = []
        self.world = MemoryRecorder(self.events, "world", self.clock)
        self.journal: list[tuple[object, ...]] = []
        self.synced = 0
        self.state = initial()
        self.ingress: tuple[deque[Request], ...] = (deque(), deque())
        self.pending: list[tuple[Request | None, int, LogEntry]] = []
        self.pending_offsets: list[tuple[object, ...]] = []
        self.popped: list[Request] = []
        self.reserved: Counter[int] = Counter()
        self.offsets: Counter[str] = Counter()
        self.counters: Counter[tuple[str, int]] = Counter()
        self.totals: Counter[str] = Counter()
        self.mids = 0
        self.bodies = 0
        self.is_calm = False
        names = [(user, name) for user in USERS for name in ("phone", "laptop")]
        self.devices = [
            Device(user, name, (user, name) == ("cid", "phone"), self._recorder(f"{user}-{name}"))
            for user, name in names
        ]

    def run(self) -> list[Event]:
        for device in self.devices:
            self.connect(device)
        for _ in range(self.steps):
            self.tick()
            self.step()
        self.settle()
        self.finish()
        return self.events

    def tick(self) -> None:
        self.clock.advance(self.random.choice((0, 0, 1, 1, 2, 5)))

    def step(self) -> None:
        action = self.random.choices(
            (self.act, self.handle, self.consume, self.write, self.push, self.fail), (30, 30, 6, 12, 40, 1)
        )[0]
        action()

    # ---------------------------------------------------------------- clients

    def act(self) -> None:
        device = self.random.choice(self.devices)
        if not device.is_online:
            self.connect(device)
            return
        ops = (self.send, self.send_to_many, self.alter, self.mark_read, self.browse, self.count, self.display)
        self.random.choices(ops, (20, 5, 8, 6, 4, 6, 4))[0](device)

    def send(self, device: Device, cid: int | None = None) -> None:
        cids = [cid for cid, user in self.state.joined if user == device.user]
        if self.random.random() < 0.03 or not cids:
            cids = [other for other in SINGLES if device.user not in SINGLES[other]]
        cid = cid or self.random.choice(cids)
        self.bodies += 1
        self.invoke(device, "send", f"{device.name}-{self.bodies}", (cid, 0), f"body {self.bodies}")

    def send_to_many(self, device: Device) -> None:
        """One message to each conversation, without waiting."""
        for cid in [cid for cid, user in self.state.joined if user == device.user]:
            self.send(device, cid)

    def alter(self, device: Device) -> None:
        if device.user == "dan" and (GROUP, "dan") not in self.state.joined:
            self.invoke(device, "join", f"{device.name}-join", (GROUP, 0))
            return
        mine = [
            (cid, seq)
            for cid, view in device.views.items()
            for seq, (_, shown) in view.items()
            if shown is not None and self.state.is_by(cid, seq, device.user)
        ]
        if mine:
            self.bodies += 1
            op: Op = self.random.choice(("edit", "recall"))
            body = f"edit {self.bodies}" if op == "edit" else ""
            self.invoke(device, op, f"{device.name}-{self.bodies}", self.random.choice(mine), body)

    def mark_read(self, device: Device) -> None:
        seen = [(cid, seq) for cid, view in device.views.items() for seq in view]
        if seen:
            self.bodies += 1
            self.invoke(device, "mark_read", f"{device.name}-{self.bodies}", self.random.choice(seen))

    def invoke(self, device: Device, op: Op, cmid: str, target: tuple[int, int], body: str = "") -> None:
        """`target`: the conversation, and the seq that is edited, recalled or read."""
        cid, ref = target
        call = device.recorder.invoke(
            op, user=device.user, device=device.name, client_msg_id=cmid, cid=cid, digest=hashed(body), ref=ref
        )
        request = Request(device, device.connection, call, op, cmid, cid, body, ref)
        device.outstanding.append(request)
        shard = cid if Bug.SHARDED_BY_RECIPIENT in self.bugs else self.devices.index(device)
        self.ingress[shard % 2].append(request)

    def answered(self, request: Request) -> Recorder | None:
        """Return where to record the answer, None if it does not arrive."""
        device = request.device
        if request.connection != device.connection or not device.is_online or request not in device.outstanding:
            return None
        device.outstanding.remove(request)
        return device.recorder

    def connect(self, device: Device) -> None:
        """Subscribe from the cursor, or from the head and read what is missing; then try again what is unanswered."""
        device.is_online = True
        device.connection += 1
        head = self.state.head(device.user)
        is_recovered = self.random.random() < 0.5
        since = device.cursor if is_recovered else head
        device.recorder.subscribe(
            user=device.user, device=device.name, channel=device.channel, since=since, is_recovered=is_recovered
        )
        if is_recovered:
            device.pushes.extend(self.visible(device, since, head))
        else:
            self.catch_up(device)
        unanswered, device.unanswered = device.unanswered, []
        for old in unanswered:
            is_other = Bug.CONFLICT_ACCEPTED in self.bugs and old.op == "send"
            body = f"another {old.body}" if is_other else old.body
            self.invoke(device, old.op, old.cmid, (old.cid, old.ref), body)

    def disconnect(self, device: Device) -> None:
        device.is_online = False
        device.pushes.clear()
        for request in device.outstanding:
            device.recorder.info(request.call, why="the connection broke")
        device.unanswered.extend(device.outstanding)
        device.outstanding.clear()

    def catch_up(self, device: Device) -> None:
        while True:
            head = self.state.head(device.user)
            page = self.visible(device, device.cursor, head)[:PAGE]
            entries = [ReadEntry(offset, cid, seq, self.state.entry(cid, seq).mid) for offset, cid, seq in page]
            device.recorder.read(
                user=device.user,
                device=device.name,
                channel=device.channel,
                since=device.cursor,
                head=head,
                entries=entries,
            )
            for _, cid, seq in page:
                self.show(device, cid, seq)
            device.cursor = page[-1][0] if page else max(device.cursor, head)
            if device.cursor >= head:
                return

    def visible(self, device: Device, since: int, upto: int) -> list[tuple[int, int, int]]:
        entries = [place for place in self.state.timelines[device.user] if since < place[0] <= upto]
        if Bug.RECALL_NOT_FOR_LATE_DEVICES in self.bugs:
            entries = [place for place in entries if self.state.entry(*place[1:]).form != "recall"]
        return entries

    def show(self, device: Device, cid: int, seq: int) -> None:
        entry = self.state.entry(cid, seq)
        view = device.views.setdefault(cid, {})
        if entry.form == "message":
            view[seq] = entry.mid, entry.digest
        elif entry.form in {"edit", "recall"} and entry.ref in view and view[entry.ref][1] is not None:
            view[entry.ref] = view[entry.ref][0], entry.digest if entry.form == "edit" else None

    def browse(self, device: Device) -> None:
        """Read a page of a conversation."""
        cid = self.random.choice([cid for cid, user in self.state.joined if user == device.user] or [0])
        if not cid:
            return
        log = self.state.logs[cid]
        since = self.random.randint(0, len(log))
        floor = 0 if Bug.BOUNDARY_IGNORED in self.bugs else self.state.joined[cid, device.user] - 1
        page = [entry for entry in log if entry.seq > max(since, floor)][:PAGE]
        shown: list[ReadEntry] = []
        for entry in page:
            body = self.current(cid, entry) if entry.form == "message" else ""
            shown.append(ReadEntry(entry.seq, cid, entry.seq, entry.mid, body))
        device.recorder.read(
            user=device.user,
            device=device.name,
            channel=f"conv:{cid}",
            since=since,
            head=log[-1].seq if log else 0,
            entries=shown,
            cid=cid,
        )

    def current(self, cid: int, message: LogEntry) -> str | None:
        body: str | None = message.digest
        for entry in self.state.logs[cid]:
            if entry.ref == message.seq and entry.form == "recall":
                return None
            if entry.ref == message.seq and entry.form == "edit":
                body = entry.digest
        return body

    def display(self, device: Device) -> None:
        for cid, view in device.views.items():
            seqs = list(view) if Bug.VIEW_BY_ARRIVAL in self.bugs else sorted(view)
            entries = [DisplayEntry(seq, *view[seq]) for seq in seqs]
            device.recorder.display(user=device.user, device=device.name, cid=cid, entries=entries)

    def count(self, device: Device) -> None:
        asked_at = device.recorder.now()
        parts = []
        for (cid, user), joined in self.state.joined.items():
            if user == device.user and self.state.logs[cid]:
                read = self.state.read.get((user, cid), 0)
                unread = self.unread(user, cid, max(read, joined - 1)) + self.counters[user, cid]
                parts.append(UnreadPart(cid, unread, read, self.state.logs[cid][-1].seq))
        total = sum(part.unread for part in parts) + self.totals[device.user]
        device.recorder.unread_obs(user=device.user, device=device.name, total=total, parts=parts, asked_at=asked_at)

    def unread(self, user: str, cid: int, floor: int) -> int:
        """Count anew from the log, the slow way."""
        count = 0
        for entry in self.state.logs[cid]:
            if entry.form == "message" and entry.sender == user:
                count = 0
            elif entry.form == "message" and entry.seq > floor and not self.state.is_recalled(cid, entry.seq):
                count += 1
        return count

    # ---------------------------------------------------------------- the server

    def handle(self) -> None:
        shards = [shard for shard in self.ingress if shard]
        if not shards:
            return
        request = self.random.choice(shards).popleft()
        key = request.key
        if request.op == "mark_read":
            self.handle_mark_read(request)
        elif key in self.state.keys and Bug.NO_DEDUPE not in self.bugs:
            cid, seq, mid, hashed_body = self.state.keys[key]
            if hashed_body != hashed(request.body) and Bug.CONFLICT_ACCEPTED not in self.bugs:
                self.refuse(request, "conflict")
            elif recorder := self.answered(request):
                recorder.ok(request.call, cid=cid, seq=seq, mid=mid)
            if Bug.COUNTERS_NOT_IDEMPOTENT in self.bugs:
                self.counters[next(user for user in self.state.members(cid) if user != key[0]), cid] += 1
        elif any(entry is not None and entry.key == key for entry, _, _ in self.pending):
            pass  # under way: the first attempt's answer is lost, the next attempt gets it
        elif request.device.is_queued:
            self.enqueue(request)
        elif why := self.refusal(request):
            self.refuse(request, why)
            if Bug.REFUSED_BUT_WRITTEN in self.bugs and why == "no member":
                self.commit(request.cid, self.make(request))
        else:
            self.store(request)

    def refusal(self, request: Request) -> str:
        user, cid = request.device.user, request.cid
        if request.op == "join":
            return "joined already" if (cid, user) in self.state.joined else ""
        if (cid, user) not in self.state.joined:
            return "no member"
        if request.op in {"edit", "recall"} and self.state.is_recalled(cid, request.ref):
            return "recalled already"
        return ""

    def refuse(self, request: Request, why: str) -> None:
        if recorder := self.answered(request):
            recorder.fail(request.call, why=why)

    def handle_mark_read(self, request: Request) -> None:
        place = request.device.user, request.cid
        seq = max(request.ref, self.state.read.get(place, 0))
        if Bug.READ_POINTER_GOES_BACK in self.bugs:
            seq = request.ref
        self.log(("read", *place, seq))
        if recorder := self.answered(request):
            recorder.ok(request.call, cid=request.cid, seq=seq)

    def store(self, request: Request) -> None:
        """Commit, then answer; in this order, but for what is broken."""
        entry = self.make(request)
        if Bug.SEQ_OUTSIDE_TRANSACTION in self.bugs:
            self.pending.append((request, request.cid, entry))
        elif Bug.ACK_BEFORE_COMMIT in self.bugs:
            self.pending.append((request, request.cid, entry))
            self.acknowledge(request, entry)
        else:
            self.commit(request.cid, entry)
            self.acknowledge(request, entry)

    def acknowledge(self, request: Request, entry: LogEntry) -> None:
        if recorder := self.answered(request):
            recorder.ok(request.call, cid=request.cid, seq=entry.seq, mid=entry.mid)

    def make(self, request: Request) -> LogEntry:
        """Give the request its place."""
        log = self.state.logs[request.cid]
        newest = max([self.reserved[request.cid], *(entry.seq for entry in log)])
        seq = newest + 1
        if Bug.TWO_SEQUENCERS in self.bugs:
            block = self.devices.index(request.device) % 2 * 500
            seq = max([block, *(entry.seq for entry in log if block < entry.seq <= block + 500)]) + 1
        elif self.bugs & {Bug.SEQ_OUTSIDE_TRANSACTION, Bug.ACK_BEFORE_COMMIT}:
            self.reserved[request.cid] = seq
        self.mids += 1
        form = FORMS[request.op]
        names = request.device.user, request.cmid
        return LogEntry(seq, 0, self.mids, *names, hashed(request.body), form, request.ref)

    def commit(self, cid: int, entry: LogEntry) -> None:
        if Bug.EDIT_REWRITES_LOG in self.bugs and entry.form == "edit":
            self.rewrite(cid, entry)
        users = [*self.state.members(cid), *([entry.sender] if entry.form == "change" else [])]
        late = self.random.choice(users) if Bug.TIMELINE_ENTRY_LATE in self.bugs and self.random.random() < 0.1 else ""
        before = sum(one.form == "message" for one in self.state.logs[cid] if one.seq < entry.seq)
        entry = msgspec.structs.replace(entry, cseq=before + (entry.form == "message"))
        offsets = {}
        for user in users:
            self.offsets[user] = max(self.offsets[user], self.state.head(user)) + 1
            if user == late:
                self.pending_offsets.append(("offset", user, self.offsets[user], cid, entry.seq))
            else:
                offsets[user] = self.offsets[user]
        self.log(("entry", cid, entry, offsets))
        if Bug.TOTAL_APART in self.bugs and entry.form == "recall":
            self.totals[users[0]] += 1
        for device in self.devices:
            if device.is_online and device.user in offsets:
                device.pushes.append((offsets[device.user], cid, entry.seq))

    def rewrite(self, cid: int, edit: LogEntry) -> None:
        old = self.state.entry(cid, edit.ref)
        new = LogEntry(old.seq, old.cseq, old.mid, old.sender, old.client_msg_id, edit.digest)
        self.state.logs[cid][self.state.logs[cid].index(old)] = new

    def log(self, record: tuple[object, ...]) -> None:
        self.journal.append(record)
        self.state.apply(record)
        if Bug.NO_SYNC not in self.bugs or self.random.random() < 0.1:
            self.synced = len(self.journal)

    def write(self) -> None:
        """What a broken server does later than it should."""
        if self.pending:
            is_random = Bug.SEQ_OUTSIDE_TRANSACTION in self.bugs
            place = self.random.randrange(len(self.pending)) if is_random else 0
            request, cid, entry = self.pending.pop(place)
            self.commit(cid, entry)
            if request is not None and Bug.ACK_BEFORE_COMMIT not in self.bugs:
                self.acknowledge(request, entry)
        if self.pending_offsets:
            self.log(self.pending_offsets.pop(0))

    # ---------------------------------------------------------------- queued sends

    def enqueue(self, request: Request) -> None:
        known = {queued.key for queued in self.state.queue} | self.state.refused
        if request.key not in known:
            self.log(("enqueue", request))
        if recorder := self.answered(request):
            recorder.queued(request.call)

    def consume(self) -> None:
        if self.popped:
            self.carry_out(self.popped.pop(0))
            return
        if not self.state.queue:
            return
        request = self.state.queue[0]
        if Bug.QUEUE_OFFSET_BEFORE_WRITE in self.bugs:
            self.log(("dequeue", False))
            self.popped.append(request)
            return
        why = self.refusal(request)
        if not why:
            self.carry_out(request)
        # In one transaction with what was carried out: no crash comes in between.
        self.log(("dequeue", bool(why)))
        if why or (Bug.FAILURE_OF_WHAT_WAS_WRITTEN in self.bugs and self.random.random() < 0.3):
            request.device.notices.append(request.cmid)

    def carry_out(self, request: Request) -> None:
        if request.key not in self.state.keys and not self.refusal(request):
            self.commit(request.cid, self.make(request))

    # ---------------------------------------------------------------- pushes and mishaps

    def push(self) -> None:
        device = self.random.choice(self.devices)
        if not device.is_online:
            return
        if device.notices:
            cmid = device.notices.popleft()
            device.recorder.failure(user=device.user, device=device.name, client_msg_id=cmid)
        if not device.pushes:
            return
        if Bug.PUSH_OUT_OF_ORDER in self.bugs and len(device.pushes) > 1:
            device.pushes.rotate(-self.random.randrange(2))
        offset, cid, seq = device.pushes.popleft()
        if not self.is_calm and self.random.random() < 0.05:
            return  # lost
        takes_newer = self.bugs & {Bug.CURSOR_IS_NEWEST_SEEN, Bug.VIEW_BY_ARRIVAL} and offset > device.cursor
        if offset == device.cursor + 1 or takes_newer or Bug.PUSH_OUT_OF_ORDER in self.bugs:
            self.deliver(device, offset, cid, seq)
        elif offset > device.cursor:
            self.catch_up(device)

    def deliver(self, device: Device, offset: int, cid: int, seq: int) -> None:
        entry = self.state.entry(cid, seq)
        device.recorder.deliver(
            user=device.user,
            device=device.name,
            channel=device.channel,
            offset=offset,
            cid=cid,
            seq=seq,
            mid=entry.mid,
            sender=entry.sender,
            client_msg_id=entry.client_msg_id,
            digest=entry.digest,
            form=entry.form,
            ref=entry.ref,
        )
        missed = [place for place in self.visible(device, device.cursor, offset - 1) if place[0] > device.cursor]
        device.cursor = max(device.cursor, offset)
        self.show(device, cid, seq)
        if Bug.VIEW_BY_ARRIVAL in self.bugs:
            for _, missed_cid, missed_seq in missed:
                self.show(device, missed_cid, missed_seq)

    def fail(self) -> None:
        if self.random.random() < 0.7:
            device = self.random.choice([device for device in self.devices if device.is_online] or self.devices)
            self.lose_wire(device)
            self.disconnect(device)
            return
        for device in self.devices:
            self.disconnect(device)
        for shard in self.ingress:
            shard.clear()
        self.pending.clear()
        self.pending_offsets.clear()
        self.popped.clear()
        self.journal = self.journal[: self.synced]
        if Bug.NO_SYNC in self.bugs:
            self.state = initial()
            for record in self.journal:
                self.state.apply(record)
        self.world.fault(self.random.choice(("kill", "power_loss")), target="server")

    def lose_wire(self, device: Device) -> None:
        """Of what the device sent last, an end does not arrive."""
        for shard in self.ingress:
            mine = [request for request in shard if request.device is device]
            for request in mine[self.random.randint(0, len(mine)) :]:
                shard.remove(request)

    # ---------------------------------------------------------------- the end

    def settle(self) -> None:
        """Mend everything, and let everybody catch up."""
        self.is_calm = True
        for device in self.devices:
            if not device.is_online:
                self.connect(device)
        is_busy = True
        while is_busy:
            self.tick()
            for action in (self.handle, self.consume, self.write, self.push):
                action()
            is_busy = bool(
                any(self.ingress) or self.state.queue or self.popped or self.pending or self.pending_offsets
            ) or any(device.pushes or device.notices for device in self.devices)
        for device in self.devices:
            if Bug.CURSOR_IS_NEWEST_SEEN not in self.bugs:
                self.catch_up(device)

    def finish(self) -> None:
        self.tick()
        self.world.quiet(devices=[(device.user, device.name) for device in self.devices])
        self.clock.advance(1)
        for device in self.devices:
            self.display(device)
            self.count(device)
            self.browse(device)
        for (cid, user), joined in self.state.joined.items():
            self.world.members(cid=cid, user=user, join_seq=joined)
        for cid, log in self.state.logs.items():
            self.world.final_log(cid=cid, entries=log, channel=f"conv:{cid}")
        for user, timeline in self.state.timelines.items():
            entries = [TimelineEntry(offset, cid, seq, self.state.entry(cid, seq).mid) for offset, cid, seq in timeline]
            self.world.final_timeline(user=user, channel=f"inbox:{user}", entries=entries)

    def _recorder(self, process: str) -> MemoryRecorder:
        return MemoryRecorder(self.events, process, self.clock)


def hashed(body: str) -> str:
    return digest(body.encode()) if body else ""
