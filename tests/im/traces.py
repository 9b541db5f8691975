"""A trace of what users do, whatever the system is like, and clients in small that are told of it."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, Protocol

import msgspec

from base.clock import Instant, Timestamp
from im.core.arguments import ConversationsArguments
from im.core.commands import (
    ChangeGroup,
    Command,
    CreateGroup,
    Delivery,
    Draft,
    GroupAction,
    GroupChanged,
    Mark,
    Revise,
)
from im.core.fan_out import FanOutPolicy
from im.core.model import Form, Message
from im.core.publications import publication
from im.ports import ConversationPage, Listed, Visible
from im.reading import Reading
from roadstead.client.rows import Changed, Shown
from roadstead.client.view import AskList, Effect, Follow, Pull, Unfollow, ViewModel

__all__ = ["BATCH", "POLICIES", "WATCHED", "Logs", "Seen", "Trace", "Watcher", "expected", "tell"]

BATCH = 40
USERS = [f"u{number:03}" for number in range(150)]
WATCHED = USERS[:5]
SIZES = (3, 4, 6, 7, 8, 12, 20, 60, 130)

Seen = dict[str, list[tuple[int, str, Any]]]
"""By conversation: seq, key and body of each row."""

POLICIES = {
    "write": FanOutPolicy(single="write", write_members_max=1_000, members_max=1_000),
    "read": FanOutPolicy(single="read", write_members_max=0, members_max=1_000),
    "hybrid": FanOutPolicy(single="write", write_members_max=7, members_max=1_000),
}


class Logs(Protocol):
    """What is read of a store, or of several."""

    async def membership(self, cid: int, user: str) -> Visible | None:
        """See `MessageStore`."""
        ...

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """See `MessageStore`."""
        ...

    async def conversations(self, user: str) -> list[Listed]:
        """See `MessageStore`."""
        ...


class Trace:
    """The same commands every time: what happens is drawn by a seed, and never depends on a strategy."""

    def __init__(self) -> None:
        self._dice = Random(20)
        self._mid = self._keys = 0
        self._members: dict[int, list[str]] = {}
        self._left: dict[int, set[str]] = {}
        self._sent: list[tuple[str, int, str]] = []

    def groups(self) -> list[Command]:
        """Return the commands that make the groups; their owners are never watched, so that these come and go."""
        made: list[Command] = []
        for number, size in enumerate(SIZES):
            members = tuple(self._dice.sample(USERS[:20], min(size, 12)) + USERS[20 : 20 + max(0, size - 12)])
            made.append(CreateGroup(self._next(), "owner", "d", f"g{number}", f"group {number}", members, Timestamp(1)))
        return made

    def made(self, outcomes: Iterable[object]) -> None:
        """Take the groups that were made."""
        for outcome in outcomes:
            assert isinstance(outcome, GroupChanged)
            self._members[outcome.conversation.cid] = ["owner", *(member.user for member in outcome.members)]
            self._left[outcome.conversation.cid] = set()

    def batch(self, at: Timestamp) -> list[Command]:
        """Return the next commands."""
        return [self._event(at) for _ in range(BATCH)]

    def _event(self, at: Timestamp) -> Command:
        dice, kind = self._dice, self._dice.random()
        cid = dice.choice(list(self._members))
        members = self._members[cid]
        if kind < 0.4:
            sender = dice.choice(WATCHED if dice.random() < 0.5 else USERS[:20])
            return Draft(self._next(), sender, "d", dice.choice(USERS[:20]), 0, self._key(), "text", self._body(), at)
        if kind < 0.85:
            sender, key = dice.choice(members), self._key()
            return Draft(self._next(), sender, "d", "", cid, key, "text", self._body(), at)
        if kind < 0.95:
            seq = dice.randint(1, 1 + self._mid // (2 * len(SIZES)))
            is_recall = dice.random() < 0.3
            body = b"" if is_recall else self._body()
            return Revise(self._next(), dice.choice(members), "d", cid, seq, self._key(), is_recall, body, at)
        if kind < 0.98 or len(members) < 3:
            return Mark(dice.choice(members), "d", cid, at, read_seq=dice.randint(1, 1_000))
        return self._coming_or_going(cid, members, at)

    def _coming_or_going(self, cid: int, members: list[str], at: Timestamp) -> Command:
        gone = self._left[cid]
        strangers = [user for user in USERS[:30] if user not in members and user not in gone]
        action: GroupAction = "invite" if strangers and self._dice.random() < 0.6 else "kick"
        user = self._dice.choice(strangers if action == "invite" else members[1:])
        if action == "invite":
            members.append(user)
        else:
            members.remove(user)
            gone.add(user)
        return ChangeGroup(self._next(), "owner", "d", cid, action, at, (user,))

    def _next(self) -> int:
        self._mid += 1
        return self._mid

    def _key(self) -> str:
        self._keys += 1
        return f"k{self._keys}"

    def _body(self) -> bytes:
        return b'"text %d"' % self._mid


class Watcher:
    """A client in small: its view model, and what its window has shown."""

    def __init__(self, user: str, store: Logs, reading: Reading) -> None:
        self.view = ViewModel(user, entries_max=1_000_000)
        self.seen: Seen = {}
        self.followed: set[str] = set()
        self._user = user
        self._store = store
        self._reading = reading

    async def begin(self) -> None:
        """Read the list, as after connecting."""
        await self.do(self.view.ask_list(), Instant(0))

    async def told(self, message: Message, offset: int, now: Instant) -> None:
        """Take a publication."""
        data = msgspec.json.decode(publication(message))
        await self.do(self.view.apply(data, now, offset=offset), now)

    async def do(self, effects: Iterable[Effect], now: Instant) -> None:
        """Show what is to be shown, and ask what is to be asked."""
        for effect in effects:
            match effect:
                case Shown(cid, row):
                    self.seen.setdefault(cid, []).append((row.seq, row.key, row.data["body"]))
                case Changed(cid, row):
                    rows = self.seen[cid]
                    place = next(index for index, one in enumerate(rows) if one[0] == row.seq)
                    rows[place] = (row.seq, row.key, row.data["body"])
                case Pull(cid, after):
                    await self._pull(cid, after, now)
                case AskList():
                    await self._list(now)
                case Follow(cid, after):
                    self.followed.add(cid)
                    await self._pull(cid, after, now)
                case Unfollow(cid):
                    self.followed.discard(cid)

    async def _pull(self, cid: str, after: int, now: Instant) -> None:
        visible = await self._store.membership(int(cid), self._user)
        assert visible is not None
        page = await self._store.conversation(int(cid), since=max(after, visible.first_seq - 1), limit=1_000)
        entries = [msgspec.json.decode(publication(m, page.overlays.get((m.cid, m.seq)))) for m in page.messages]
        await self.do(self.view.page(cid, entries, page.head, now), now)

    async def _list(self, now: Instant) -> None:
        page = await self._reading.conversations(self._user, ConversationsArguments(limit=1_000))
        assert not page.next
        documents = msgspec.json.decode(msgspec.json.encode(page.conversations))
        await self.do(self.view.listed(documents, now, is_last=True), now)


async def tell(delivery: Delivery, watchers: dict[str, Watcher], now: Instant) -> None:
    """Push as the services do: timeline entries, pushes without one, and channels that are followed."""
    message = delivery.message
    told = [(user, offset) for user, offset in delivery.positions if user in watchers]
    told += [(user, 0) for user in delivery.members if user in watchers]
    for user, offset in told:
        await watchers[user].told(message, offset, now)
    if delivery.is_first and message.seq:
        for watcher in watchers.values():
            if str(message.cid) in watcher.followed:
                await watcher.told(message, 0, now)


async def expected(store: Logs, user: str) -> Seen:
    """Return the rows of all logs that the user may see, under what was done to them before the user left."""
    seen: Seen = {}
    for one in await store.conversations(user):
        cid = one.conversation.cid
        visible = await store.membership(cid, user)
        assert visible is not None
        page = await store.conversation(cid, since=0, limit=1_000_000)
        rows: dict[int, tuple[int, str, Any]] = {}
        for entry in page.messages:
            if not visible.first_seq <= entry.seq <= (visible.last_seq or page.head):
                continue
            body = msgspec.json.decode(entry.body) if entry.body else None
            if entry.form in {Form.MESSAGE, Form.EVENT}:
                rows[entry.seq] = (entry.seq, entry.client_msg_id, body)
            elif entry.ref in rows:
                rows[entry.ref] = (entry.ref, rows[entry.ref][1], body)
        seen[str(cid)] = list(rows.values())
    return seen
