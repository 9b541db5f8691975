"""One trace in one shard and in several: clients show the same, however late and often entries are brought over.

Of each shard's outbox a few entries are brought over at a time, some of them again, in an order of shards that is drawn
by a seed. What clients show in the end is what the logs say, and what a system of one shard shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from random import Random
from typing import NamedTuple

import msgspec

from base.clock import Instant, Timestamp
from im.core.commands import ChangeGroup, Command, CreateGroup, Delivery, Draft, Mark, Outcome, Receive, Revise, Sent
from im.core.ledger import LedgerSettings
from im.core.publications import publication
from im.core.shards import ShardTable, shard_of_cid, shard_of_single, shard_of_user
from im.gathering import Gathered, Shards
from im.ports import ConversationPage, Listed, Visible
from im.reading import Reading
from im.store.memory import MemoryMessageStore
from tests.im.traces import BATCH, POLICIES, WATCHED, Seen, Trace, Watcher, expected, tell

EVENTS = 10_000


class _Here(NamedTuple):
    store: MemoryMessageStore


class _Known(NamedTuple):
    known: ShardTable


class System:
    """The stores of a system, all in one process, and what goes from one to another."""

    def __init__(self, shards: int) -> None:
        self.count = shards
        self.stores = [
            MemoryMessageStore(
                LedgerSettings(
                    policy=POLICIES["hybrid"],
                    recall_window_ms=10**9,
                    edit_window_ms=10**9,
                    shard=shard,
                    shards=shards,
                )
            )
            for shard in range(shards)
        ]
        table = _Known(ShardTable(1, ("im-1",) * shards))
        here = {shard: _Here(store) for shard, store in enumerate(self.stores)}
        self.shards = Shards("im-1", None, table, here)  # type: ignore[arg-type] - nothing is anywhere else
        self._dice = Random(7)
        self._through = {(source, target): 0 for source in range(shards) for target in range(shards)}

    # ------------------------------------------------------------ doing

    async def execute(self, commands: Sequence[Command]) -> tuple[list[Outcome], list[Delivery]]:
        """Have each shard carry out its part; outcomes are in the order of the commands."""
        deliveries: list[Delivery] = []
        outcomes: dict[int, Outcome] = {}
        for shard, store in enumerate(self.stores):
            mine = {place: one for place, one in enumerate(commands) if self._shard_of(one) == shard}
            executed = await store.execute(list(mine.values()))
            outcomes |= dict(zip(mine, executed.outcomes, strict=True))
            deliveries += executed.deliveries
            while store.has_work:
                deliveries += (await store.execute([])).deliveries
        return [outcomes[place] for place in range(len(commands))], deliveries

    def _shard_of(self, command: Command) -> int:
        match command:
            case Draft() if command.to:
                return shard_of_single(command.sender, command.to, self.count)
            case CreateGroup():
                return shard_of_user(command.owner, self.count)
            case Draft() | Revise() | Mark() | ChangeGroup():
                return shard_of_cid(command.cid, self.count)
            case _:
                raise AssertionError(command)

    async def bring(self, *, all_of_it: bool = False) -> list[Delivery]:
        """Bring some entries over, or all; some of them again."""
        pairs = [pair for pair in self._through if pair[0] != pair[1]]
        self._dice.shuffle(pairs)
        deliveries: list[Delivery] = []
        for source, target in pairs if all_of_it else pairs[: 1 + len(pairs) // 2]:
            through = self._through[source, target]
            after = max(0, through - self._dice.choice((0, 0, 20)))
            limit = 1_000_000 if all_of_it else self._dice.choice((1, 10, 100))
            found = await self.stores[source].outgoing(target, after=after, limit=limit)
            if found:
                executed = await self.stores[target].execute([Receive(source, tuple(found))])
                deliveries += executed.deliveries
                self._through[source, target] = max(through, found[-1].position)
            if self._dice.random() < 0.2:
                await self.stores[source].execute([Sent(target, max(0, through - 20))])
        return deliveries

    # ------------------------------------------------------------ reading

    async def membership(self, cid: int, user: str) -> Visible | None:
        return await self.shards.membership(cid, user)

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        return await self.stores[shard_of_cid(cid, self.count)].conversation(cid, since=since, limit=limit)

    async def conversations(self, user: str) -> list[Listed]:
        return await self.shards.conversations(user)

    def reading(self, user: str) -> Reading:
        """What the user's shard reads for the user."""
        return Reading(
            Gathered(self.stores[shard_of_user(user, self.count)], self.shards),
            None,  # type: ignore[arg-type] - nothing is searched
            None,  # type: ignore[arg-type] - nor counted
            sync_entries_max=1_000,
            has_previews=lambda: True,
            has_direct=self.count == 1,
        )


async def play(shards: int) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """Play the trace; return what the watchers have shown, and what the logs say; conversations by what they are."""
    system, trace = System(shards), Trace()
    watchers = {user: Watcher(user, system, system.reading(user)) for user in WATCHED}
    for watcher in watchers.values():
        await watcher.begin()
    commands = trace.groups()
    last = EVENTS // BATCH
    for number in range(last + 1):
        now = Instant(1_000 * (number + 1))
        outcomes, deliveries = await system.execute(commands)
        deliveries += await system.bring(all_of_it=number == last)
        if number == 0:
            trace.made(outcomes)
        for delivery in deliveries:
            await tell(delivery, watchers, now)
        for watcher in watchers.values():
            await watcher.do(watcher.view.advance(now), now)
        commands = trace.batch(Timestamp(number))
    for user, watcher in watchers.items():
        await scroll_up(system, user, watcher)
    shown = {user: await labelled(system, user, watcher.seen) for user, watcher in watchers.items()}
    return shown, {user: await labelled(system, user, await expected(system, user)) for user in WATCHED}


async def scroll_up(system: System, user: str, watcher: Watcher) -> None:
    """Read what is before that with which the client first met its conversations.

    A list may tell of a conversation before the timeline does: then the client begins with its newest entry.
    """
    for one in await system.conversations(user):
        cid = str(one.conversation.cid)
        held, visible = watcher.view.conversation(cid), await system.membership(one.conversation.cid, user)
        assert held is not None
        assert visible is not None
        if held.lo > visible.first_seq:
            page = await system.conversation(one.conversation.cid, since=visible.first_seq - 1, limit=1_000_000)
            older = [entry for entry in page.messages if entry.seq < held.lo]
            told = [msgspec.json.decode(publication(m, page.overlays.get((m.cid, m.seq)))) for m in older]
            rows = watcher.view.older(cid, held.lo, told, is_all=True)
            watcher.seen.setdefault(cid, []).extend((row.seq, row.key, row.data["body"]) for row in rows)


async def labelled(system: System, user: str, seen: Seen) -> Seen:
    """By the group's name or the other user, whatever numbers conversations have; rows as a window has them, by seq.

    They come in another order where a list is ahead of the timeline.
    """
    names: dict[str, str] = {}
    for one in await system.conversations(user):
        conversation = one.conversation
        names[str(conversation.cid)] = (
            conversation.group.name if conversation.group is not None else f"{conversation.lo}-{conversation.hi}"
        )
    assert len(set(names.values())) == len(names)
    return {names[cid]: sorted(rows, key=itemgetter(0)) for cid, rows in seen.items()}


async def test_clients_show_the_same_in_however_many_shards() -> None:
    """Every entry between joining and leaving, once, edited and recalled as it is now."""
    shown, logs = await play(4)
    assert shown == logs
    alone, _ = await play(1)
    assert shown == alone
    assert sum(len(rows) for seen in shown.values() for rows in seen.values()) > EVENTS // 2
