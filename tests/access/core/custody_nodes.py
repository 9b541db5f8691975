"""For tests of custody: nodes that talk by direct calls, some of which are lost."""

from __future__ import annotations

from collections.abc import Iterable

from access.core.custody import YOUNG_MS, Custody, Outcome, Progress
from access.core.placement import Node, View
from access.core.stream import Draft
from access.peers import Collect
from base.clock import Instant, Timestamp

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
NOW, WALL = Instant(1_000), Timestamp(5_000)
SIZE, TTL_MS = 100, 10_000_000


def in_order(*order: str) -> str:
    """Return a channel that these nodes are the order of, among themselves."""
    for number in range(200_000):
        channel = f"c{number}"
        full = View([Node(name, 1) for name in order])
        first = order[0]
        if (first, *full.nearest(channel, 99, beside=first)) == order and full.owner(channel) == first:
            return channel
    raise AssertionError("no such channel")


CHANNEL = in_order("a", "b", "c")
"""a is its owner, b its backup."""


class Nodes:
    """Custodies that see each other; `down` are those that cannot be reached."""

    def __init__(self, *names: str, owned_max: int = 1_000, bytes_max: int = 1_000_000) -> None:
        self.now = NOW
        self.epochs = 0
        self.down: set[str] = set()
        self.lives = dict.fromkeys(names, 1)
        self.draining: set[str] = set()
        self.asked: list[str] = []
        self.followed: set[str] = set()
        self.all = {name: self._made(name, owned_max=owned_max, bytes_max=bytes_max) for name in names}
        self.see(*names)

    def __getitem__(self, name: str) -> Custody:
        return self.all[name]

    def see(self, *names: str, by: Iterable[str] | None = None) -> None:
        """Give nodes a view: all of them, or those named."""
        view = View([Node(name, self.lives[name], name in self.draining) for name in names])
        for name in self.all if by is None else by:
            self.all[name].adopt(view, self.now)

    def restart(self, name: str) -> None:
        self.lives[name] += 1
        self.all[name] = self._made(name, owned_max=9, bytes_max=9)

    def _made(self, name: str, *, owned_max: int, bytes_max: int) -> Custody:
        return Custody(
            name,
            self.lives[name],
            keeps=lambda _: (SIZE, TTL_MS),
            is_followed=self.followed.__contains__,
            owned_max=owned_max,
            bytes_max=bytes_max,
        )

    def claim(self, name: str, channel: str = CHANNEL, former: Iterable[str] = ()) -> Outcome:
        """Claim to the end."""
        self.epochs += 1
        custody = self.all[name]
        step = custody.begin(channel, self.now, new_epoch=f"e{self.epochs}", former=former)
        ballot, ask = step.ballot, list(step.ask)
        while step.outcome is None:
            if step.ballot != ballot:
                ballot, ask = step.ballot, list(step.ask)
            asked = ask.pop(0)
            self.asked.append(asked)
            reply = None
            if asked not in self.down:
                reply = self.all[asked].collect(Collect(channel, ballot), self.now)
            step = custody.answered(channel, ballot, asked, reply, self.now)
            if step.ballot == ballot:
                ask.extend(step.ask)
            self.check()
        return step.outcome

    def pump(self, name: str, channel: str = CHANNEL) -> Progress:
        """Send to the backup what is pending, once."""
        pending = self.all[name].pending(channel)
        if pending is None:
            return Progress()
        backup, request = pending
        reply = None if backup in self.down else self.all[backup].replicate(request, self.now, WALL)
        progress = self.all[name].replicated(channel, request.ballot, reply)
        for dropping in progress.drop:
            self.all[dropping].drop(channel, request.ballot)
        self.check()
        return progress

    def publish(self, name: str, data: bytes, channel: str = CHANNEL) -> int:
        """Number, and replicate what is pending until it is committed."""
        entry = self.all[name].number(channel, Draft(data), WALL)
        assert entry is not None
        self.pump(name, channel)
        self.pump(name, channel)
        assert self.all[name].is_committed(channel, entry.offset)
        return entry.offset

    def texts(self, name: str, channel: str = CHANNEL) -> list[bytes]:
        stream = self.all[name].stream(channel)
        return [] if stream is None else [entry.draft.data for entry in stream.entries()]

    def epoch(self, name: str, channel: str = CHANNEL) -> str:
        stream = self.all[name].stream(channel)
        assert stream is not None
        return stream.epoch

    def age(self) -> None:
        """From here on nobody is young."""
        self.now = Instant(self.now + YOUNG_MS)

    def check(self) -> None:
        for custody in self.all.values():
            custody.check_invariants()


def settled(*names: str) -> Nodes:
    """Nodes of which a owns the channel with one publication, and b is its backup."""
    nodes = Nodes(*(names or ("a", "b", "c")))
    nodes.age()
    assert nodes.claim("a").is_owned
    nodes.publish("a", b"1")
    return nodes
