"""What the message services stop doing when they are asked too much: the least important first, messages last.

*Pressure* is how near the services are to what they can bear: 1 when the queue is full, or when a command that comes
now would wait longer than it may, which is the groups before it times what committing one takes. Each kind of work is
dropped from a pressure of its own on, in this order: who is typing, who read what, what offline pushes and lists show
of messages, and in the end new messages, which are refused and may come again later. Who is online has a place in the
order too, after typing; but the message services do no such work, so nothing is left out at that level.

Dropping is at once, and of as many kinds as it takes. Taking up again is one kind after the other, each after a time of
calm: pressure stays below what the kind is dropped at, by a good part, since taking it up raises pressure.

Invariants:
    I1  What is dropped is a beginning of the order above: messages are refused only when all else is dropped.
    I2  After an observation everything is dropped whose pressure was reached.
    I3  A kind is taken up only after `calm_ms` in which every observation was below `CALM` times its pressure, and
        nothing was dropped or taken up.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from base.clock import Instant

__all__ = ["Overload", "OverloadSettings", "Work"]


class Work(IntEnum):
    """Kinds of work, the least important first."""

    TYPING = 1
    PRESENCE = 2
    """Nobody asks for it: status nodes do that work. Its number stays, as alerts and dashboards go by these numbers."""
    RECEIPTS = 3
    PREVIEWS = 4
    """Texts of messages in offline pushes, and newest messages in lists of conversations."""
    MESSAGES = 5


DROPPED_AT: Final = {
    Work.TYPING: 0.3,
    Work.PRESENCE: 0.45,
    Work.RECEIPTS: 0.6,
    Work.PREVIEWS: 0.75,
    Work.MESSAGES: 0.95,
}
"""By pressure."""

CALM: Final = 0.7


class OverloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be borne."""

    waiting_max: int
    """Commands that may wait."""
    group_max: int
    """Commands in one commit."""
    wait_ms_max: int
    """How long a command may wait, as far as can be told when it comes."""
    calm_ms: int = 2_000
    smoothing_ms: int = 1_000
    """One slow commit among quick ones weighs as much as the part of this time that passed since the one before."""
    retry_ms_min: int = 500
    retry_ms_max: int = 30_000


class Overload:
    """See the module. Say `committed` of each commit, and `observe` a few times a second or oftener."""

    __slots__ = ("_calm_since", "_commit_ms", "_committed_at", "_dropped", "_pressure", "_settings", "_wait_ms")

    def __init__(self, settings: OverloadSettings) -> None:
        assert settings.waiting_max > 0
        assert settings.group_max > 0
        assert settings.wait_ms_max > 0
        assert 0 < settings.retry_ms_min <= settings.retry_ms_max
        self._settings = settings
        self._commit_ms = 0.0
        self._committed_at: Instant | None = None
        self._pressure = 0.0
        self._wait_ms = 0
        self._dropped = 0
        """The greatest kind that is dropped; 0: none."""
        self._calm_since: Instant | None = None

    @property
    def pressure(self) -> float:
        """As of the last observation, from 0 to 1."""
        return self._pressure

    @property
    def dropped(self) -> Work | None:
        """The most important kind of work that is dropped: those before it are, too. None: everything is done."""
        return Work(self._dropped) if self._dropped else None

    def does(self, work: Work) -> bool:
        """Return whether this kind of work is done now."""
        return work > self._dropped

    @property
    def retry_after_ms(self) -> int:
        """When refused messages may come again: what waits now is committed by then."""
        settings = self._settings
        return min(max(self._wait_ms, settings.retry_ms_min), settings.retry_ms_max)

    def committed(self, now: Instant, took_ms: int) -> None:
        """A group was committed and took so long."""
        if self._committed_at is None:
            self._commit_ms = float(took_ms)
        else:
            passed_ms = now - self._committed_at
            assert passed_ms >= 0
            weight = min(passed_ms / self._settings.smoothing_ms, 1.0)
            self._commit_ms += (took_ms - self._commit_ms) * weight
        self._committed_at = now

    def observe(self, now: Instant, *, waiting: int, running_ms: int) -> None:
        """Decide anew what is dropped.

        Args:
            now: the present instant.
            waiting: commands that wait for a commit.
            running_ms: how long the commit that runs has taken until now, 0 if none runs: a disk that stands still is
                not told by commits.
        """
        settings = self._settings
        groups = -(-waiting // settings.group_max)
        self._wait_ms = round(max(self._commit_ms, running_ms) * groups)
        self._pressure = min(max(waiting / settings.waiting_max, self._wait_ms / settings.wait_ms_max), 1.0)
        reached = max((work for work, at in DROPPED_AT.items() if at <= self._pressure), default=0)
        if reached > self._dropped:
            self._dropped = reached
            self._calm_since = None
        elif self._dropped:
            self._calm_down(now)

    def check_invariants(self) -> None:
        """Assert I2, and that no time of calm is counted when there is nothing to take up."""
        assert 0 <= self._pressure <= 1
        assert all(work <= self._dropped for work, at in DROPPED_AT.items() if at <= self._pressure), "I2"
        assert self._dropped or self._calm_since is None, "I3"

    def _calm_down(self, now: Instant) -> None:
        if self._pressure >= CALM * DROPPED_AT[Work(self._dropped)]:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= self._settings.calm_ms:
            self._dropped -= 1
            self._calm_since = now if self._dropped else None
