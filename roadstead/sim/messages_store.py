"""What the message services of a simulated history have on their disk: rows, as committed changes say.

It outlives every crash of the process that writes it. A transaction is one `apply`: all of it or nothing, in no time.
What a process remembers beside it, its ledger first of all, is made anew from here in each life.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from im.core.book import DIRECT_MAX
from im.core.commands import Delivery
from im.core.facts import Changes, ConversationFacts, Facts, Key, Needs, Pair, QueuedDraft
from im.core.ledger import Ledger, LedgerSettings
from im.core.model import Conversation, Form, Member, Message, Overlay, Pending, View
from im.core.pair_ids import users_of
from im.core.publications import publication
from im.core.unread import Pointers, pointers, unread
from roadstead.client.rows import Publication

__all__ = ["Entries", "Range", "Rows"]

Entries = list[tuple[int, Publication]]
"""Publications with their numbers, ascending."""

_JOINING = {"create", "invite", "join"}
_SHOWN = {Form.MESSAGE, Form.EVENT}


class Range(msgspec.Struct):
    """A stretch of a log that a user may see; `last` None: to its end."""

    first: int
    last: int | None = None


class Rows:
    """See the module."""

    def __init__(self, settings: LedgerSettings) -> None:
        self.settings = settings
        self.conversations: dict[int, Conversation] = {}
        self.logs: dict[int, dict[int, Message]] = {}
        self.ends: dict[int, Message] = {}
        self.timelines: defaultdict[str, dict[int, Message]] = defaultdict(dict)
        self.heads: defaultdict[str, int] = defaultdict(int)
        self.floors: defaultdict[str, int] = defaultdict(int)
        self.keys: dict[Key, Message] = {}
        self.members: defaultdict[int, dict[str, Member]] = defaultdict(dict)
        self.views: dict[tuple[str, int], View] = {}
        self.overlays: defaultdict[int, dict[int, Overlay]] = defaultdict(dict)
        self.queued: dict[int, QueuedDraft] = {}
        self.pendings: dict[int, Pending] = {}
        self.reserved: dict[int, int] = {}
        """Seqs that were given outside of transactions, which nobody should do."""
        self.written: list[Message] = []
        """Entries with write fan-out: for the referee."""
        self.waited: set[Key] = set()
        """What was queued once: for the referee."""
        self.stays: defaultdict[tuple[int, str], list[Range]] = defaultdict(list)
        """From which event of a group to which one each user was in it: for the referee."""
        self.stepped: set[Message] = set()
        """What was, or is, fanned out in steps: for the referee."""
        self.ranges: defaultdict[tuple[int, str], list[Range]] = defaultdict(list)
        """All that each user of a group may ever have seen: for the referee."""
        self._by_n: dict[int, Message] = {}
        self._pairs: dict[Pair, int] = {}
        self._of: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._told: dict[tuple[int, int], Publication] = {}

    # ------------------------------------------------------------ a ledger's side

    @property
    def last_n(self) -> int:
        """The place of the newest message."""
        return next(reversed(self._by_n), 0)

    def ledger(self, pendings: Iterable[Pending]) -> Ledger:
        """Return the ledger of a new life, which goes on with these fan-outs."""
        last_cid = max((cid for cid in self.conversations if users_of(cid) is None), default=0)
        return Ledger(
            self.settings,
            last_n=self.last_n,
            last_cid=last_cid,
            pendings=[(pending, self._by_n[pending.n]) for pending in pendings],
            queued=[self.queued[position] for position in sorted(self.queued)],
        )

    def facts(self, needs: Needs) -> Facts:
        """Return what there is of what a ledger needs."""
        pairs = (self._pairs[pair] for pair in needs.pairs if pair in self._pairs)
        cids = dict.fromkeys([*pairs, *needs.cids])
        places = needs.messages
        return Facts(
            messages_by_key={key: self.keys[key] for key in needs.keys if key in self.keys},
            conversations=[self._conversation_facts(cid) for cid in cids if cid in self.conversations],
            heads={user: self.heads[user] for user in needs.users},
            views={place: self.views[place] for place in needs.views if place in self.views},
            members={(cid, user): self.members[cid][user] for cid, user in needs.members if user in self.members[cid]},
            messages={(cid, seq): self.logs[cid][seq] for cid, seq in places if seq in self.logs.get(cid, ())},
            overlays={(cid, seq): self.overlays[cid][seq] for cid, seq in places if seq in self.overlays[cid]},
            groups_of={user: sum(self.is_in(cid, user) for cid in self._of[user]) for user in needs.groups_of},
        )

    def _conversation_facts(self, cid: int) -> ConversationFacts:
        end = self.ends[cid]
        return ConversationFacts(self.conversations[cid], end.seq, end.cseq, list(self._present(cid)))

    def apply(self, changes: Changes) -> None:
        """Write a transaction."""
        self.conversations.update(changes.conversations)
        for place, view in changes.views.items():
            known = self.views.get(place, view)
            self.views[place] = replace(view, sent_seq=known.sent_seq, sent_cseq=known.sent_cseq)
        for message, positions in changes.messages:
            self._by_n[message.n] = message
            if message.client_msg_id:
                self.keys[message.sender, message.client_msg_id] = message
            if message.form != Form.NOTE:
                self._append(message)
            self._enter((user, offset, message) for user, offset in positions)
        self._enter(changes.entries)
        for (cid, user), member in changes.members.items():
            self.members[cid][user] = member
            self._of[user][cid] = None
        for (cid, seq), overlay in changes.overlays.items():
            self.overlays[cid][seq] = overlay
        going = {**self.pendings, **changes.pendings}
        self.pendings = {n: pending for n, pending in going.items() if pending is not None}
        self.dequeue(changes.dequeued_through)
        self.queued.update((queued.position, queued) for queued in changes.queued)
        for user, floor in changes.floors.items():
            self.floors[user] = max(floor, self.floors[user])
        self._note(changes)

    def dequeue(self, through: int) -> None:
        """Forget the queued drafts up to a position."""
        for position in [position for position in self.queued if position <= through]:
            del self.queued[position]

    def _note(self, changes: Changes) -> None:
        """Note what the referee wants to know."""
        self.stepped.update(self._by_n[n] for n in changes.pendings)
        self.waited.update((queued.draft.sender, queued.draft.client_msg_id) for queued in changes.queued)
        for delivery in changes.deliveries:
            message = delivery.message
            if delivery.is_first and message.form != Form.NOTE:
                if delivery.fan_out == "write":
                    self.written.append(message)
                if message.form == Form.EVENT and not message.recipient:
                    self._note_stays(delivery)

    def _append(self, message: Message) -> None:
        cid = message.cid
        self.logs.setdefault(cid, {})[message.seq] = message
        self.ends[cid] = message
        if cid not in self.conversations:
            pair = min(message.sender, message.recipient), max(message.sender, message.recipient)
            self.conversations[cid] = Conversation(cid, "single", self.settings.policy.single, *pair)
            self._pairs[pair] = cid
            for user in pair:
                self._of[user][cid] = None
        if message.form == Form.MESSAGE:
            place = (message.sender, cid)
            view = self.views.get(place, View(*place))
            self.views[place] = replace(view, sent_seq=message.seq, sent_cseq=message.cseq)

    def _enter(self, entries: Iterable[tuple[str, int, Message]]) -> None:
        for user, offset, message in entries:
            self.timelines[user][offset] = message
            self.heads[user] = max(offset, self.heads[user])

    def _note_stays(self, delivery: Delivery) -> None:
        """Note who came into a group by an event, and who left by it. Rows only say what was so at the end."""
        event = delivery.message
        body = msgspec.json.decode(event.body)
        group = self.conversations[event.cid].group
        assert group is not None
        for user in body["users"] if body["event"] in _JOINING else ():
            self.stays[event.cid, user].append(Range(event.seq))
            self.ranges[event.cid, user].append(Range(1 if group.history == "all" else event.seq))
        for user in delivery.removed:
            self.stays[event.cid, user][-1].last = self.ranges[event.cid, user][-1].last = event.seq

    # ------------------------------------------------------------ what is read

    def is_in(self, cid: int, user: str) -> bool:
        """Return whether the user is in the conversation now."""
        conversation = self.conversations[cid]
        if conversation.group is None:
            return user in (conversation.lo, conversation.hi)
        return user in self.members[cid] and not self.members[cid][user].leave_seq

    def users(self, cid: int) -> list[str]:
        """Return who is in the conversation now."""
        conversation = self.conversations[cid]
        if conversation.group is None:
            return sorted({conversation.lo, conversation.hi})
        return [member.user for member in self._present(cid)]

    def visible(self, cid: int, user: str) -> tuple[int, int] | None:
        """Return the first and the last seq that the user may see now; None: nothing of it is the user's."""
        if cid not in self._of[user]:
            return None
        member = self.members[cid].get(user)
        end = self.ends[cid].seq
        return (member.first_seq, member.leave_seq or end) if member is not None else (1, end)

    def timeline(self, user: str, since: int, limit: int) -> Entries:
        """Return the entries after `since`, as far as they are kept."""
        timeline = self.timelines[user]
        offsets = range(max(since, self.floors[user]) + 1, min(since + limit, self.heads[user]) + 1)
        return [(offset, self.told(timeline[offset])) for offset in offsets if offset in timeline]

    def log(self, cid: int, seqs: range) -> list[Publication]:
        """Return these entries of a log, those that there are."""
        log = self.logs[cid]
        return [self.told(log[seq]) for seq in seqs if seq in log]

    def told(self, message: Message, *, is_new: bool = False) -> Publication:
        """Return the message as clients are told of it now, or when it was new."""
        overlay = None if is_new else self.overlay_of(message)
        place = message.n, overlay.version if overlay is not None else 0
        data = self._told.get(place)
        if data is None:
            data = self._told[place] = msgspec.json.decode(publication(message, overlay))
        return data

    def overlay_of(self, message: Message) -> Overlay | None:
        """Return what covers the message."""
        return self.overlays[message.cid].get(message.seq) if message.form == Form.MESSAGE else None

    def pointers(self, cid: int, user: str) -> Pointers:
        """Return what counts of the conversation for the user."""
        view = self.views.get((user, cid), View(user, cid))
        member = self.members[cid].get(user)
        end = self.logs[cid][self.end_seq(cid, user)]
        after = max(view.read_seq, view.sent_seq, view.hidden_seq, member.join_seq if member is not None else 0)
        recalled = sum(after < seq <= end.seq and one.is_recalled for seq, one in self.overlays[cid].items())
        return pointers(view, member, max_seq=end.seq, max_cseq=end.cseq, recalled=recalled)

    def end_seq(self, cid: int, user: str) -> int:
        """Return the newest seq that the user, who is or was in the conversation, may see."""
        member = self.members[cid].get(user)
        return (member.leave_seq if member is not None else 0) or self.ends[cid].seq

    def parts(self, user: str) -> list[Pointers]:
        """Return the pointers of all conversations of the user."""
        return [self.pointers(cid, user) for cid in self._of[user]]

    def listed(self, user: str) -> list[Publication]:
        """Return the user's list, without what is hidden."""
        parts = [(self.pointers(cid, user), self.views.get((user, cid), View(user, cid))) for cid in self._of[user]]
        return [self._listed(user, part, view) for part, view in parts if part.max_seq > view.hidden_seq]

    def _listed(self, user: str, part: Pointers, view: View) -> Publication:
        cid, log = part.cid, self.logs[part.cid]
        conversation, member = self.conversations[cid], self.members[cid].get(user)
        first = member.first_seq if member is not None else 1
        shown = (log[seq] for seq in range(part.max_seq, first - 1, -1) if seq in log and log[seq].form in _SHOWN)
        last = next(shown, None)
        return {
            "cid": str(cid),
            "kind": conversation.kind,
            "fan_out": conversation.fan_out,
            "channel": "inbox",
            "peer": "" if member is not None else self._peer(conversation, user),
            "max_seq": part.max_seq,
            "max_cseq": part.max_cseq,
            "read_seq": part.floor_seq,
            "unread": unread(part),
            "first_seq": first,
            "last_seq": member.leave_seq if member is not None else 0,
            "last": self.told(last) if last is not None else None,
            "is_muted": view.is_muted,
        }

    def sync_version(self, user: str) -> int:
        """Return the user's version of all that can be pushed to it."""
        return self.heads[user] + sum(
            self.ends[cid].seq
            for cid in self._of[user]
            if self.conversations[cid].fan_out == "read" and self.is_in(cid, user) and self._is_small(cid)
        )

    def _is_small(self, cid: int) -> bool:
        return self.conversations[cid].group is None or sum(1 for _ in self._present(cid)) <= DIRECT_MAX

    def _present(self, cid: int) -> Iterator[Member]:
        return (member for member in self.members[cid].values() if not member.leave_seq)

    @staticmethod
    def _peer(conversation: Conversation, user: str) -> str:
        return conversation.hi if conversation.lo == user else conversation.lo
