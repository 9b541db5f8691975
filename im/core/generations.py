"""The newest part of a message log: what a store keeps in memory until its indexes have it.

A store that writes each message into its indexes at once rewrites a page or more of every index for it. A log in
order of commit is all that durability needs; the indexes may get messages later, many at a time and sorted. Until
then they can be found only here, in *generations*: at most two, one that is being merged into the indexes and one that
collects meanwhile.

```
    (durable) ──▶ commit ──▶ collecting ── freeze ──▶ merging ── (indexed) ──▶ retire
```

One thread calls `commit`, `freeze` and `retire`. Any thread may take `newest` at any time and ask it: it stays as it
was taken, but that its collecting generation may grow at its end. So whoever looks into the indexes after having taken
it finds every message in one of the two, however many merges end in between.

Invariants:
    I1  The parts of a timeline (of a conversation) that are here follow each other without a hole, up to the newest
        committed offset (seq). Whatever is older is indexed.
    I2  Each message that is here, and whose log is in this store, is found by its key, by its conversation and as its
        sender's newest one there, and each single conversation that began here by its users.
    I3  Of a message that is here, what became of it is here too; of an entry that is here, that it was trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from im.core.facts import Key, Pair
from im.core.model import Form, Message, Overlay

__all__ = ["ConversationTail", "Entry", "Generations", "Newest", "Stored", "Tail", "pair_of", "size_of"]

Stored = tuple[Message, Sequence[tuple[str, int]]]
"""A message and the timeline entries (user, offset) that were stored with it."""

Entry = tuple[str, int, Message]
"""A timeline entry (user, offset, message) of a message that was stored before, or beside it."""

_NOTE = int(Form.NOTE)
_MESSAGE = int(Form.MESSAGE)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a timeline: (offset, message) as asked for, at `first` or later; `head` is the newest offset."""

    first: int
    head: int
    floor: int
    """Entries up to here were trimmed; 0 if none of those that are here."""
    entries: list[tuple[int, Message]]


@dataclass(frozen=True, slots=True)
class ConversationTail:
    """The end of a conversation: messages as asked for, all of them at `first` or later; `head` is the newest seq."""

    first: int
    head: int
    messages: list[Message]


@dataclass(slots=True)
class _Generation:
    """Committed messages, in all the orders in which they are looked for. What is here only grows.

    A timeline's part is its first offset and what follows it. A conversation's messages know their seqs.
    """

    size: int = 0
    by_key: dict[Key, Message] = field(default_factory=dict)
    parts: dict[str, tuple[int, list[Message]]] = field(default_factory=dict)
    conversations: dict[int, list[Message]] = field(default_factory=dict)
    sent: dict[tuple[str, int], Message] = field(default_factory=dict)
    pairs: dict[Pair, int] = field(default_factory=dict)
    singles: dict[str, list[Message]] = field(default_factory=dict)
    """By user, the first messages of single conversations."""
    overlays: dict[tuple[int, int], Overlay] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)

    def add(self, stored: Iterable[Stored]) -> None:
        """File messages, without timelines."""
        by_key, conversations, sent = self.by_key, self.conversations, self.sent  # every microsecond counts here
        for message, _ in stored:
            if message.origin:
                continue  # another shard's: there it is found by these
            sender, cid = message.sender, message.cid
            if client_msg_id := message.client_msg_id:
                by_key[sender, client_msg_id] = message
            if (form := message.form) == _NOTE:
                continue
            conversation = conversations.get(cid)
            if conversation is None:
                conversations[cid] = [message]
            else:
                conversation.append(message)
            if form == _MESSAGE:
                sent[sender, cid] = message
            if message.seq == 1 and message.recipient:
                pair = pair_of(sender, message.recipient)
                self.pairs[pair] = cid
                for user in dict.fromkeys(pair):  # once, in a chat with oneself
                    self.singles.setdefault(user, []).append(message)

    def place(self, stored: Iterable[Stored]) -> None:
        """File timeline entries, of each timeline in order."""
        parts = self.parts
        for message, positions in stored:
            for user, offset in positions:
                part = parts.get(user)
                if part is None:
                    parts[user] = (offset, [message])
                else:
                    part[1].append(message)


class Newest:
    """What is not indexed, as any thread may ask for it. Nothing is remembered of an unknown user or conversation."""

    __slots__ = ("_generations",)

    def __init__(self, *generations: _Generation) -> None:
        """`generations`: oldest first."""
        self._generations = generations

    def by_keys(self, keys: Sequence[Key]) -> dict[Key, Message]:
        """Return the messages with these keys."""
        found: dict[Key, Message] = {}
        for generation in self._generations:
            by_key = generation.by_key
            for key in by_key.keys() & keys:  # nearly always none, which is found out without a loop in Python
                found[key] = by_key[key]
        return found

    def by_pair(self, pair: Pair) -> int | None:
        """Return the cid of a single conversation that began here."""
        for generation in self._generations:
            if (cid := generation.pairs.get(pair)) is not None:
                return cid
        return None

    def singles(self, user: str) -> list[Message]:
        """Return the first messages of the user's single conversations that began here."""
        return [message for generation in self._generations for message in list(generation.singles.get(user, ()))]

    def sent(self, user: str, cid: int) -> Message | None:
        """Return the newest message that the user sent there."""
        for generation in reversed(self._generations):
            if (message := generation.sent.get((user, cid))) is not None:
                return message
        return None

    def overlays(self, messages: Sequence[Message]) -> dict[tuple[int, int], Overlay]:
        """Return what became of these messages lately, by (cid, seq)."""
        found: dict[tuple[int, int], Overlay] = {}
        for generation in self._generations:
            if known := generation.overlays:  # there are few, if any
                places = ((message.cid, message.seq) for message in messages)
                found |= {place: known[place] for place in places if place in known}
        return found

    def users_of(self, cid: int) -> Pair | None:
        """Return the users of a single conversation of which an entry of one of them is here."""
        for messages, count in self._stretches(cid):
            for index in range(count):
                message = messages[index]
                if not message.recipient:
                    return None  # a group's
                if message.sender:
                    return pair_of(message.sender, message.recipient)
        return None

    # ------------------------------------------------------------ timelines

    def tail(self, user: str, *, since: int, limit: int) -> Tail | None:
        """Return what is here of the user's timeline after `since`, None when nothing of the user is here."""
        first = head = 0
        floor = self._floor(user)
        since = max(since, floor)
        entries: list[tuple[int, Message]] = []
        for generation in self._generations:
            part = generation.parts.get(user)
            if part is None:
                continue
            start, messages = part
            count = len(messages)  # once: the list may grow while we read, and the head must not
            first = first or start
            head = start + count - 1
            wanted = _indexes(start, count, since=since, room=limit - len(entries))
            entries.extend((start + index, messages[index]) for index in wanted)
        return Tail(first, head, floor, entries) if head else None

    def head(self, user: str) -> int | None:
        """Return the user's newest committed offset, None when nothing of the user is here."""
        for generation in reversed(self._generations):
            part = generation.parts.get(user)
            if part is not None:
                start, messages = part
                return start + len(messages) - 1
        return None

    def first(self, user: str) -> int | None:
        """Return the smallest offset of the user's timeline that is here, None when nothing of the user is here."""
        for generation in self._generations:
            if (part := generation.parts.get(user)) is not None:
                return part[0]
        return None

    def _floor(self, user: str) -> int:
        return max(generation.floors.get(user, 0) for generation in self._generations)

    # ------------------------------------------------------------ conversations

    def conversation_tail(self, cid: int, *, since: int, limit: int) -> ConversationTail | None:
        """Return what is here of the conversation after `since`, None when nothing of it is here."""
        first = head = 0
        found: list[Message] = []
        for messages, count in self._stretches(cid):
            start = messages[0].seq
            first = first or start
            head = start + count - 1
            wanted = _indexes(start, count, since=since, room=limit - len(found))
            found.extend(messages[index] for index in wanted)
        return ConversationTail(first, head, found) if head else None

    def conversation_before(self, cid: int, *, before: int, limit: int) -> ConversationTail | None:
        """Return the last of what is here of the conversation and has a smaller seq than `before`, ascending."""
        first = head = 0
        found: list[Message] = []
        for messages, count in reversed(self._stretches(cid)):
            first = messages[0].seq
            head = head or first + count - 1
            end = max(0, min(count, before - first))
            found = messages[max(0, end - (limit - len(found))) : end] + found
        return ConversationTail(first, head, found) if head else None

    def conversation_end(self, cid: int) -> Message | None:
        """Return the conversation's newest committed entry, None when nothing of it is here."""
        for generation in reversed(self._generations):
            messages = generation.conversations.get(cid)
            if messages is not None:
                return messages[-1]
        return None

    def message(self, cid: int, seq: int) -> Message | None:
        """Return an entry of a conversation, None when it is not here."""
        for messages, count in self._stretches(cid):
            if 0 <= (index := seq - messages[0].seq) < count:
                return messages[index]
        return None

    def senders(self, cid: int, *, since: int) -> set[str]:
        """Return who sent a message that is here, `since` or later."""
        return {
            message.sender
            for messages, count in self._stretches(cid)
            for message in messages[max(0, since - messages[0].seq) : count]
            if message.form == Form.MESSAGE
        }

    def _stretches(self, cid: int) -> list[tuple[list[Message], int]]:
        """Return the conversation's parts with their lengths, taken once, as in `tail`."""
        found = [generation.conversations.get(cid) for generation in self._generations]
        return [(messages, len(messages)) for messages in found if messages is not None]


class Generations:
    """The owner's side. See the module's docstring for the order of calls."""

    def __init__(self) -> None:
        self._collecting = _Generation()
        self.newest = Newest(self._collecting)
        """Replaced as a whole when a generation begins or ends."""
        self._is_merging = False

    def __len__(self) -> int:
        """Return the size of the collecting generation, in the measure of `size_of`."""
        return self._collecting.size

    @property
    def is_merging(self) -> bool:
        """Whether a frozen generation waits for `retire`."""
        return self._is_merging

    def commit(
        self,
        messages: Sequence[Stored],
        entries: Sequence[Entry] = (),
        overlays: Mapping[tuple[int, int], Overlay] | None = None,
        floors: Mapping[str, int] | None = None,
    ) -> None:
        """Show what is durable now: messages in their order of `n`, entries in any order."""
        generation = self._collecting
        generation.size += size_of(messages, entries)
        # First, since an entry must not be seen without what became of it.
        if overlays:
            generation.overlays.update(overlays)
        for user, floor in (floors or {}).items():
            generation.floors[user] = max(floor, generation.floors.get(user, 0))
        generation.add(messages)
        if entries:  # a timeline's may be in both lists, in turns
            placed = [(user, offset, message) for message, positions in messages for user, offset in positions]
            in_order = sorted((*placed, *entries), key=_by_offset)
            generation.place((message, ((user, offset),)) for user, offset, message in in_order)
        else:
            generation.place(messages)

    def freeze(self) -> None:
        """Let the collecting generation be merged and begin another."""
        assert not self._is_merging, "one merge at a time"
        frozen, self._collecting = self._collecting, _Generation()
        self._is_merging = True
        self.newest = Newest(frozen, self._collecting)

    def retire(self) -> None:
        """Forget the frozen generation, which is indexed now."""
        assert self._is_merging
        self._is_merging = False
        self.newest = Newest(self._collecting)

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I1, I2); tests call it after every step."""
        generations = self.newest._generations  # noqa: SLF001 - two halves of one thing
        ends: dict[str, int] = {}
        seqs: dict[int, int] = {}
        for generation in generations:
            for user, (start, messages) in generation.parts.items():
                assert start == ends.get(user, start - 1) + 1, "I1: a timeline has no hole"
                ends[user] = start + len(messages) - 1
            for cid, messages in generation.conversations.items():
                for message in messages:
                    assert (message.cid, message.seq) == (cid, seqs.get(cid, message.seq - 1) + 1), "I1: nor a log"
                    seqs[cid] = message.seq
                    if message.client_msg_id:
                        key = (message.sender, message.client_msg_id)
                        assert self.newest.by_keys([key]) == {key: message}, "I2"
                    if message.form == Form.MESSAGE:
                        newest = self.newest.sent(message.sender, cid)
                        assert newest is not None, "I2"
                        assert newest.seq >= message.seq, "I2"
                    if message.seq == 1 and message.recipient:
                        assert self.newest.by_pair(pair_of(message.sender, message.recipient)) == cid, "I2"


def size_of(messages: Sequence[Stored], entries: Sequence[Entry]) -> int:
    """Return how much memory this takes, in units of about 1 KB: one each, and one more for each 1,024 bytes of a body.

    Entries share their message, which is counted where it is stored.
    """
    return len(messages) + len(entries) + sum([len(message.body) >> 10 for message, _ in messages])


def pair_of(one: str, other: str) -> Pair:
    """Return the two users of a single conversation in their order."""
    return (one, other) if one < other else (other, one)


def _by_offset(entry: Entry) -> int:
    return entry[1]


def _indexes(start: int, count: int, *, since: int, room: int) -> range:
    """Return which of `count` items, numbered from `start` on, follow `since`: at most `room` of them."""
    begin = max(0, since + 1 - start)
    return range(begin, min(count, begin + room))
