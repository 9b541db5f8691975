"""The twin of the durable message store: a ledger over lists and dicts, no cleverness, nothing survives the process.

It says in as few lines as possible what a message store does, so that the contract suite and the differential test
can hold every other adapter against it. It also serves tests and demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from base.errors import StoreUnavailable
from base.ids import new_epoch
from im.core.commands import Command, Executed, Outgoing
from im.core.facts import Changes, ConversationFacts, Facts, Key, Needs, Pair
from im.core.ledger import Ledger, LedgerSettings
from im.core.model import EVERYBODY, Conversation, Form, Member, Message, Overlay, Role, View
from im.ports import ConversationPage, Listed, Page, TimelineEntry, Visible

__all__ = ["MemoryMessageStore"]

Place = tuple[int, int]
"""(cid, seq)"""


class MemoryMessageStore:
    """A `MessageStore` in memory."""

    def __init__(self, settings: LedgerSettings | None = None) -> None:
        self._settings = settings or LedgerSettings()
        self._ledger = Ledger(self._settings, last_n=0, last_cid=0)
        self._epoch = new_epoch()
        self._is_closed = False
        self._log: list[Message] = []
        self._conversations: dict[int, Conversation] = {}
        self._entries: dict[int, list[Message]] = {}
        """By conversation, in order of seq."""
        self._timelines: dict[str, list[Message]] = {}
        """By user; what was trimmed stays in its place, below the floor."""
        self._floors: dict[str, int] = {}
        self._keys: dict[Key, Message] = {}
        self._members: dict[tuple[int, str], Member] = {}
        self._views: dict[tuple[str, int], View] = {}
        self._overlays: dict[Place, Overlay] = {}
        self._mentions: set[tuple[int, str, int]] = set()
        self._outgoing: list[Outgoing] = []

    @property
    def epoch(self) -> str:
        """Name of this store's life: as long as its process'."""
        return self._epoch

    @property
    def has_work(self) -> bool:
        """Whether drafts are queued or fan-outs go on."""
        return self._ledger.has_work

    async def close(self) -> None:
        """Refuse whatever comes after. Idempotent."""
        self._is_closed = True

    # ------------------------------------------------------------ writing

    async def execute(self, commands: Sequence[Command]) -> Executed:
        """Carry out the commands in their order."""
        self._check_open()
        needs = self._ledger.begin(commands)
        while needs is not None:
            self._ledger.learn(self._facts(needs))
            needs = self._ledger.more()
        changes = self._ledger.execute()
        self._write(changes)
        return Executed(changes.outcomes, changes.deliveries, changes.outgoing)

    def _facts(self, needs: Needs) -> Facts:
        pairs = {(one.lo, one.hi): cid for cid, one in self._conversations.items() if one.group is None}
        cids = dict.fromkeys([*(pairs[pair] for pair in needs.pairs if pair in pairs), *needs.cids])
        return Facts(
            messages_by_key={key: self._keys[key] for key in needs.keys if key in self._keys},
            conversations=[self._conversation_facts(cid) for cid in cids if cid in self._conversations],
            heads={user: len(self._timelines.get(user, ())) for user in needs.users},
            views={place: self._views[place] for place in needs.views if place in self._views},
            members={place: self._members[place] for place in needs.members if place in self._members},
            messages={place: found for place in needs.messages if (found := self._message(*place)) is not None},
            overlays={
                place: self._overlays[place] for place in (*needs.messages, *needs.covered) if place in self._overlays
            },
            groups_of={user: sum(one.user == user for one in self._present()) for user in needs.groups_of},
        )

    def _conversation_facts(self, cid: int) -> ConversationFacts:
        end = self._entries[cid][-1]
        members = [member for member in self._present() if member.cid == cid]
        return ConversationFacts(self._conversations[cid], end.seq, end.cseq, members)

    def _write(self, changes: Changes) -> None:
        self._conversations.update(changes.conversations)
        self._members.update(changes.members)
        for place, view in changes.views.items():
            known = self._views.get(place, view)
            self._views[place] = replace(view, sent_seq=known.sent_seq, sent_cseq=known.sent_cseq)
        positions = [(user, offset, message) for message, given in changes.messages for user, offset in given]
        for user, offset, message in sorted([*positions, *changes.entries], key=lambda entry: entry[1]):
            timeline = self._timelines.setdefault(user, [])
            timeline.append(message)
            assert len(timeline) == offset, "a timeline has no hole"
        for message, _ in changes.messages:
            if message.origin:
                continue  # of another shard's log
            self._log.append(message)
            if message.client_msg_id:
                self._keys[message.sender, message.client_msg_id] = message
            if message.form != Form.NOTE:
                self._write_entry(message)
        self._overlays.update(changes.overlays)
        self._mentions.update(changes.mentions)
        for user, floor in changes.floors.items():
            self._floors[user] = max(floor, self._floors.get(user, 0))
        self._outgoing += changes.outgoing
        for shard, through in changes.sent.items():
            self._outgoing = [one for one in self._outgoing if one.shard != shard or one.position > through]

    def _write_entry(self, message: Message) -> None:
        cid = message.cid
        entries = self._entries.setdefault(cid, [])
        entries.append(message)
        assert len(entries) == message.seq, "a log has no hole"
        if cid not in self._conversations:
            pair = _pair(message.sender, message.recipient)
            self._conversations[cid] = Conversation(cid, "single", self._settings.policy.single, *pair)
        if message.form == Form.MESSAGE:
            place = (message.sender, cid)
            view = self._views.get(place, View(*place))
            self._views[place] = replace(view, sent_seq=message.seq, sent_cseq=message.cseq)

    # ------------------------------------------------------------ reading

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """Return the user's timeline after `since`."""
        assert since >= 0
        assert limit > 0
        self._check_open()
        timeline = self._timelines.get(user, [])
        floor = self._floors.get(user, 0)
        begin = max(since, floor)
        found = timeline[begin : begin + limit]
        entries = tuple(TimelineEntry(offset, message) for offset, message in enumerate(found, begin + 1))
        return Page(len(timeline), floor if floor > since else 0, entries, self._covering(found))

    async def heads(self, users: Sequence[str]) -> list[int]:
        """Return each user's newest timeline offset, 0 for an unknown user."""
        self._check_open()
        return [len(self._timelines.get(user, ())) for user in users]

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """Return the conversation's entries after `since`, without a hole, up to the limit."""
        assert since >= 0
        assert limit > 0
        return self._page(cid, range(since + 1, min(since + limit, self._max_seq(cid)) + 1))

    async def conversation_before(self, cid: int, *, before: int, limit: int) -> ConversationPage:
        """Return the conversation's last entries before `before`, without a hole, up to the limit."""
        assert limit > 0
        end = min(before, self._max_seq(cid) + 1)
        return self._page(cid, range(max(1, end - limit), end))

    async def messages(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        """Return those of the entries that there are, ascending."""
        return self._page(cid, sorted(set(seqs)))

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """Return each conversation's newest seq, 0 where there is none."""
        self._check_open()
        return [self._max_seq(cid) for cid in cids]

    async def membership(self, cid: int, user: str) -> Visible | None:
        """Return what of the conversation the user may see; None: nothing, or there is no such conversation."""
        self._check_open()
        member, conversation = self._members.get((cid, user)), self._conversations.get(cid)
        if member is not None:
            return Visible(member.first_seq, member.leave_seq, member.role)
        is_one_of_two = conversation is not None and user in _users(conversation)
        return Visible(1, 0, Role.MEMBER) if is_one_of_two else None

    async def conversations(self, user: str) -> list[Listed]:
        """Return all conversations that the user is in, or was in, in any order."""
        return await self.listed(user, list(self._conversations))

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        """Return these conversations, if the user is or was in them."""
        return [self._listed(user, cid) for cid in dict.fromkeys(cids) if await self.membership(cid, user) is not None]

    async def members(self, cid: int, *, after: str, limit: int) -> list[Member]:
        """Return present members of a group by name, after the name `after`."""
        assert limit > 0
        self._check_open()
        found = [member for member in self._present() if member.cid == cid and member.user > after]
        return sorted(found, key=lambda member: member.user)[:limit]

    async def users(self, cid: int, *, at_most: int) -> Sequence[str]:
        """Return who is in the conversation now, by name; nobody if they are more than `at_most`, or there is none."""
        self._check_open()
        conversation = self._conversations.get(cid)
        users = [member.user for member in await self.members(cid, after="", limit=at_most + 1)]
        if conversation is not None and conversation.group is None:
            users = sorted(set(_users(conversation)))
        return users if len(users) <= at_most else ()

    async def views(self, cid: int, *, read_from: int, limit: int) -> list[View]:
        """Return views of present members who see `read_from` and have read it, or sent something there or later."""
        assert limit > 0
        self._check_open()
        users = {member.user for member in self._present() if member.cid == cid and member.first_seq <= read_from}
        if cid in self._conversations:
            users |= set(_users(self._conversations[cid]))
        views = [self._views[user, cid] for user in sorted(users) if (user, cid) in self._views]
        return [view for view in views if max(view.read_seq, view.sent_seq, view.hidden_seq) >= read_from][:limit]

    async def log(self, *, after: int, limit: int) -> list[Message]:
        """Return committed entries of all conversations, in the order of `n`, after `after`; no notes."""
        assert limit > 0
        self._check_open()
        return [message for message in self._log if message.n > after and message.form != Form.NOTE][:limit]

    async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
        """Return committed entries that are to go to a shard, behind a position, ascending."""
        assert limit > 0
        self._check_open()
        return [one for one in self._outgoing if one.shard == shard and one.position > after][:limit]

    def _listed(self, user: str, cid: int) -> Listed:
        conversation, member = self._conversations[cid], self._members.get((cid, user))
        view = self._views.get((user, cid), View(user, cid))
        max_seq = (member.leave_seq if member else 0) or self._max_seq(cid)
        visible = self._entries[cid][:max_seq]
        head = next(message for message in reversed(visible) if message.form in {Form.MESSAGE, Form.EVENT})
        after = max(view.read_seq, view.sent_seq, view.hidden_seq, member.join_seq if member else 0)
        recalled = {seq for (of, seq), overlay in self._overlays.items() if of == cid and overlay.is_recalled}
        mentioned = {seq for of, who, seq in self._mentions if of == cid and who in {user, EVERYBODY}}
        unread = range(after + 1, max_seq + 1)
        return Listed(
            conversation,
            member,
            view,
            head,
            self._overlays.get((cid, head.seq)),
            max_seq,
            visible[-1].cseq,
            sum(seq in unread for seq in recalled),
            max((seq for seq in mentioned - recalled if seq in unread), default=0),
            len({one.user for one in self._present() if one.cid == cid} | set(_users(conversation))),
        )

    def _page(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        self._check_open()
        found = [message for seq in seqs if (message := self._message(cid, seq)) is not None]
        return ConversationPage(self._max_seq(cid), tuple(found), self._covering(found))

    def _covering(self, messages: Sequence[Message]) -> dict[Place, Overlay]:
        places = [(message.cid, message.seq) for message in messages]
        return {place: self._overlays[place] for place in places if place in self._overlays}

    def _message(self, cid: int, seq: int) -> Message | None:
        return self._entries[cid][seq - 1] if 0 < seq <= self._max_seq(cid) else None

    def _max_seq(self, cid: int) -> int:
        return len(self._entries.get(cid, ()))

    def _present(self) -> list[Member]:
        return [member for member in self._members.values() if not member.leave_seq]

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the message store is closed")


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def _users(conversation: Conversation) -> tuple[str, ...]:
    """Return the two users of a single conversation, nobody of a group's."""
    return () if conversation.group is not None else (conversation.lo, conversation.hi)
