"""Connections over a network that loses, doubles and reorders: in order and once, or not at all.

A *stream* is opened by one side by sending on it, and carries numbered frames both ways. What comes early waits for
what is missing. What never comes breaks the stream, as a connection breaks: there is no second try, and whoever opened
it opens the next one, whose greater number ends the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from base.clock import Instant

__all__ = ["Answer", "Call", "Frame", "Stream"]

GAP_MS = 1_200
"""How long a frame may be missing before the stream is given up."""


class Frame(msgspec.Struct, frozen=True):
    """The `number`th thing that was sent on a stream in this direction."""

    stream: int
    number: int
    body: Any

    def __str__(self) -> str:
        return f"{self.stream}/{self.number} {self.body}"


class Call(msgspec.Struct, frozen=True):
    """A method is called. `user` and `device` are filled in by whoever knows whose connection it is."""

    id: int
    method: str
    arguments: tuple[Any, ...]
    user: str = ""
    device: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.id}"


class Answer(msgspec.Struct, frozen=True):
    """What became of a call: `error` is empty, the name of a refusal, or `unknown`."""

    id: int
    value: Any = None
    error: str = ""

    def __str__(self) -> str:
        return f"answer {self.id} {self.error}"


class Stream:
    """One side of a stream."""

    __slots__ = ("_ahead", "_send", "_sent", "_stuck_since", "_taken", "heard_at", "number")

    def __init__(self, number: int, send: Callable[[Frame], None], now: Instant) -> None:
        self.number = number
        self.heard_at = now
        self._send = send
        self._sent = 0
        self._taken = 0
        self._ahead: dict[int, object] = {}
        self._stuck_since = now

    def send(self, body: object) -> None:
        """Send something, after all that was sent before."""
        self._sent += 1
        self._send(Frame(self.number, self._sent, body))

    def take(self, frame: Frame, now: Instant) -> list[Any]:
        """Return what is next, in order: nothing, the frame's, or what waited for it as well."""
        self.heard_at = now
        if frame.number > self._taken:
            if not self._ahead:
                self._stuck_since = now
            self._ahead[frame.number] = frame.body
        bodies: list[object] = []
        while self._taken + 1 in self._ahead:
            self._taken += 1
            bodies.append(self._ahead.pop(self._taken))
            self._stuck_since = now
        return bodies

    def is_broken(self, now: Instant) -> bool:
        """Return whether something is missing for too long."""
        return bool(self._ahead) and now - self._stuck_since > GAP_MS
