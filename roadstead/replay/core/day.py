"""Which conversations are replayed, and at what time of the one day that they are laid on.

A *folded* day has all of them. It begins at 10:00 UTC, when the fewest people wrote, and each message is at its time of
day. So whoever wrote at the same hour of different days writes at once here. What would come before its predecessor,
since the conversation went over the border of the day, comes as long after it as it really did, but a minute at most.
So the order within a conversation is the real one, and so are its gaps but for nights.

A *real* day has what was written on that date alone, from 00:00 to 24:00 UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["DAY_S", "Choice", "Conversation", "Said", "Timed", "chosen", "renamed"]

DAY_S = 86_400
FOLD_S = 10 * 3_600
"""Where a folded day begins: seconds since midnight UTC."""
OVER_THE_BORDER_S = 60


class Said(msgspec.Struct, frozen=True, gc=False):
    """A message as it was recorded. `at`: seconds since 1970, UTC."""

    at: int
    sender: str
    text: str


class Conversation(msgspec.Struct, frozen=True):
    """One conversation of the recording, in its order; times never go back."""

    name: str
    said: tuple[Said, ...]


def renamed(conversations: Iterable[Conversation], prefix: str) -> list[Conversation]:
    """Return the conversations with other people, whose names begin with the prefix."""
    return [
        Conversation(one.name, tuple(Said(said.at, prefix + said.sender, said.text) for said in one.said))
        for one in conversations
    ]


class Timed(msgspec.Struct, frozen=True):
    """What is replayed of a conversation: each message's place in it, its second of the day, and the message."""

    name: str
    speakers: tuple[str, ...]
    """Of all of it: one or two."""
    said: tuple[tuple[int, int, Said], ...]


class Choice(msgspec.Struct, frozen=True):
    """What to replay. `date`: days since 1970 of a real day; None: all, folded.

    `begin_s` and `end_s` are a window of the day, in seconds since midnight UTC; equal: all of it. `most`: so many
    conversations, the first by name, which is random.
    """

    date: int | None = None
    begin_s: int = 0
    end_s: int = 0
    most: int | None = None


def chosen(conversations: Iterable[Conversation], choice: Choice) -> list[Timed]:
    """Return what is replayed, by name. What has no message left is left out."""
    origin = 0 if choice.date is not None else FOLD_S
    begin = (choice.begin_s - origin) % DAY_S
    end = (choice.end_s - origin) % DAY_S
    found = []
    for one in sorted(conversations, key=lambda one: one.name):
        timed = _on_date(one, choice.date) if choice.date is not None else _folded(one)
        if choice.begin_s != choice.end_s:
            timed = [row for row in timed if _is_within(row[1] % DAY_S, begin, end)]
        if timed:
            speakers = tuple(dict.fromkeys(said.sender for said in one.said))
            found.append(Timed(one.name, speakers, tuple(timed)))
    return found if choice.most is None else found[: choice.most]


def _is_within(second: int, begin: int, end: int) -> bool:
    """Return whether a second of the day is in a window, which may go over the day's end."""
    return begin <= second < end if begin < end else second >= begin or second < end


def _on_date(conversation: Conversation, date: int) -> list[tuple[int, int, Said]]:
    return [(place, said.at % DAY_S, said) for place, said in enumerate(conversation.said) if said.at // DAY_S == date]


def _folded(conversation: Conversation) -> list[tuple[int, int, Said]]:
    return list(zip(range(len(conversation.said)), _seconds(conversation.said), conversation.said, strict=True))


def _seconds(said: Sequence[Said]) -> list[int]:
    """Return each message's second of the folded day."""
    seconds: list[int] = []
    for place, one in enumerate(said):
        second = (one.at - FOLD_S) % DAY_S
        if seconds and second < seconds[-1]:
            second = seconds[-1] + min(one.at - said[place - 1].at, OVER_THE_BORDER_S)
        seconds.append(second)
    return seconds
