"""Where the next message goes, and the newest messages themselves: what a message store keeps in memory.

A store that writes each message into its indexes at once rewrites a page or more of every index for it. A log in
order of commit is all that durability needs; the indexes may get messages later, many at a time and sorted. Until
then they can be found only here. `Recent` holds

- *counters*: the last seq of conversations and the newest offset of timelines, to place the next message;
- *generations*: the committed messages that the indexes may not have yet, by key, by timeline and by conversation. At
  most two: one that is being merged into the indexes, and one that collects meanwhile.

```
    place ──▶ (durable) ──▶ commit ──▶ collecting ── freeze ──▶ merging ── (indexed) ──▶ retire
```

One thread calls everything but `tail`, `head` and those named after conversations, which any thread may call at any
time: they only read, and what they read grows at its end or is replaced as a whole.

Invariants:
    I1  Seqs of a conversation and offsets of a timeline are placed in order, without a hole or a repeat.
    I2  A key is placed once; a later draft with it gets the first one's place, or a conflict.
    I3  The counters of whatever is in a generation are here, so a counter that is absent can be read off the indexes.
    I4  `tail` shows a timeline from some offset to its newest committed one, all of it, and `conversation_tail` a
        conversation in the same way. Whatever is older is indexed.

After a failed commit the counters are ahead of the truth: the owner throws the whole away and restores another from
what is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from im.ports import Appended, Draft, KeyConflict, Message, TimelineEntry

__all__ = ["ConversationTail", "Key", "Lookup", "Pair", "Recent", "Tail"]

Key = tuple[str, str]
"""(sender, client_msg_id)"""

Pair = tuple[str, str]
"""The two users of a single chat, the smaller first."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What must be known before drafts can be placed: `known` so far, and what only the indexes can tell."""

    known: dict[Key, Message]
    keys: list[Key]
    pairs: list[Pair]
    users: list[str]


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a timeline: entries as asked for, all of them at `first` or later; `head` is the newest offset."""

    first: int
    head: int
    entries: list[TimelineEntry]


@dataclass(frozen=True, slots=True)
class ConversationTail:
    """The end of a conversation: messages as asked for, all of them at `first` or later; `head` is the newest seq."""

    first: int
    head: int
    messages: list[Message]


@dataclass(slots=True)
class _Conversation:
    cid: int
    max_seq: int


@dataclass(slots=True)
class _Generation:
    """Committed messages, by key, by timeline and by conversation.

    A timeline's part is its first offset and what follows it. A conversation's messages know their seqs.
    """

    by_key: dict[Key, Message] = field(default_factory=dict)
    parts: dict[str, tuple[int, list[Message]]] = field(default_factory=dict)
    conversations: dict[int, list[Message]] = field(default_factory=dict)


class Recent:
    """The newest part of a message log. See the module's docstring for the order of calls."""

    def __init__(self, *, last_cid: int, hot_max: int) -> None:
        """`last_cid`: the greatest one indexed. `hot_max`: how many counters of a kind to keep beyond need."""
        self._last_cid = last_cid
        self._hot_max = hot_max
        self._conversations: dict[Pair, _Conversation] = {}
        self._heads: dict[str, int] = {}
        self._generations: tuple[_Generation, ...] = (_Generation(),)

    def __len__(self) -> int:
        """Return the number of messages in the collecting generation."""
        return len(self._generations[-1].by_key)

    @property
    def is_merging(self) -> bool:
        """Whether a frozen generation waits for `retire`."""
        return len(self._generations) > 1

    # ------------------------------------------------------------ placing

    def lookup(self, drafts: Sequence[Draft]) -> Lookup:
        """Return what these drafts need to know. Put the answers into `known` and `learn`, then `place`."""
        known: dict[Key, Message] = {}
        keys: list[Key] = []
        pairs: dict[Pair, None] = {}
        users: dict[str, None] = {}
        for draft in drafts:
            key = (draft.sender, draft.client_msg_id)
            for generation in self._generations:
                if (message := generation.by_key.get(key)) is not None:
                    known[key] = message
                    break
            else:
                keys.append(key)
            if (pair := _pair(draft.sender, draft.recipient)) not in self._conversations:
                pairs[pair] = None
            if draft.sender not in self._heads:
                users[draft.sender] = None
            if draft.recipient not in self._heads:
                users[draft.recipient] = None
        return Lookup(known, keys, list(pairs), list(users))

    def learn(self, conversations: Iterable[tuple[Pair, int, int]], heads: Iterable[tuple[str, int]]) -> None:
        """Take what the indexes say: (pair, cid, last seq) and (user, newest offset). What they lack is new."""
        for pair, cid, max_seq in conversations:
            self._conversations[pair] = _Conversation(cid, max_seq)
        self._heads.update(heads)

    def place(self, drafts: Sequence[Draft], known: dict[Key, Message]) -> list[Appended | KeyConflict]:
        """Give each draft its place, in order; `known` gets the new ones, so that a batch may repeat its own keys."""
        outcomes: list[Appended | KeyConflict] = []
        for draft in drafts:
            key = (draft.sender, draft.client_msg_id)
            existing = known.get(key)
            if existing is None:
                appended = self._place_one(draft)
                known[key] = appended.message
                outcomes.append(appended)
            elif _is_repeat(draft, existing):
                outcomes.append(Appended(existing, is_new=False, positions=()))
            else:
                outcomes.append(KeyConflict(existing))
        return outcomes

    def _place_one(self, draft: Draft) -> Appended:
        sender, recipient = draft.sender, draft.recipient
        pair = _pair(sender, recipient)
        conversation = self._conversations.get(pair)
        if conversation is None:
            self._last_cid += 1
            conversation = self._conversations[pair] = _Conversation(self._last_cid, 0)
        conversation.max_seq += 1
        message = Message(
            conversation.cid,
            conversation.max_seq,
            draft.mid,
            sender,
            draft.device,
            recipient,
            draft.client_msg_id,
            draft.kind,
            draft.body,
            draft.at,
        )
        heads = self._heads
        offset = heads[sender] = heads.get(sender, 0) + 1
        if sender == recipient:
            return Appended(message, True, ((sender, offset),))
        other = heads[recipient] = heads.get(recipient, 0) + 1
        return Appended(message, True, ((sender, offset), (recipient, other)))

    # ------------------------------------------------------------ generations

    def commit(self, fresh: Iterable[Appended]) -> None:
        """Show what is durable now, in the order in which it was placed."""
        generation = self._generations[-1]
        parts, conversations = generation.parts, generation.conversations
        for appended in fresh:
            message = appended.message
            generation.by_key[message.sender, message.client_msg_id] = message
            conversation = conversations.get(message.cid)
            if conversation is None:
                conversations[message.cid] = [message]
            else:
                conversation.append(message)
            for user, offset in appended.positions:
                part = parts.get(user)
                if part is None:
                    parts[user] = (offset, [message])
                else:
                    part[1].append(message)

    def restore(self, durable: Iterable[Appended]) -> None:
        """Take over messages that an earlier life committed, in their order: places first, then `commit`."""
        messages = list(durable)
        for appended in messages:
            message = appended.message
            pair = _pair(message.sender, message.recipient)
            self._conversations[pair] = _Conversation(message.cid, message.seq)
            self._last_cid = max(self._last_cid, message.cid)
            self._heads.update(appended.positions)
        self.commit(messages)

    def freeze(self) -> None:
        """Let the collecting generation be merged and begin another."""
        assert not self.is_merging, "one merge at a time"
        self._generations = (self._generations[-1], _Generation())

    def retire(self) -> None:
        """Forget the frozen generation, which is indexed now, and cool down if there are too many counters."""
        assert self.is_merging
        collecting = self._generations[-1]
        self._generations = (collecting,)
        if max(len(self._conversations), len(self._heads)) > self._hot_max:
            pairs = {_pair(message.sender, message.recipient) for message in collecting.by_key.values()}
            self._conversations = {pair: self._conversations[pair] for pair in pairs}
            self._heads = {user: self._heads[user] for user in collecting.parts}

    def tail(self, user: str, *, since: int, limit: int) -> Tail | None:
        """Return what is here of the user's timeline after `since`, None when nothing of the user is here."""
        first = head = 0
        entries: list[TimelineEntry] = []
        for generation in self._generations:
            part = generation.parts.get(user)
            if part is None:
                continue
            start, messages = part
            count = len(messages)  # once: the list may grow while we read, and the head must not
            first = first or start
            head = start + count - 1
            wanted = _indexes(start, count, since=since, room=limit - len(entries))
            entries.extend(TimelineEntry(start + index, messages[index]) for index in wanted)
        return Tail(first, head, entries) if head else None

    def head(self, user: str) -> int | None:
        """Return the user's newest committed offset, None when nothing of the user is here."""
        for generation in reversed(self._generations):
            part = generation.parts.get(user)
            if part is not None:
                start, messages = part
                return start + len(messages) - 1
        return None

    def conversation_tail(self, cid: int, *, since: int, limit: int) -> ConversationTail | None:
        """Return what is here of the conversation after `since`, None when nothing of it is here."""
        first = head = 0
        found: list[Message] = []
        for generation in self._generations:
            messages = generation.conversations.get(cid)
            if messages is None:
                continue
            start, count = messages[0].seq, len(messages)  # once, as in `tail`
            first = first or start
            head = start + count - 1
            wanted = _indexes(start, count, since=since, room=limit - len(found))
            found.extend(messages[index] for index in wanted)
        return ConversationTail(first, head, found) if head else None

    def conversation_end(self, cid: int) -> Message | None:
        """Return the conversation's newest committed message, None when nothing of it is here."""
        for generation in reversed(self._generations):
            messages = generation.conversations.get(cid)
            if messages is not None:
                return messages[-1]
        return None

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I1, I3, I4); tests call it after every step."""
        ends: dict[str, int] = {}
        last: dict[int, int] = {}
        for generation in self._generations:
            for user, (start, messages) in generation.parts.items():
                assert start == ends.get(user, start - 1) + 1, "I4: generations follow each other without a hole"
                ends[user] = start + len(messages) - 1
            by_conversation: dict[int, list[Message]] = {}
            for message in generation.by_key.values():
                by_conversation.setdefault(message.cid, []).append(message)
                assert message.seq == last.get(message.cid, message.seq - 1) + 1, "I1"
                last[message.cid] = message.seq
                conversation = self._conversations[_pair(message.sender, message.recipient)]
                assert (conversation.cid, conversation.max_seq) >= (message.cid, message.seq), "I3"
            assert generation.conversations == by_conversation, "I4"
        for user, end in ends.items():
            assert self._heads[user] == end, "I3"


def _pair(sender: str, recipient: str) -> Pair:
    return (sender, recipient) if sender < recipient else (recipient, sender)


def _indexes(start: int, count: int, *, since: int, room: int) -> range:
    """Return which of `count` items, numbered from `start` on, follow `since`: at most `room` of them."""
    begin = max(0, since + 1 - start)
    return range(begin, min(count, begin + room))


def _is_repeat(draft: Draft, existing: Message) -> bool:
    """Whether the draft is the existing message sent again: another device or time of sending is no other payload."""
    return draft.body == existing.body and draft.recipient == existing.recipient and draft.kind == existing.kind
