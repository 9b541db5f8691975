"""Judges what came of a plan: by what was acknowledged, stored, seen by every device, unread, and said of who is there.

What must be so, in the end, when every device has caught up:

- every message of the plan was acknowledged, and is in the log of its pair's conversation, once, at the place that was
  acknowledged, with its sender and its text; the log has nothing else, and its seqs are 1, 2, 3 ... without a hole;
- the messages of one recorded conversation are in the log in their order;
- every device of both users was given the whole log, each message once, in its order;
- what is unread for a user in a conversation are the messages after the last one that it sent or read up to; its total
  is the sum;
- whoever was there was shown online with just the devices that it had there, and whoever had left offline.

A violation names the messages that it is about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import xxhash

from roadstead.replay.core.plan import Message, Plan

__all__ = ["GONE", "Entry", "Place", "Proof", "Seen", "Shown", "Unread", "Violation", "digest", "prove"]

NAMED_MAX = 10
"""Messages that one violation names."""


class Place(NamedTuple):
    """Where a message is: conversation, number in it, and its id."""

    cid: int
    seq: int
    mid: int


class Entry(NamedTuple):
    """A message as a device was given it, or as a page of the history has it. `digest` is of its text."""

    place: Place
    key: str
    sender: str
    digest: int


class Unread(msgspec.Struct, frozen=True):
    """What a user is told: in all, and by conversation; those with nothing unread may be left out."""

    total: int
    conversations: dict[int, int]


class Shown(msgspec.Struct, frozen=True):
    """What is said of a user: a state, and the devices behind it by name."""

    state: str
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: str, sessions: Iterable[Mapping[str, Any]]) -> Shown:
        """Return what an answer of a status node says."""
        return cls(state, tuple(sorted(session["device"] for session in sessions)))

    def __str__(self) -> str:
        return f"{self.state} with {', '.join(self.devices)}" if self.devices else self.state


GONE = Shown("offline")


class Seen(msgspec.Struct):
    """What was seen from outside. Entries are in the order in which they came."""

    acknowledged: dict[str, Place] = {}
    logs: dict[int, list[Entry]] = {}
    devices: dict[tuple[str, str], list[Entry]] = {}
    """By user and device."""
    unread: dict[str, Unread] = {}
    there: dict[str, Shown] = {}
    """What was said of each user while all of its devices were there."""
    gone: dict[str, Shown] = {}
    """The same after all had left."""

    def add(self, other: Seen) -> None:
        """Add what was seen of other users."""
        self.acknowledged |= other.acknowledged
        self.logs |= other.logs
        self.devices |= other.devices
        self.unread |= other.unread
        self.there |= other.there
        self.gone |= other.gone


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be."""

    kind: str
    says: str
    messages: tuple[str, ...]
    """Keys, the first ones."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.says}: {', '.join(self.messages) or 'no message'}"


class Proof(msgspec.Struct, frozen=True):
    """The verdict, and how much was looked at: silence about nothing is no proof."""

    violations: tuple[Violation, ...]
    looked: dict[str, int]


def digest(text: str) -> int:
    """Return 64 bits that stand for a text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def prove(plan: Plan, seen: Seen) -> Proof:
    """Judge it, see the module. O(n) of what was seen."""
    judge = _Judge(plan, seen)
    judge.acknowledgements()
    judge.logs()
    judge.order()
    judge.devices()
    judge.unread()
    judge.presence()
    return Proof(
        tuple(judge.violations),
        {
            "messages": len(plan.messages),
            "acknowledged": len(seen.acknowledged),
            "conversations": len(seen.logs),
            "log entries": sum(len(log) for log in seen.logs.values()),
            "devices": len(seen.devices),
            "deliveries": sum(len(entries) for entries in seen.devices.values()),
            "unread counts": judge.counts,
            "statuses": len(seen.there) + len(seen.gone),
        },
    )


class _Judge:
    def __init__(self, plan: Plan, seen: Seen) -> None:
        self._plan = plan
        self._seen = seen
        self._digests = {key: digest(message.text) for key, message in plan.messages.items()}
        self._at: dict[str, Place] = {}
        """Where each planned message is in the logs, by its key; of a doubled one the first place."""
        self._cids: defaultdict[str, set[int]] = defaultdict(set)
        """The conversations of each user."""
        self.counts = 0
        self.violations: list[Violation] = []

    def _add(self, kind: str, says: str, keys: Iterable[str]) -> None:
        named = tuple(dict.fromkeys(keys))
        says = f"{says}, {len(named)} messages" if len(named) > NAMED_MAX else says
        self.violations.append(Violation(kind, says, named[:NAMED_MAX]))

    # ---------------------------------------------------------------- what the server has

    def acknowledgements(self) -> None:
        """Every message got its answer."""
        missing = [key for key in self._plan.messages if key not in self._seen.acknowledged]
        if missing:
            self._add("unacknowledged", "never acknowledged", missing)

    def logs(self) -> None:
        """The logs have what was acknowledged, at its place, and nothing else."""
        for cid, log in self._seen.logs.items():
            for number, entry in enumerate(log, start=1):
                self._entry(cid, number, entry)
        for key, place in self._seen.acknowledged.items():
            at = self._at.get(key)
            if at is None:
                self._add("lost", f"acknowledged at {_told(place)}, and in no log", [key])
            elif at != place:
                self._add("elsewhere", f"acknowledged at {_told(place)}, and in the log at {_told(at)}", [key])

    def _entry(self, cid: int, number: int, entry: Entry) -> None:
        place, key = entry.place, entry.key
        if place.seq != number or place.cid != cid:
            self._add("hole", f"entry {number} of conversation {cid} is {_told(place)}", [key])
        message = self._plan.messages.get(key)
        if message is None:
            self._add("unknown", f"nobody sent what is at {_told(place)}", [key])
            return
        if key in self._at:
            self._add("doubled", f"it is at {_told(self._at[key])} and at {_told(place)}", [key])
            return
        self._at[key] = place
        self._cids[message.sender].add(cid)
        self._cids[message.to].add(cid)
        if entry.sender != message.sender or entry.digest != self._digests[key]:
            self._add("altered", f"{_told(place)} is not what {message.sender} sent", [key])

    def order(self) -> None:
        """A pair of users has one conversation, in which recorded ones are in their order."""
        pairs: defaultdict[tuple[str, ...], dict[int, str]] = defaultdict(dict)
        for messages in self._plan.conversations:
            stored = [(message.key, self._at[message.key]) for message in messages if message.key in self._at]
            for key, place in stored:
                message = self._plan.messages[key]
                pairs[tuple(sorted((message.sender, message.to)))].setdefault(place.cid, key)
            for (key, place), (next_key, next_place) in pairwise(stored):
                if place.seq > next_place.seq:
                    self._add("disorder", f"{_told(next_place)} was sent after {_told(place)}", [key, next_key])
        for users, cids in pairs.items():
            if len(cids) > 1:
                self._add("apart", f"{' and '.join(users)} have conversations {_listed(cids)}", cids.values())

    # ---------------------------------------------------------------- what devices saw

    def devices(self) -> None:
        """Every device was given the logs of its user's conversations, each entry once and in order."""
        for person in self._plan.people:
            for device in person.devices:
                entries = self._seen.devices.get((person.user, device), [])
                self._device(f"{person.user}/{device}", self._cids[person.user], entries)

    def _device(self, name: str, cids: set[int], entries: Sequence[Entry]) -> None:
        given: defaultdict[int, list[Entry]] = defaultdict(list)
        for entry in entries:
            given[entry.place.cid].append(entry)
        for cid in sorted(cids | given.keys()):
            log, got = self._seen.logs.get(cid, []), given[cid]
            if got == log:
                continue
            if cid not in cids:
                self._add("astray", f"{name} was given conversation {cid}", [entry.key for entry in got])
                continue
            self._differs(f"{name} in conversation {cid}", log, got)

    def _differs(self, where: str, log: Sequence[Entry], got: Sequence[Entry]) -> None:
        """Say what is different: each message is missing, repeated, another one, or in another order."""
        counts, wanted = Counter(got), set(log)
        missing = [entry.key for entry in log if entry not in counts]
        repeated = [entry.key for entry, count in counts.items() if count > 1]
        strange = [entry.key for entry in counts if entry not in wanted]
        late = [after.key for before, after in pairwise(got) if after.place.seq < before.place.seq]
        for kind, keys in (("missing", missing), ("repeated", repeated), ("strange", strange), ("late", late)):
            if keys:
                self._add(kind, where, keys)

    # ---------------------------------------------------------------- what is unread

    def unread(self) -> None:
        """Unread is what comes after the last message that a user sent or read up to."""
        floors: defaultdict[tuple[str, int], int] = defaultdict(int)
        marks: list[tuple[str, Message]] = [(one.sender, one) for one in self._plan.messages.values()]
        for user, message in (*marks, *self._plan.reads()):
            place = self._at.get(message.key)
            if place is not None:
                floors[user, place.cid] = max(floors[user, place.cid], place.seq)
        for person in self._plan.people:
            told = self._seen.unread.get(person.user)
            if told is None:
                keys = [message.key for message in self._plan.messages.values() if message.to == person.user]
                self._add("unread", f"{person.user} was told nothing", keys)
                continue
            total = 0
            for cid in sorted(self._cids[person.user] | told.conversations.keys()):
                log = self._seen.logs.get(cid, [])
                after = [entry.key for entry in log if entry.place.seq > floors[person.user, cid]]
                total += len(after)
                self.counts += 1
                count = told.conversations.get(cid, 0)
                if count != len(after):
                    says = f"{person.user} was told of {count} in conversation {cid}, and has {len(after)}"
                    self._add("unread", says, after or [entry.key for entry in log[-1:]])
            if told.total != total:
                self._add("unread", f"{person.user} was told of {told.total} in all, and has {total}", [])

    # ---------------------------------------------------------------- who is there

    def presence(self) -> None:
        """The status cluster said who was there, and who was not any more."""
        for person in self._plan.people:
            online = Shown("online", tuple(sorted(person.devices)))
            for when, expected, said in (("there", online, self._seen.there), ("gone", GONE, self._seen.gone)):
                shown = said.get(person.user)
                if shown != expected:
                    says = f"said to be {shown}" if shown is not None else "nothing was said"
                    self._add("presence", f"{person.user} was {when} ({expected}): {says}", [])


def _told(place: Place) -> str:
    return f"({place.cid}, {place.seq})"


def _listed(cids: Iterable[int]) -> str:
    return " and ".join(str(cid) for cid in sorted(cids))
