"""Who does what when: the script of every user, as a pure function of the conversations, and what must come of it.

The rules:

- **Time.** The first message is `start_ms` after the beginning; a second of the day takes 1000 / `speed` ms.
- **Order.** A message follows its predecessor in its conversation: its sender waits until its device has that.
- **Partners.** Who spoke alone gets a silent partner: the other speaker, if only the part without it is replayed. Else
  of all senders, by name, the one that the xxh3 hash of the conversation's name falls on, or the next one if that is
  the speaker.
- **Presence.** A user is online from `lead_ms` before a step until `quiet_ms` after it; steps that are closer together
  than that are one *stretch*. In between the user is offline, whatever arrives.
- **Devices.** Every fifth user by name has a second device, which is there in the second stretch, the fourth, and so
  on: it only listens.
- **Reading.** Before somebody answers, it reads up to the message that it answers to; after its last message it reads
  no more. A silent partner reads once: when the message in the middle is sent, up to that one. Sending counts as
  reading.

So what is unread in the end follows from the plan and from the order in which messages were stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from roadstead.replay.core.day import Timed

__all__ = ["Message", "Pace", "Person", "Plan", "Step", "Stretch", "part_of", "planned"]

FIRST, SECOND = "phone", "tablet"
SECOND_EVERY = 5
START_MS = 1_000
LEAD_MS = 500
QUIET_S = 600


def part_of(user: str, parts: int) -> int:
    """Return in which part of several a user is."""
    return xxhash.xxh3_64_intdigest(user.encode()) % parts


class Pace(msgspec.Struct, frozen=True):
    """How fast the day goes by. Times are ms of the replay, not of the day."""

    speed: float
    start_ms: int = START_MS
    lead_ms: int = LEAD_MS
    quiet_s: int = QUIET_S
    """Of the day."""

    @property
    def quiet_ms(self) -> int:
        """How long a user stays after its last step."""
        return round(self.quiet_s * 1_000 / self.speed)


class Message(msgspec.Struct, frozen=True):
    """A message to be sent: `key` is its `client_msg_id`, and names the conversation and the place in it."""

    key: str
    at_ms: int
    sender: str
    to: str
    text: str
    after: str
    """The key of the one before it in its conversation; empty for the first."""


class Step(msgspec.Struct, frozen=True):
    """What a user does at a time: reads up to the message `reads`, if any, and then sends `message`, if any."""

    at_ms: int
    message: Message | None
    reads: Message | None


class Stretch(msgspec.Struct, frozen=True):
    """A time in which a user is online, and what it does then."""

    begin_ms: int
    end_ms: int
    steps: tuple[Step, ...]


class Person(msgspec.Struct, frozen=True):
    """A user's script. `devices`: the first one sends; a second one comes in every other stretch."""

    user: str
    devices: tuple[str, ...]
    stretches: tuple[Stretch, ...]


class Plan(msgspec.Struct, frozen=True):
    """The script of all. `conversations` are those of the recording, not those of the system: one a pair of users."""

    people: tuple[Person, ...]
    conversations: tuple[tuple[Message, ...], ...]
    messages: dict[str, Message]

    @property
    def end_ms(self) -> int:
        """When the last message is due."""
        return max((message.at_ms for message in self.messages.values()), default=0)

    def due_ms(self, part: float) -> int:
        """Return when a part of the messages (0 to 1) is due."""
        times = sorted(message.at_ms for message in self.messages.values())
        return times[min(int(part * len(times)), len(times) - 1)] if times else 0

    def expected(self) -> dict[str, int]:
        """Return how many messages each user's timeline has in the end, its own included."""
        counts: defaultdict[str, int] = defaultdict(int)
        for message in self.messages.values():
            counts[message.sender] += 1
            counts[message.to] += 1
        return dict(counts)

    def reads(self) -> Iterable[tuple[str, Message]]:
        """Return who reads up to which message."""
        for person in self.people:
            for stretch in person.stretches:
                for step in stretch.steps:
                    if step.reads is not None:
                        yield person.user, step.reads


def planned(conversations: Sequence[Timed], pace: Pace, *, senders: Iterable[str] = ()) -> Plan:
    """Return everybody's script.

    Args:
        conversations: what is replayed, with one or two speakers each.
        pace: how fast.
        senders: who may be a silent partner, beside those who speak.
    """
    everybody = sorted({speaker for one in conversations for speaker in one.speakers} | {*senders})
    begin_s = min((one.said[0][1] for one in conversations), default=0)
    steps: defaultdict[str, list[Step]] = defaultdict(list)
    made: list[tuple[Message, ...]] = []
    for one in conversations:
        first, *others = one.speakers
        pair = (first, others[0] if others else _partner(one.name, first, everybody))
        messages = _messages(one, pair, begin_s, pace)
        made.append(messages)
        for message, before in zip(messages, (None, *messages), strict=False):
            answers = before if before is not None and before.sender != message.sender else None
            steps[message.sender].append(Step(message.at_ms, message, answers))
        if len({message.sender for message in messages}) == 1:
            middle = messages[len(messages) // 2]
            steps[middle.to].append(Step(middle.at_ms, None, middle))
    people = []
    for number, user in enumerate(sorted(steps)):
        devices = (FIRST, SECOND) if number % SECOND_EVERY == 0 else (FIRST,)
        in_order = sorted(steps[user], key=lambda step: step.at_ms)  # stable: equal times stay in the order of names
        people.append(Person(user, devices, _stretches(in_order, pace)))
    return Plan(tuple(people), tuple(made), {message.key: message for messages in made for message in messages})


def _partner(name: str, speaker: str, everybody: Sequence[str]) -> str:
    assert len(everybody) > 1, "there is nobody to talk to"
    place = xxhash.xxh3_64_intdigest(name.encode()) % len(everybody)
    return everybody[place] if everybody[place] != speaker else everybody[(place + 1) % len(everybody)]


def _messages(one: Timed, pair: tuple[str, str], begin_s: int, pace: Pace) -> tuple[Message, ...]:
    messages: list[Message] = []
    for place, second, said in one.said:
        at_ms = pace.start_ms + round((second - begin_s) * 1_000 / pace.speed)
        to = pair[1] if said.sender == pair[0] else pair[0]
        after = messages[-1].key if messages else ""
        messages.append(Message(f"{one.name}/{place}", at_ms, said.sender, to, said.text, after))
    return tuple(messages)


def _stretches(steps: Sequence[Step], pace: Pace) -> tuple[Stretch, ...]:
    stretches: list[Stretch] = []
    pending: list[Step] = []
    for step in steps:
        if pending and step.at_ms - pace.lead_ms > pending[-1].at_ms + pace.quiet_ms:
            stretches.append(_stretch(pending, pace))
            pending = []
        pending.append(step)
    return (*stretches, _stretch(pending, pace))


def _stretch(steps: Sequence[Step], pace: Pace) -> Stretch:
    return Stretch(max(0, steps[0].at_ms - pace.lead_ms), steps[-1].at_ms + pace.quiet_ms, tuple(steps))
