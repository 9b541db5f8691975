"""A device of a message history: the real view model, an outbox that survives, and a user who does all sorts of things.

What it is told goes into the view as the real client puts it there: from its inbox, which goes on at its position after
each reconnect; in pages of the timeline where too much was missed; by the list where that is not kept either, or after
a crash, which leaves the outbox alone. What is to be sent is sent again under the same key until it is answered; into
one conversation one thing at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from base.clock import Instant
from roadstead.client.conversation import Conversation
from roadstead.client.rows import Publication
from roadstead.client.view import PAGE, AskList, Effect, Pull, PullOlder, Told, ViewModel
from roadstead.history.events import Op
from roadstead.sim.host import Host
from roadstead.sim.messages_access import CLOSED, PING, SILENCE_MS, Begun, Publications, Subscribe
from roadstead.sim.messages_link import Answer, Call, Frame, Stream
from roadstead.sim.messages_record import Record
from roadstead.sim.messages_store import Entries

__all__ = ["Item", "Kept", "Phone"]

TICK_MS = 400
PING_MS = 1_500
CALL_MS = 2_500
SYNC_PAGE = 15
ENTRIES_MAX = 100
Handler = Callable[[Answer, Instant], None]


class Item(msgspec.Struct, kw_only=True):
    """Something in the outbox; `place` has those that leave one at a time."""

    method: str
    place: str
    key: str = ""
    op: Op | None = None
    """As what it is written down; None: it is not."""
    cid: int | None = None
    to: str = ""
    body: str = ""
    ref: int = 0
    arguments: tuple[Any, ...] = ()
    retry_at: int = 0


@dataclass(slots=True)
class Kept:
    """What a device keeps on its disk."""

    user: str
    device: str
    outbox: dict[str, list[Item]] = field(default_factory=dict)
    """By place, in the order of writing."""
    queued: dict[str, Item] = field(default_factory=dict)
    """By key: acknowledged as queued, and not heard of since."""
    answered: set[str] = field(default_factory=set)
    """Keys of queued ones that failed, as an answer said."""
    heard: set[str] = field(default_factory=set)
    """Keys of one's own messages and failures that came from elsewhere, perhaps before the answer."""
    keys: int = 0
    generation: int = 0

    def next_key(self) -> str:
        """Return an idempotency key."""
        self.keys += 1
        return f"{self.device}-{self.keys}"


@dataclass(slots=True)
class _Waiting:
    until: Instant
    handler: Handler


class Phone:
    """One life of a device. `act` is what its user does now and then; it gets the phone."""

    def __init__(
        self,
        host: Host,
        kept: Kept,
        record: Record,
        *,
        nodes: list[str],
        counts: Counter[str],
        act: Callable[[Phone, Instant], int],
    ) -> None:
        """`act` returns how many ms the user waits before the next time."""
        self.host = host
        self.kept = kept
        self.view = ViewModel(kept.user, entries_max=ENTRIES_MAX, appends=host.dice.chance(500))
        self.record = record
        self.is_following = False
        self.is_finishing = False
        self.counts = counts
        self.offline_until: Instant | None = None
        self._nodes = nodes
        self._act = act
        self._act_at: Instant | None = None
        self._stream: Stream | None = None
        self._node = ""
        self._opened = 0
        self._calls = 0
        self._waiting: dict[int, _Waiting] = {}
        self._flying: set[str] = set()
        """Places of whose items one was sent and not answered."""
        self._position: int | None = None
        self._tick_at = Instant(0)
        self._ping_at = Instant(0)
        self._topped: set[str] = set()

    # ------------------------------------------------------------ the actor

    def start(self, now: Instant) -> None:
        """Connect soon."""
        self.offline_until = self._tick_at = Instant(now + self.host.dice.between(1, TICK_MS))
        self._act_at = Instant(now + 1_000)

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take a frame of the node that it is connected to."""
        assert isinstance(message, Frame)
        stream = self._stream
        if stream is None or source != self._node or message.stream != stream.number:
            return
        for body in stream.take(message, now):
            match body:
                case Publications(entries):
                    self._publications(entries, now)
                case Begun():
                    self._begun(body, now)
                case Answer():
                    waiting = self._waiting.pop(body.id, None)
                    if waiting is not None:
                        waiting.handler(body, now)
                case _ if body == CLOSED:
                    self._connect(now)
                    return
                case _:
                    assert body == PING

    def wake(self, now: Instant) -> None:
        """Do what is due: connect, ask, send again, and whatever the user wants."""
        if self._tick_at <= now:
            self._tick_at = Instant(now + TICK_MS)
            self._tick(now)
        if self._act_at is not None and self._act_at <= now:
            self._act_at = Instant(now + self._act(self, now)) if not self.is_finishing else None
        self.show(self.view.advance(now), now)
        self._send_all(now)

    def next_deadline(self) -> Instant:
        """Return when something is due."""
        dues = [due for due in (self._act_at, self.view.due) if due is not None]
        return min([self._tick_at, *dues])

    def _tick(self, now: Instant) -> None:
        stream = self._stream
        if self.offline_until is not None:
            if self.offline_until <= now:
                self.offline_until = None
                self._connect(now)
        elif stream is None or stream.is_broken(now) or now - stream.heard_at > SILENCE_MS:
            self._connect(now)
        elif self._ping_at <= now:
            self._ping_at = Instant(now + PING_MS)
            stream.send(PING)
        for number, waiting in list(self._waiting.items()):
            if waiting.until <= now and number in self._waiting:
                del self._waiting[number]
                waiting.handler(Answer(number, error="unknown"), now)
        if self.is_finishing:
            self._read_to_the_top(now)

    # ------------------------------------------------------------ the connection

    def go_offline(self, now: Instant, lasting_ms: int) -> None:
        """Lose the connection for a while."""
        self._lose(now)
        self.offline_until = Instant(now + lasting_ms)

    def act_no_more(self) -> None:
        """The user puts it down."""
        self._act_at = None

    def _lose(self, now: Instant) -> None:
        self._stream, self.is_following = None, False
        waiting, self._waiting = self._waiting, {}
        for number, one in waiting.items():
            one.handler(Answer(number, error="unknown"), now)

    def _connect(self, now: Instant) -> None:
        self._lose(now)
        self._opened += 1
        node = self._node = self.host.dice.pick(self._nodes)
        number = self.host.incarnation * 10_000 + self._opened
        self._stream = Stream(number, lambda frame: self.host.send(node, frame), now)
        self._ping_at = Instant(now + PING_MS)
        if self._position is None:
            self._load(now)
        else:
            if self.view.is_loaded:
                self.view.reconnected(now)
            self._subscribe()

    def _subscribe(self) -> None:
        assert self._stream is not None
        assert self._position is not None
        self._stream.send(Subscribe(self.kept.user, self.kept.device, self._position))

    def _begun(self, begun: Begun, now: Instant) -> None:
        assert self._position is not None
        if begun.is_recovered:
            self.is_following = True
            self.counts["resumed"] += 1
            self.record.subscribed(self._position, is_recovered=True)
            self._publications(begun.entries, now)
        else:
            self.counts["caught up"] += 1
            self._catch_up(now)

    def _catch_up(self, now: Instant) -> None:
        """Page through the timeline, and follow the inbox again behind it."""
        since = self._position

        def read(answer: Answer, now: Instant) -> None:
            if answer.error or since != self._position:
                return self._retry(now)
            assert since is not None
            head, entries = answer.value
            if entries is None:
                self.counts["too old"] += 1
                self._position = None
                return self._load(now)
            self.record.synced(since, head, entries)
            for offset, data in entries:
                self._apply(data, offset, now)
            return self._catch_up(now) if self._position < head else self._subscribe()

        self.call("sync", (since, SYNC_PAGE), read, now)

    def _retry(self, now: Instant) -> None:
        """Connect anew, soon, unless that happens already."""
        if self._stream is not None and self.offline_until is None:
            self.go_offline(now, 100)

    def call(self, method: str, arguments: tuple[Any, ...], handler: Handler, now: Instant) -> None:
        """Call the services; the handler gets the answer, or `unknown`."""
        self._calls += 1
        self._waiting[self._calls] = _Waiting(Instant(now + CALL_MS), handler)
        if self._stream is not None:
            self._stream.send(Call(self._calls, method, arguments, self.kept.user, self.kept.device))

    # ------------------------------------------------------------ the view

    def _publications(self, entries: Entries, now: Instant) -> None:
        if not self.is_following:
            return
        assert self._position is not None
        for offset, data in entries:
            if not offset:
                self.record.told(data, 0)
                self._heard_of(data)
                self.show(self.view.apply(data, now), now)
            elif offset > self._position:
                self.record.told(data, offset)
                self._apply(data, offset, now)

    def _apply(self, data: Publication, offset: int, now: Instant) -> None:
        """Put an entry of the timeline into the view."""
        self._position = offset
        self._heard_of(data)
        self.show(self.view.apply(data, now, offset=offset), now)

    def _heard_of(self, data: Publication) -> None:
        if data.get("from") == self.kept.user and data["kind"] in {"message", "failure"}:
            self.kept.heard.add(data["client_msg_id"])
            self.kept.queued.pop(data["client_msg_id"], None)

    def show(self, effects: list[Effect], now: Instant) -> None:
        """Do what the view asks for."""
        for effect in effects:
            match effect:
                case Pull(cid, after):
                    self._pull(cid, after, now)
                case PullOlder(cid, before):
                    self._pull_older(cid, before, now)
                case AskList():
                    self._read_list(now, is_load=False)
                case Told(data) if data["kind"] == "failure":
                    self.counts["failures"] += 1
                    self._told_failure(data["client_msg_id"])
                case _:
                    pass

    def _told_failure(self, key: str) -> None:
        """A note says that a queued message failed; perhaps an answer said it before, when it was asked about."""
        if key in self.kept.answered:
            self.kept.answered.discard(key)
            return
        self.record.failure(key)

    def _pull(self, cid: str, after: int, now: Instant) -> None:
        def read(answer: Answer, now: Instant) -> None:
            if answer.error:
                self.view.page_failed(cid, now)
                return
            head, first, entries = answer.value
            self.counts["gaps read"] += 1
            since = max(after, first - 1)
            self.record.page(int(cid), since, entries[-1]["seq"] if entries else max(since, head), head, entries)
            for data in entries:
                self._heard_of(data)
            self.show(self.view.page(cid, entries, head, now), now)

        self.call("history", (int(cid), after, None), read, now)

    def _pull_older(self, cid: str, before: int, now: Instant, *, is_going_on: bool = False) -> None:
        def read(answer: Answer, now: Instant) -> None:
            if answer.error:
                return
            head, first, entries = answer.value
            if entries:
                self.record.page(int(cid), entries[0]["seq"] - 1, entries[-1]["seq"], head, entries)
            for data in entries:
                self._heard_of(data)
            is_all = not entries or entries[0]["seq"] <= first
            self.view.older(cid, before, entries, is_all=is_all)
            if is_going_on and is_all:
                self._topped.add(cid)
            elif is_going_on:
                self._pull_older(cid, entries[0]["seq"], now, is_going_on=True)

        self.call("history", (int(cid), None, before), read, now)

    def _load(self, now: Instant) -> None:
        """Begin with the list, and follow the inbox from where it ends."""
        self.view.ask_list()
        self._read_list(now, is_load=True)

    def _read_list(self, now: Instant, *, is_load: bool) -> None:
        asked_at = self.record.now()

        def read(answer: Answer, now: Instant) -> None:
            if answer.error:
                self.view.list_failed(now)
                return self._retry(now) if is_load else None
            timeline, counted, total, listed, ends = answer.value
            self.counts["lists"] += 1
            if is_load:
                self.kept.generation += 1
                self.record.began(self.kept.generation, timeline, ends)
                self._position = self.view.position = timeline
                self._send_again(now)
                self._subscribe()
            self.record.unread(total, listed, asked_at)
            for last in (document["last"] for document in listed if document["last"] is not None):
                self._heard_of(last)
                self.record.page(int(last["cid"]), last["seq"] - 1, last["seq"], last["seq"], [last])
            self.show(self.view.listed(listed, now, is_last=True, counted=counted), now)
            return None

        self.call("list", (), read, now)

    # ------------------------------------------------------------ the outbox

    def write(self, item: Item, now: Instant) -> None:
        """Have something sent after what is to be sent to the same place."""
        self.kept.outbox.setdefault(item.place, []).append(item)
        if item.op == "send":
            data = {"kind": "message", "body": item.body, "from": self.kept.user, "client_msg_id": item.key}
            cid = str(item.cid) if item.cid is not None else ""
            self.show(self.view.echo(item.key, data, to=item.to, cid=cid), now)
        self._send_all(now)

    def _send_again(self, now: Instant) -> None:
        """What was queued, and may have failed while nobody listened, is asked about under its key."""
        for item in self.kept.queued.values():
            if item not in self.kept.outbox.get(item.place, ()):
                item.retry_at = now
                self.kept.outbox.setdefault(item.place, []).insert(0, item)

    def _send_all(self, now: Instant) -> None:
        if self._stream is None:
            return
        for place, items in list(self.kept.outbox.items()):
            if items and place not in self._flying and items[0].retry_at <= now:
                self._send(items[0], now)

    def _send(self, item: Item, now: Instant) -> None:
        self._flying.add(item.place)
        number = self.record.invoke(item.op, item.key, item.cid, item.body, item.ref) if item.op is not None else 0

        def answered(answer: Answer, now: Instant) -> None:
            self._flying.discard(item.place)
            if answer.error == "unknown":
                item.retry_at = now + self.host.dice.between(1, 500)
                return
            items = self.kept.outbox[item.place]
            items.remove(item)
            if not items:
                del self.kept.outbox[item.place]
            if number:
                self._note_outcome(item, number, answer, now)
            self._send_all(now)

        self.call(item.method, item.arguments, answered, now)

    def _note_outcome(self, item: Item, number: int, answer: Answer, now: Instant) -> None:
        if answer.error:
            self.record.fail(number, answer.error)
            self.view.answered(item.key, "failed", answer.error)
            if self.kept.queued.pop(item.key, None) is not None:
                self.kept.answered.add(item.key)
                self.record.failure(item.key)
        elif answer.value == "queued":
            self.record.queued(number)
            self.view.answered(item.key, "queued")
            if item.key not in self.kept.heard:
                self.kept.queued[item.key] = item
        elif item.op == "mark_read":
            self.record.ok(number, *answer.value)
        else:
            cid, seq, mid = answer.value
            self.record.ok(number, cid, seq, mid)
            self.kept.queued.pop(item.key, None)
            if item.op == "send":
                self.view.answered(item.key, "stored")
            self.view.heard_of(str(cid), seq, now)

    # ------------------------------------------------------------ the end

    def is_quiet(self) -> bool:
        """Return whether there is nothing to wait for."""
        return self.is_following and not self._waiting and not self.kept.outbox and self.view.due is None

    def finish(self, now: Instant) -> None:
        """Ask once more what is unread, and read everything up to the top."""
        self.is_finishing = True
        self.show(self.view.ask_list(), now)

    def is_finished(self) -> bool:
        """Return whether all is read."""
        return self.is_quiet() and all(cid in self._topped or lo == 1 for cid, lo in self._tops())

    def conversations(self) -> list[Conversation]:
        """Return those that have a log."""
        return sorted((one for one in self.view.conversations() if one.cid), key=lambda one: int(one.cid))

    def _tops(self) -> list[tuple[str, int]]:
        return [(one.cid, one.lo) for one in self.conversations()]

    def _read_to_the_top(self, now: Instant) -> None:
        for cid, lo in self._tops():
            if lo > 1 and cid not in self._topped and not self._waiting:
                self._pull_older(cid, lo, now, is_going_on=True)


assert SYNC_PAGE < PAGE
