"""Who may speak in a long poll: requests and answers take turns, so that a lost answer can be asked for again.

A poll is a request that is answered when there is something to say. Either of the two may get lost on its way, and
neither side can tell which. So each request has a number. One more than the last means: I have that answer, take these
commands and give me the next. The same number again means: nothing came, say it once more. The commands of a repeated
request are not taken again.

```
    begin(n + 1), n was answered   NEW        take its commands; n's answer is forgotten
    begin(n), n is under way       REPEATED   the answer goes to this request instead, when there is one
    begin(n), n was answered       REPEATED   the same answer
    anything else                  WRONG      the client lost count
```

Invariants:
    I1  The commands of a turn are taken once.
    I2  What a turn was answered does not change, and is kept until the client says that it has it.
    I3  A turn begins when the one before it was answered.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Turn", "Turns"]


class Turn(Enum):
    """What a request is."""

    NEW = "new"
    REPEATED = "repeated"
    WRONG = "wrong"


class Turns:
    """The turns of one session. It begins in turn 0, under way: the request that opened it."""

    __slots__ = ("answer", "number")

    def __init__(self) -> None:
        self.number = 0
        """The turn under way, or answered last."""
        self.answer: bytes | None = None
        """Its answer, None while it is under way."""

    def begin(self, number: int) -> Turn:
        """A request with a number is there."""
        if number == self.number:
            return Turn.REPEATED
        if number != self.number + 1 or self.answer is None:
            return Turn.WRONG
        self.number = number
        self.answer = None
        return Turn.NEW

    def finish(self, answer: bytes) -> bytes:
        """Answer the turn, unless it was answered; return its answer."""
        if self.answer is None:
            self.answer = answer
        return self.answer
