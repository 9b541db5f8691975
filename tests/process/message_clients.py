"""Light clients of the message services: a raw socket each, many commands in a frame, and positions over reconnects.

A device reads its user's timeline, and the channels of conversations with read fan-out as the timeline says. What it is
told it writes down as it comes, unsorted and with whatever comes twice. What it sends it sends until there is an
answer, with the same key: on the same connection when the answer is late, on the next one when the connection is lost.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import msgspec

from base.errors import RoadsteadError
from roadstead.api import call_api
from roadstead.history.events import Op
from roadstead.history.recorder import Recorder
from tests.process.message_wire import Error, Publication, Reply, Result, Socket, Start
from tests.process.message_witness import Entries, Entry, Listed, Page, Track, Witness

__all__ = ["Call", "LightDevice", "Script"]

WINDOW = 24
"""Most calls of one device that have no answer yet."""
BATCH = 8
LATE_S = 1.5
"""After this a call without an answer is made again; after twice that on another connection."""
SILENCE_S = 5.0
"""The server pings more often."""
LOOK_S = 0.25
PAGE = 200
LOOK_BACK = 10
"""Entries."""
CONNECT_ID = 1
LEAVING = frozenset({"leave", "kick", "dissolve"})
JOINING = frozenset({"create", "invite", "join"})
NOT_SUBSCRIBABLE = 103


class Call:
    """Something that a device asks for until it is answered."""

    __slots__ = ("attempt", "cid", "data", "digest", "key", "method", "op", "ref", "since")

    def __init__(
        self,
        op: Op,
        key: str,
        method: str,
        arguments: dict[str, Any],
        *,
        cid: int | None = None,
        digest: str = "",
        ref: int = 0,
    ) -> None:
        self.op: Op = op
        self.key = key
        self.method = method
        self.data = msgspec.json.encode(arguments)
        self.cid = cid
        self.digest = digest
        self.ref = ref
        self.attempt = 0
        """The recorder's number of the newest attempt."""
        self.since = 0.0


class Script(Protocol):
    """What a device does."""

    def next(self, device: LightDevice) -> Call | None:
        """Return what it asks for next; None: nothing just now."""
        ...

    def stored(self, device: LightDevice, call: Call, *, cid: int, seq: int) -> None:
        """It was acknowledged."""
        ...


_entry = msgspec.json.Decoder(Entry).decode
_result = msgspec.json.Decoder(Result).decode
_page = msgspec.json.Decoder(Page).decode
_entries = msgspec.json.Decoder(Entries).decode
_list = msgspec.json.Decoder(Listed).decode
_json = msgspec.json.Encoder().encode

Told = Callable[[msgspec.Raw | None, Error | None], None]
"""Called with the result of something that was asked, or with the error; never if the connection is lost."""


class LightDevice:
    """See the module."""

    def __init__(
        self,
        user: str,
        name: str,
        *,
        front: str,
        credential: str,
        tls: ssl.SSLContext,
        recorder: Recorder,
        script: Script,
        random: Random,
    ) -> None:
        self.user = user
        self.name = name
        self.random = random
        self.witness = Witness(recorder, user, name)
        self.inbox = Track()
        self.conversations: dict[int, Track] = {}
        """Those that are followed by channels of their own, or were."""
        self.groups: set[int] = set()
        """Those that its user is in."""
        self.fan_out: dict[int, str] = {}
        self.repeated = 0
        """Calls that were made again because their answer was late."""
        self.connects = 0
        self.away_s = 0.0
        """How long to stay away after the connection is lost."""
        self.is_open = False
        self.todo: deque[Call] = deque()
        self.flying: dict[int, Call] = {}
        self.latest = (0, 0)
        """The conversation and seq that it was told of last."""
        self._later: list[Call] = []
        """What the server could not do just now."""
        self._asked: dict[int, Told] = {}
        self._asks_unread = False
        self._channel = f"inbox:{user}"
        self._epoch = ""
        self._front = front
        self._credential = credential
        self._tls = tls
        self._recorder = recorder
        self._script = script
        self._socket: Socket | None = None
        self._ticket = ""
        self._numbers = CONNECT_ID
        self._heard = 0.0
        self._versions: dict[int, int] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def is_settled(self) -> bool:
        """Whether everything was answered and nothing is known to be missing."""
        tracks = (self.inbox, *self.conversations.values())
        return self.is_open and not (
            self.todo or self.flying or self._later or any(track.has_gap or track.is_reading for track in tracks)
        )

    @property
    def state(self) -> str:
        """What it waits for, for people."""
        calls = f"{len(self.todo)} calls to make, {len(self.flying)} under way, {len(self._later)} later"
        missing = {cid: (one.covered, one.live, one.ends_at) for cid, one in self.conversations.items() if one.has_gap}
        return f"open: {self.is_open}, connects: {self.connects}, {calls}, missing: {missing}"

    # ---------------------------------------------------------------- connections

    async def run(self) -> None:
        """Be connected, again and again, until cancelled."""
        params = {"user": self.user, "device": self.name, "platform": "light"}
        while True:
            with suppress(RoadsteadError, OSError, TimeoutError):
                url = f"{self._front}/v1/access"
                answer = await call_api("GET", url, credential=self._credential, params=params)
                self._ticket = answer["ticket"]
                address = urlsplit(answer["candidates"][0]["urls"]["websocket"])
                await self._connected(address)
            await asyncio.sleep(self.away_s + self.random.uniform(0.01, 0.2))
            self.away_s = 0.0

    async def _connected(self, address: SplitResult) -> None:
        tls = self._tls if address.scheme == "wss" else None
        async with asyncio.timeout(SILENCE_S):
            _, socket = await self._loop.create_connection(
                lambda: Socket(self, address.netloc, address.path), host=address.hostname, port=address.port, ssl=tls
            )
        self._socket, self._heard = socket, self._loop.time()
        try:
            while not socket.is_over.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await socket.is_over.wait()
                self._look()
        finally:
            socket.abort()
            self._lost()

    def upgraded(self, socket: Socket) -> None:
        """Connect, from where the timeline was read to."""
        position = {"recover": True, "epoch": self._epoch, "offset": self.inbox.covered}
        connect = {"token": self._ticket, "subs": {self._channel: position}}
        socket.write(_json({"id": CONNECT_ID, "connect": connect}))

    def heard(self) -> None:
        """Something came."""
        self._heard = self._loop.time()

    def drop(self, away_s: float) -> None:
        """Lose the connection, and stay away for a while."""
        self.away_s = away_s
        if self._socket is not None:
            self._socket.abort()

    def _lost(self) -> None:
        self.is_open, self._socket = False, None
        calls, self.flying = list(self.flying.values()), {}
        self._asked.clear()
        self._asks_unread = False
        for track in (self.inbox, *self.conversations.values()):
            track.is_reading = track.is_subscribed = False
        self._again(calls, "the connection was lost")

    def _again(self, calls: list[Call], why: str) -> None:
        for call in calls:
            self._recorder.info(call.attempt, why=why)
        self.todo.extendleft(reversed(calls))

    def _look(self) -> None:
        """Make late calls again, or give the connection up; and go on with what failed."""
        now = self._loop.time()
        if now - self._heard > SILENCE_S:
            self.drop(0)
            return
        if not self.is_open:
            return
        late = [number for number, call in self.flying.items() if now - call.since > LATE_S]
        if late and now - self._heard > 2 * LATE_S:
            self.drop(0)
        elif late:
            self.repeated += len(late)
            self._again([self.flying.pop(number) for number in late], "no answer in time")
        self.todo.extendleft(reversed(self._later))
        self._later.clear()
        for cid, track in self.conversations.items():
            if track.ends_at is None and not track.is_subscribed and not track.is_reading:
                self._subscribe(cid, track)
        self._catch_up()
        self.pump()

    # ---------------------------------------------------------------- calls

    def pump(self) -> None:
        """Send what there is to send, as far as it may."""
        while self.is_open and WINDOW - len(self.flying) >= BATCH:
            lines: list[bytes] = []
            for _ in range(self.random.randrange(1, BATCH + 1)):
                call = self._next_call()
                if call is None:
                    break
                lines.append(self._begin(call))
            if not lines:
                return
            self._write(b"\n".join(lines))

    def _next_call(self) -> Call | None:
        return self.todo.popleft() if self.todo else self._script.next(self)

    def _begin(self, call: Call) -> bytes:
        call.attempt = self._recorder.invoke(
            call.op,
            user=self.user,
            device=self.name,
            client_msg_id=call.key,
            cid=call.cid,
            digest=call.digest,
            ref=call.ref,
        )
        call.since = self._loop.time()
        number = self._next()
        self.flying[number] = call
        return b'{"id":%d,"rpc":{"method":"im.%b","data":%b}}' % (number, call.method.encode(), call.data)

    def ask(self, method: str, arguments: dict[str, Any], told: Told) -> None:
        """Ask for something that changes nothing, of which nobody minds if the connection is lost before."""
        number = self._next()
        self._asked[number] = told
        self._write(_json({"id": number, "rpc": {"method": f"im.{method}", "data": arguments}}))

    def ask_unread(self) -> None:
        """Ask how many messages are unread, and write it down. Two answers at a time might overtake each other."""
        if self._asks_unread:
            return
        asked_at = self._recorder.now()
        self._asks_unread = True

        def told(result: msgspec.Raw | None, _error: Error | None) -> None:
            self._asks_unread = False
            if result is not None:
                self.witness.unread(_list(result), asked_at)

        self.ask("conversations", {"limit": 1_000}, told)

    def look_back(self, cid: int) -> None:
        """Read a group that the user is not in, around its newest change that is known here: its leaving, perhaps."""
        witness = Witness(self._recorder, self.user, "looking back")
        changed = self._versions.get(cid, 0)
        since = max(0, changed - LOOK_BACK)

        def told(result: msgspec.Raw | None, _error: Error | None) -> None:
            page = _entries(result) if result is not None else None
            if page is not None and page.entries:
                entries = [(entry.seq, entry) for entry in page.entries]
                witness.read(f"conv:{cid}", max(since, page.first_seq - 1), entries[-1][0], page.head, entries)

        self.ask("history", {"cid": str(cid), "after": since, "limit": 2 * LOOK_BACK}, told)

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _write(self, payload: bytes) -> None:
        assert self._socket is not None
        self._socket.write(payload)

    def _answered(self, call: Call, reply: Reply) -> None:
        error, recorder = reply.error, self._recorder
        if error is not None and error.temporary:
            recorder.info(call.attempt, why=error.message)
            self._later.append(call)
        elif error is not None:
            recorder.fail(call.attempt, why=f"{error.code} {error.message}")
        else:
            assert reply.rpc is not None
            result = _result(reply.rpc.data)
            if result.queued:
                recorder.queued(call.attempt)
                return
            cid = int(result.cid)
            if call.op == "mark_read":
                # It tells the pointer that marks move. The list tells where what is read ends, own messages included:
                # for the checker that is another pointer.
                recorder.ok(call.attempt, cid=-cid, seq=result.read_seq)
            else:
                recorder.ok(call.attempt, cid=cid, seq=result.seq, mid=int(result.mid or 0))
                self._script.stored(self, call, cid=cid, seq=result.seq)

    # ---------------------------------------------------------------- what comes

    def take(self, reply: Reply) -> None:
        """Take a reply or a push."""
        push = reply.push
        if push is not None:
            if push.pub is not None:
                self._told(push.channel, push.pub)
            elif push.unsubscribe is not None:
                self._unsubscribed(int(push.channel.removeprefix("conv:")), push.unsubscribe.code)
            return
        call = self.flying.pop(reply.id, None)
        if call is not None:
            self._answered(call, reply)
            self.pump()
            return
        told = self._asked.pop(reply.id, None)
        if told is not None:
            if reply.subscribe is not None:
                told(msgspec.Raw(_json(reply.subscribe)), None)
            else:
                told(reply.rpc.data if reply.rpc is not None else None, reply.error)
        elif reply.id == CONNECT_ID:
            if reply.connect is None:
                self.drop(0)
            else:
                self._joined(reply.connect.subs[self._channel])

    def _joined(self, start: Start) -> None:
        self.connects += 1
        self.is_open = True
        self._epoch = start.epoch
        self._started(self._channel, self.inbox, start)
        for cid, track in self.conversations.items():
            if track.ends_at is None:
                self._subscribe(cid, track)
        self._catch_up()
        self.pump()

    def _started(self, channel: str, track: Track, start: Start) -> None:
        since = track.covered if start.recovered else start.offset
        self.witness.subscribed(channel, since, is_recovered=start.recovered)
        track.begin(since)
        for publication in start.publications:
            self._told(channel, publication)

    def _told(self, channel: str, publication: Publication) -> None:
        if not publication.offset:
            return  # only of the moment; what is in a log comes by a channel as well
        entry = _entry(publication.data)
        self.witness.told(channel, publication.offset, entry)
        track = self.inbox if channel == self._channel else self.conversations[int(entry.cid)]
        track.got(publication.offset)
        if entry.seq:
            self.latest = int(entry.cid), entry.seq
        if entry.kind == "group":
            self._group_changed(entry)

    def _group_changed(self, entry: Entry) -> None:
        """Mind who is in, and whether a conversation has a channel of its own now. Events come by several ways."""
        cid = int(entry.cid)
        if entry.seq <= self._versions.get(cid, 0):
            return
        self._versions[cid] = entry.seq
        body = entry.group
        is_about_me = self.user in body.users
        if body.event in LEAVING and is_about_me:
            self.groups.discard(cid)
            if cid in self.conversations:
                self.conversations[cid].ends_at = entry.seq
        elif body.event in JOINING and is_about_me:
            self.groups.add(cid)
        if cid not in self.groups:
            return
        track = self.conversations.get(cid)
        if body.fan_out == "read" and self.fan_out.get(cid) != "read":
            if track is None:
                track = self.conversations[cid] = Track(entry.seq - 1)
            track.ends_at = None
            if self.is_open:
                self._subscribe(cid, track)
        elif body.fan_out == "write" and track is not None and track.ends_at is None:
            track.ends_at = entry.seq  # what comes after it comes by the timeline
            if track.is_subscribed:
                track.is_subscribed = False
                self._write(_json({"id": self._next(), "unsubscribe": {"channel": f"conv:{cid}"}}))
        self.fan_out[cid] = body.fan_out

    # ---------------------------------------------------------------- catching up

    def _subscribe(self, cid: int, track: Track) -> None:
        if track.is_subscribed or track.is_reading:
            return
        channel = f"conv:{cid}"
        number = self._next()
        track.is_reading = True

        def told(result: msgspec.Raw | None, error: Error | None) -> None:
            track.is_reading = False
            if result is not None:
                self._started(channel, track, msgspec.json.decode(result, type=Start))
                self._catch_up()
            elif error is not None and error.code == NOT_SUBSCRIBABLE and track.ends_at is None:
                track.ends_at = 0  # its user is no member any more; the timeline says since when

        self._asked[number] = told
        request = {"channel": channel, "recover": True, "epoch": self._epoch, "offset": track.covered}
        self._write(_json({"id": number, "subscribe": request}))

    def _unsubscribed(self, cid: int, code: int) -> None:
        track = self.conversations[cid]
        track.is_subscribed = False
        if code >= 2500 and track.ends_at is None:
            self._subscribe(cid, track)

    def _catch_up(self) -> None:
        """Read what is missing, a page at a time."""
        if self.inbox.has_gap and not self.inbox.is_reading:
            self._read_inbox()
        for cid, track in self.conversations.items():
            if track.has_gap and not track.is_reading:
                self._read_conversation(cid, track)

    def _read_inbox(self) -> None:
        track, since = self.inbox, self.inbox.covered
        track.is_reading = True

        def told(result: msgspec.Raw | None, _error: Error | None) -> None:
            track.is_reading = False
            if result is None:
                return  # later
            page = _page(result)
            assert not page.too_old, "nothing was trimmed"
            entries = [(placed.offset, placed.data) for placed in page.entries]
            reached = entries[-1][0] if entries else since
            self.witness.read(self._channel, since, reached, page.head, entries)
            track.read(since, reached)
            self._read(entries)

        self.ask("sync", {"since": since, "limit": PAGE, "epoch": self._epoch}, told)

    def _read_conversation(self, cid: int, track: Track) -> None:
        since = track.covered
        track.is_reading = True

        def told(result: msgspec.Raw | None, _error: Error | None) -> None:
            track.is_reading = False
            if result is None:
                return  # later
            page = _entries(result)
            entries = [(entry.seq, entry) for entry in page.entries]
            reached = entries[-1][0] if entries else page.head
            self.witness.read(f"conv:{cid}", since, reached, page.head, entries)
            track.read(since, reached)
            self._read(entries)

        self.ask("history", {"cid": str(cid), "after": since, "limit": PAGE}, told)

    def _read(self, entries: list[tuple[int, Entry]]) -> None:
        for _, entry in entries:
            if entry.kind == "group":
                self._group_changed(entry)
        if self.is_open:
            self._catch_up()
